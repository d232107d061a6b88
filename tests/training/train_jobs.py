"""Run training jobs one after the other in this process: a framework is imported once for all of them.

Called by tests as `python train_jobs.py JOBS.json`: a list of {run, backend, resume, init_from, overrides}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gptbridge.training.beginning import Beginning
from gptbridge.training.launch import train
from gptbridge.training.start import resolve
from gptbridge.weights.opening import Hints

for job in json.loads(Path(sys.argv[1]).read_text()):
    beginning = Beginning(Path(job["init_from"]), Hints()) if "init_from" in job else None
    plan = resolve(job.get("spec"), job.get("overrides", []), Path(job["run"]), job.get("resume"), beginning)
    train(plan, backend=job["backend"])
