"""Run lm-eval's tasks of a folder on gptbridge and on lm-eval's own model: `python lm_eval_runs.py JSON`.

JSON has `tasks` (a folder of task files), `models` (a list of [name, model_args]). Printed for each model:
the results of each task, and the responses to each request.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gptbridge_lm_eval  # noqa: F401  (registers the model)
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager


def run(folder: str, name: str, arguments: str) -> dict[str, Any]:
    tasks = sorted(path.stem for path in Path(folder).glob("*.yaml"))
    found = simple_evaluate(
        model=name,
        model_args=arguments,
        tasks=tasks,
        batch_size=3,
        task_manager=TaskManager(include_path=folder, include_defaults=False),
        device="cpu",
        bootstrap_iters=0,
    )
    assert found is not None
    numbers = {
        task: {key: value for key, value in row.items() if isinstance(value, float)}
        for task, row in found["results"].items()
    }
    responses = {
        task: [sample["filtered_resps"] for sample in sorted(samples, key=lambda one: one["doc_id"])]
        for task, samples in found["samples"].items()
    }
    return {"numbers": numbers, "responses": responses}


def main() -> None:
    request = json.loads(sys.argv[1])
    results = [run(request["tasks"], *model) for model in request["models"]]
    sys.stdout.write("\n" + json.dumps(results) + "\n")


main()
