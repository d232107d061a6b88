"""The pages on conversion: their tables are the layouts', their commands work, their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from docs.name_tables import END, PAGES, START, TABLES, with_tables
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.plugins.finding import backend_names
from gptbridge.weights.configs.table import ConfigFacts
from gptbridge.weights.dialects.registry import dialect_names, find_dialect
from gptbridge.weights.opening import Hints
from gptbridge_cli.main import app
from gptbridge_specs import RunSpec, load_model, load_run
from tests.checkpoint.conftest import spec_of, writer
from tests.weights.conversion.checkpoints import (
    MODEL,
    converted,
    random_weights,
    rewrite_ckpt,
    write_hugging_face,
)
from tests.weights.conversion.test_lora import deltas

ROOT = PAGES.parents[1]
TEXTS = [
    *sorted(PAGES.glob("*.md")),
    *(ROOT / name for name in ("docs/moving.md", "docs/convert.md", "README.md")),
]
LAYERS, LAYER = 3, 2
_ROW = re.compile(r"^\| `(\S+)` \| `(\S+)` \| (.+?) \| (.+?) \|$", re.MULTILINE)


def test_every_dialect_has_a_page() -> None:
    assert sorted(path.stem for path in PAGES.glob("*.md")) == dialect_names()
    assert set(TABLES) < set(dialect_names())


@pytest.mark.parametrize("dialect", dialect_names())
def test_tables_are_the_layouts(dialect: str) -> None:
    text = (PAGES / f"{dialect}.md").read_text()
    assert text.count(START) == text.count(END) == 1
    assert with_tables(text, dialect) == text, "run python docs/name_tables.py"


def expanded(expression: str) -> Iterator[str]:
    """Write out the alternatives of a name, and N and L as numbers."""
    numbered = expression.replace("N+1", str(LAYER + 1)).replace("L+1", str(LAYERS + 1))
    parts = re.split(r"[\[{](.*?)[\]}]", re.sub(r"\bN\b", str(LAYER), numbered))
    for chosen in product(*(part.split(",") for part in parts)):
        yield "".join(chosen)


@pytest.mark.parametrize("dialect", dialect_names())
def test_tables_hold_every_name_and_no_other(dialect: str) -> None:
    shown = {
        (canonical, native)
        for names, expression, _, _ in _ROW.findall((PAGES / f"{dialect}.md").read_text())
        for canonical in expanded(names)
        for native in expanded(expression)
    }
    known = {
        (canonical, native.name)
        for layout in find_dialect(dialect).layouts
        for native in layout.natives([r.canonical[0].format(LAYER) for r in layout.rules], LAYERS)
        for canonical in native.canonicals
    }
    assert shown == known


@pytest.mark.parametrize(
    ("dialect", "row"),
    [
        ("fleetx", ("gpt.decoder.layers.N.self_attn.qkv_proj.weight", "(H, 3H)", "head by head q, k, v")),
        ("paddle", ("score.weight", "(H, C)", "transposed")),
        ("mindspore", ("{backbone.,}blocks.N.output.mapping.weight", "(H, F)", "the same")),
        ("megatron", ("model.decoder.layers.N.mlp.linear_fc1.weight", "(F, H)", "transposed")),
    ],
)
def test_tables_say_what_is_known_of_the_systems(dialect: str, row: tuple[str, str, str]) -> None:
    rows = _ROW.findall((PAGES / f"{dialect}.md").read_text())
    assert row in [(native, shape, order) for _, native, shape, order in rows]


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each command line in the unmarked code blocks; a synopsis has brackets."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in [] if language else block.splitlines():
            if line.startswith("gptbridge ") and not re.search(r"\[--|DIALECT", line):
                yield shlex.split(line, comments=True)[1:]


def parsed(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the command and what its options hold; whatever the command line refuses is raised."""
    command: Any = typer.main.get_command(app)
    name = []
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
        name.append(command.name)
    return " ".join(name), command.make_context(name[-1], list(arguments)).params


def test_a_wrong_option_would_be_seen() -> None:
    assert parsed(["convert", "a", "b", "--to", "torch"])[1]["tensor_parallel"] == 1
    for wrong in (["--tensor_parallel", "2"], ["--dtypes", "bfloat16"], ["c"]):
        with pytest.raises(Exception, match=r"(?i)no such option|unexpected extra argument"):
            parsed(["convert", "a", "b", "--to", "torch", *wrong])


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: path.stem)
def test_every_command_line_is_understood(page: Path) -> None:
    found = list(commands(page.read_text()))
    assert len(found) >= 4
    for arguments in found:
        name, options = parsed(arguments)
        if options.get("backend"):
            assert options["backend"] in backend_names()
        if name == "train" and options["spec"]:
            load_run(options["spec"], options["overrides"] or ())
        if name == "generate":
            load_run("gpt2-tiny", options["overrides"] or ())
    for preset in re.findall(r"--model ([a-z0-9.-]+)", page.read_text()):
        load_model(preset)


class Inputs:
    """Makes what the commands of the pages read, when they name it."""

    def __init__(self, original: Path, folder: Path) -> None:
        self._original, self._folder = original, folder
        forms: Mapping[str, tuple[str, dict[str, Any]]] = {
            "gpt2-hf": ("torch", {}),
            "old": ("paddle", {}),
            "gpt2-medium-en": ("paddle", {}),
            "output/model_100000": ("paddle", {}),
            "output/step_1000": ("fleetx", {"tensor": 2, "pipeline": 2, "vocab_size": 64}),
            "gpt3-1.3b-tp2": ("modelscope", {"tensor": 2, "vocab_size": 64}),
            "megatron-345m": ("megatron", {"tensor": 2, "vocab_size": 64}),
            "checkpoints": ("megatron", {"tensor": 2, "pipeline": 2, "vocab_size": 64}),
        }
        self._makers: dict[str, Callable[[Path], object]] = {
            **{name: self._converted(to, options) for name, (to, options) in forms.items()},
            "gpt2.ckpt": self._file("mindspore", "gpt2.ckpt"),
            "model.pdparams": self._file("fleetx", "model.pdparams"),
            "model_state.pdparams": self._file("paddle", "model_state.pdparams"),
            "old/model_state.pdparams": self._file("paddle", "model_state.pdparams"),
            "gpt2-lora.ckpt": self._lora,
            "gpt2-with-adapter": self._adapter,
            "checkpoint": self._ranks,
            "output/checkpoint": self._ranks,
            "gpt3-base": self._modelscope_base,
            "nanogpt/out": self._nanogpt,
            "runs/mine": self._run,
            "data/my-gpt2": self._tokens,
            "data/corpus": self._tokens,
        }

    def make(self, name: str) -> None:
        path = self._folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._makers[name](path)

    def _converted(self, to: str, options: dict[str, Any]) -> Callable[[Path], object]:
        return lambda path: converted(self._original, path, to, **options)

    def _file(self, to: str, name: str) -> Callable[[Path], object]:
        return lambda path: (converted(self._original, path.with_suffix(".made"), to) / name).rename(path)

    def _lora(self, path: Path) -> None:
        self._file("mindspore", "gpt2.ckpt")(path)
        rewrite_ckpt(path, lambda arrays: arrays.update(deltas()))

    def _adapter(self, path: Path) -> None:
        self.make("gpt2-lora.ckpt")
        hints = Hints(model=ConfigFacts({"num_attention_heads": 4}), lora_alpha=8)
        converted(self._folder / "gpt2-lora.ckpt", path, "torch", hints=hints)

    def _ranks(self, path: Path) -> None:
        converted(self._original, path, "mindspore", 2, 2)
        (path / "strategy").rename(path.parent / "strategy")
        (path / "model.yaml").unlink()

    def _modelscope_base(self, path: Path) -> None:
        converted(self._made(path, activation="gelu_erf"), path, "modelscope", variant="base")

    def _nanogpt(self, path: Path) -> None:
        converted(self._made(path, activation="gelu_erf", ffn_hidden_size=None), path, "nanogpt")

    def _made(self, path: Path, **fields: str | None) -> Path:
        model = MODEL.model_copy(update=fields)
        return write_hugging_face(path.with_suffix(".made"), model, random_weights(model))

    def _run(self, path: Path) -> None:
        CheckpointStore(path / "checkpoints").save(10, writer(spec_of(num_attention_heads=2), 10))

    def _tokens(self, path: Path) -> None:
        np.save(f"{path}_ids.npy", np.arange(3000, dtype=np.uint16) % 61)
        np.savez(f"{path}_idx.npz", lens=np.full(30, 100, np.int32), docs=np.arange(31, dtype=np.int64))


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: path.stem)
def test_conversions_run(page: Path, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inputs = Inputs(original, tmp_path)
    for arguments in commands(page.read_text()):
        name, options = parsed(arguments)
        if name not in ("convert", "inspect", "data inspect"):
            continue
        read = options.get("source") or options.get("path")
        if read is not None:
            inputs.make(str(read))
            if options.get("num_attention_heads"):  # asked for where no file says it
                for file in Path(read).rglob("model.yaml"):
                    file.unlink()
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, (arguments, done.output, done.exception)
        assert name != "convert" or "same logits" in done.output


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_fields_to_move_to_exist() -> None:
    rows = re.findall(r"^\|.*\| (.+?) \|$", (ROOT / "docs/moving.md").read_text(), re.MULTILINE)
    named = re.findall(r"`([a-z]+)\.([a-z_0-9]+)(?:=([^`]+))?`", " ".join(rows))
    assert len(named) > 60
    for section, field, value in named:
        part: Any = RunSpec.model_fields[section].annotation
        assert field in part.model_fields, (section, field)
        if value:
            load_run("gpt2-tiny", [f"{section}.{field}={value}"])
