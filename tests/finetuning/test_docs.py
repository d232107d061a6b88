"""The commands of docs/finetuning.md and docs/classification.md run, and the pages say what the code does."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.finetuning.lines import LABELS
from gptbridge.weights.architecture import count_parameters
from gptbridge_specs import load_run
from tests.checkpoint.conftest import spec_of, writer
from tests.training.conftest import ENVIRONMENT

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("finetuning.md", "classification.md")
WIDTH, POSITIONS = 12, 256

# Runs the command lines that come as arguments, one after the other in this process.
SCRIPT = """
import shlex, sys
from gptbridge_cli.main import main
for line in sys.argv[1:]:
    sys.argv = shlex.split(line)
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


def commands(page: str) -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def write_lines(file: Path, lines: list[Any]) -> None:
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with everything that the pages name."""
    run = spec_of(max_position_embeddings=POSITIONS)
    CheckpointStore(tmp_path / "runs/first/checkpoints").save(7, writer(run, 7))
    numbers = range(40)
    write_lines(
        tmp_path / "pairs.jsonl", [{"src_txt": f"{n} and one? ", "tgt_txt": f"{n + 1}"} for n in numbers]
    )
    write_lines(tmp_path / "questions.jsonl", [*({"q": f"{n}?", "a": "yes"} for n in numbers), {"q": "?"}])
    write_lines(tmp_path / "alpaca.jsonl", [{"instruction": f"Say {n}", "output": f"{n}"} for n in numbers])
    rows = [f"{n} is {('bad', 'good')[n % 2]}\t{n % 2}" for n in numbers]
    write_lines(tmp_path / "train.tsv", ["sentence\tlabel", *rows])
    write_lines(tmp_path / "dev.tsv", ["sentence\tlabel", *rows[:10]])
    alike = ["\t".join(["0"] * 7 + [f"{n}", f"{n + n % 3}", f"{n % 3}.5"]) for n in numbers]
    write_lines(tmp_path / "pairs.tsv", alike)
    opinions = [{"words": f"{n}", "opinion": ("bad", "good")[n % 2]} for n in numbers]
    write_lines(tmp_path / "opinions.jsonl", opinions)
    adapter = tmp_path / "their-adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "somewhere/else"}
    write_lines(adapter / "adapter_config.json", [config])
    draw = np.random.default_rng(0).random
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_"
    factors = {
        f"{name}A.weight": draw((2, WIDTH), np.float32),
        f"{name}B.weight": draw((3 * WIDTH, 2), np.float32),
    }
    save_file(factors, adapter / "adapter_model.safetensors")
    return tmp_path


def test_every_command_runs(folder: Path) -> None:
    for library in ("sklearn", "sacrebleu", "rouge_score"):
        pytest.importorskip(library)
    lines = [line for page in PAGES for line in commands(page)]
    assert len(lines) == 19
    lines = [
        f"{line} -b torch -o training.device=cpu" if shlex.split(line)[1] in ("train", "generate") else line
        for line in lines
    ]
    lines = [f"{line} -b torch" if " evaluate " in line else line for line in lines]
    environment = {**ENVIRONMENT, "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *lines],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 of 41 records are bad and left out" in done.stdout
    assert (folder / "merged/model.safetensors").exists()
    assert len((folder / "said.jsonl").read_text().splitlines()) == 10
    assert json.loads((folder / "answers.jsonl").read_text().splitlines()[0])["target"] == "1"
    printed = done.stdout[done.stdout.rindex("\n{\n") + 1 :]
    assert json.JSONDecoder().raw_decode(printed)[0]["counts"]["of good"] == 20


def test_every_format_is_on_the_page() -> None:
    listed = re.findall(r"^\| (`[^|]*`) \|", (DOCS / "classification.md").read_text(), re.MULTILINE)
    assert set(", ".join(listed).replace("`", "").split(", ")) == {"jsonl", "mindrecord", *LABELS}


def test_the_numbers_of_mindformers_lora_are_those_of_its_preset() -> None:
    spec = load_run("mindformers-gpt2-small-lora")
    trained, whole = (count_parameters(spec.model, spec.task, trained=only) for only in (True, False))
    said = f"{trained / 1e6:.1f} million of {whole / 1e6:.1f} million"
    assert said in (DOCS / "finetuning.md").read_text().replace("\n", " ")
