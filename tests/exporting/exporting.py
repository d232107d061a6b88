"""Exports by one framework, in a process of its own: `python exporting.py FOLDER FORMAT:MODEL ...`.

FOLDER holds the checkpoints by model; each artefact goes to FOLDER/FORMAT. What was done is printed as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from gptbridge import export

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    done = {}
    for job in sys.argv[2:]:
        format, _, model = job.partition(":")
        done[format] = asdict(export(folder / model, folder / format, format=format, verify=True))
    sys.stdout.write(json.dumps(done) + "\n")
