"""The plugin for lm-evaluation-harness, in an environment of its own: `make test-lm-eval` makes that."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gptbridge import convert
from tests.evaluation.conftest import CLOZES, QUESTIONS, WIKI, finished, write_records
from tests.training.conftest import ENVIRONMENT

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-lm-eval" / "bin" / "python"
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON.exists(), reason="lm-eval is not installed: make test-lm-eval installs it"),
]

TASKS: dict[str, tuple[str, list[Any]]] = {
    "choices": (
        "output_type: multiple_choice\ndoc_to_text: '{{context}}'\ndoc_to_target: label\n"
        "doc_to_choice: '{{choices}}'\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n",
        QUESTIONS,
    ),
    "last_word": (
        'output_type: loglikelihood\ndoc_to_text: \'{{text.split(" ")[:-1]|join(" ")}}\'\n'
        'doc_to_target: \'{{" "+text.split(" ")[-1]}}\'\n'
        "metric_list: [{metric: acc}, {metric: perplexity}]\n",
        [{"text": text} for text in CLOZES if len(text.split(" ")) > 1 and len(text) < 30],
    ),
    "rolling": (
        "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: byte_perplexity}, {metric: word_perplexity}]\n",
        [{"text": WIKI}, {"text": "ab ab"}, {"text": "x"}],
    ),
    "writing": (
        "output_type: generate_until\ndoc_to_text: '{{text}}'\ndoc_to_target: '{{text}}'\n"
        "generation_kwargs: {until: ['b a'], max_gen_toks: 9, do_sample: false}\n"
        "metric_list: [{metric: exact_match}]\n",
        [{"text": text} for text in (*CLOZES[:4], "a long one " * 6, "?", "x y")],
    ),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name, (content, records) in TASKS.items():
        data = write_records(folder / f"{name}.jsonl", records)
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        (folder / f"{name}.yaml").write_text(f"{head}test_split: test\n{content}")
    return folder


@pytest.fixture(scope="module")
def runs(model: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of the plugin on a PaddleNLP checkpoint, of lm-eval on its export, of the plugin once more."""
    folder = tmp_path_factory.mktemp("lm-eval")
    convert(model, folder / "paddle", to="paddle")
    convert(folder / "paddle", folder / "exported", to="torch")
    request = {
        "tasks": str(tasks),
        "models": [
            ["gptbridge", f"checkpoint={folder / 'paddle'}"],
            # its cache takes one request's logits for another's whose context ends elsewhere in the same text
            ["hf", f"pretrained={folder / 'exported'},dtype=float32,logits_cache=False"],
            ["gptbridge", f"checkpoint={folder / 'paddle'},max_length=26"],
        ],
    }
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    command = [str(PYTHON), str(Path(__file__).with_name("lm_eval_runs.py")), json.dumps(request)]
    return finished(command, environment={**ENVIRONMENT, **offline})


@pytest.mark.parametrize("task", TASKS)
def test_it_finds_what_lm_evals_own_model_finds(task: str, runs: list[dict[str, Any]]) -> None:
    ours, theirs, shorter = runs
    assert ours["numbers"][task] == pytest.approx(theirs["numbers"][task], rel=1e-4)
    for found, expected in zip(ours["responses"][task], theirs["responses"][task], strict=True):
        if task == "writing":
            assert found == expected
        else:
            assert numbers(found) == pytest.approx(numbers(expected), rel=1e-4, abs=1e-4)
    if task == "rolling":
        assert shorter["numbers"][task] != pytest.approx(ours["numbers"][task], rel=1e-4), "a control"
    else:
        assert len({str(found) for found in ours["responses"][task]}) > 3


def numbers(responses: list[Any]) -> list[float]:
    """Return log likelihoods and whether they are greedy, as numbers."""
    return [float(x) for one in responses for x in (one if isinstance(one, list) else [one])]


def test_its_command_is_lm_evals(tmp_path: Path) -> None:
    command = [str(PYTHON.with_name("gptbridge-lm-eval")), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ})
    assert done.returncode == 0
    assert "lm-eval" in done.stdout
