"""What is trained on whole models alone is refused where a layout cuts them, before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from gptbridge.plugins.backend import load_backend
from tests.parallel.layouts import TASK, run_spec

TASKS: dict[str, dict[str, Any]] = {
    "task.lora": {"lora": TASK["lora"]},
    "task.name": {"name": "classification", "num_labels": 3},
}


@pytest.mark.parametrize("backend", ["torch", "paddle", "mindspore"])
@pytest.mark.parametrize("field", TASKS)
@pytest.mark.parametrize("cut", ["tensor", "pipeline", "sharding"])
def test_a_cut_model_has_no_adapters_and_no_classes(backend: str, field: str, cut: str) -> None:
    def fields(parallel: dict[str, Any], task: dict[str, Any]) -> set[str]:
        return {problem.field for problem in load_backend(backend).problems(run_spec(parallel, task=task))}

    assert field in fields({cut: 2}, TASKS[field])
    assert field not in fields({"data": 2}, TASKS[field])
    assert field not in fields({cut: 2}, {})
