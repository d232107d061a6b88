"""Run training jobs one after the other in this process: a framework is imported once for all of them.

Called by tests as `python train_jobs.py JOBS.json`: a list of {run, backend, resume, overrides}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gptbridge.training.run import train
from gptbridge.training.start import resolve

for job in json.loads(Path(sys.argv[1]).read_text()):
    request = resolve(job.get("spec"), job.get("overrides", []), Path(job["run"]), job.get("resume"))
    train(request.spec, backend=job["backend"], run=request.run, resume=request.resume)
