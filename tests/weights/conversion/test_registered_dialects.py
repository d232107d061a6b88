"""A dialect that another package registers: all of it follows from its table; a bad one harms no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from gptbridge.errors import DialectBroken
from gptbridge.weights.dialects.registry import dialect_names, find_dialect, known_dialects
from gptbridge_cli.main import app
from tests.weights.conversion.checkpoints import (
    MODEL,
    assert_identical,
    converted,
    digest_of,
    facts_of,
    weights_of,
)
from tests.weights.conversion.commands import Outcome, assert_refused
from tests.weights.conversion.conftest import Register

TOY = """
from gptbridge.weights.configs.rows import Key, Pair, Switch, Words
from gptbridge.weights.configs.table import ConfigTable
from gptbridge.weights.dialects.dialect import Dialect
from gptbridge.weights.dialects.files import Files, Place, Ranked
from gptbridge.weights.dialects.huggingface import variant

RANKS = Ranked("part-{tensor:03}-of-stage-{pipeline:02}.toy.safetensors")
DIALECT = Dialect(
    "toy",
    aliases=("playful",),
    layouts=(variant("toy", "plain", "toy."),),
    config=ConfigTable(
        files=("toy.yaml",),
        section=("model",),
        rows=(
            Key("vocab_size", ("words",)),
            Key("hidden_size", ("width",)),
            Key("num_layers", ("depth",)),
            Pair(
                "num_attention_heads",
                ("head_size",),
                lambda content, where: content["width"] // content["head_size"],
                lambda described: {"head_size": described.model.head_size},
            ),
            Key("ffn_hidden_size", ("inner",)),
            Key("max_position_embeddings", ("context",)),
            Words("activation", ("act",), {"tanh": "gelu_tanh", "exact": "gelu_erf"}, absent="gelu_tanh"),
            Switch("rotary", False),
        ),
    ),
    files=Files(Place("safetensors", "all.toy.safetensors", RANKS.path), ("all.toy.safetensors",), (RANKS,)),
)
"""


def test_it_is_written_found_and_read_like_any_other(
    register: Register, run: Callable[..., Outcome], source: Path, tmp_path: Path
) -> None:
    assert run("convert", source, tmp_path / "none", "--to", "toy")[0] == 2
    register(TOY)
    assert "toy" in dialect_names()
    assert find_dialect("playful") is find_dialect("toy")
    toy = converted(source, tmp_path / "toy", "toy")
    assert sorted(path.name for path in toy.iterdir()) == ["all.toy.safetensors", "toy.yaml", "vocab.json"]
    words = yaml.safe_load((toy / "toy.yaml").read_text())["model"]
    assert (words["width"], words["head_size"], words["act"]) == (MODEL.hidden_size, MODEL.head_size, "tanh")
    facts = facts_of(toy)
    assert (facts.dialect, facts.variant, facts.configuration) == ("toy", "plain", "toy.yaml")
    assert (facts.model.num_attention_heads, facts.warnings) == (MODEL.num_attention_heads, [])
    assert digest_of(toy) == digest_of(source)
    assert_identical(weights_of(converted(toy, tmp_path / "back", "torch")), weights_of(source))
    words["rotary"] = True
    (toy / "toy.yaml").write_text(yaml.safe_dump({"model": words}))
    assert_refused(run("convert", toy, tmp_path / "out", "--to", "torch"), 5, "rotary is True", tmp_path)


def test_it_is_cut_put_together_and_replaced(
    register: Register, run: Callable[..., Outcome], source: Path, tmp_path: Path
) -> None:
    register(TOY)
    cut = converted(source, tmp_path / "cut", "toy", 2, 2, vocab_size=64)
    files = [path.name for path in sorted(cut.glob("*.safetensors"))]
    assert files == [f"part-{t:03}-of-stage-{p:02}.toy.safetensors" for t in (0, 1) for p in (0, 1)]
    facts = facts_of(cut)
    assert (facts.tensor_parallel, facts.pipeline_parallel, facts.dialect) == (2, 2, "toy")
    again = ("convert", source, cut, "--to", "toy", "--overwrite", "--quiet")
    assert run(*again) == (0, "")
    assert digest_of(cut) == digest_of(source)
    (cut / "diary.txt").write_text("mine")
    assert "diary.txt, which is no part" in run(*again)[1]


def test_help_lists_it(register: Register) -> None:
    assert "zebra" not in CliRunner().invoke(app, ["convert", "--help"]).output
    register(TOY, name="zebra", package="gptbridge-zebra")
    assert "zebra" in CliRunner().invoke(app, ["convert", "--help"]).output


BROKEN = [
    ("import surely_not_there", "does not load: ModuleNotFoundError"),
    ("DIALECT = 3", "is no Dialect called 'toy'"),
    (
        TOY.replace('"toy",\n    aliases', '"other",\n    aliases'),
        "does not load: ValueError: other has a layout of toy",
    ),
]


@pytest.mark.parametrize(("text", "words"), BROKEN)
def test_a_broken_one_is_one_line_and_harms_no_other(
    text: str, words: str, register: Register, run: Callable[..., Outcome], source: Path, tmp_path: Path
) -> None:
    register(text)
    code, line = run("convert", source, tmp_path / "out", "--to", "toy")
    assert (code, line.count("\n")) == (4, 1)
    assert words in line
    assert "gptbridge-toy" in line
    folder = converted(source, tmp_path / "paddle", "paddle")
    facts = facts_of(folder)
    assert facts.dialect == "paddle"
    assert [words in warning for warning in facts.warnings] == [True]


def test_one_that_two_packages_register_is_named_with_both(register: Register, source: Path) -> None:
    register(TOY)
    register(TOY, package="gptbridge-other-toy")
    with pytest.raises(DialectBroken, match="toy: registered by gptbridge-other-toy and gptbridge-toy"):
        find_dialect("toy")
    known = known_dialects()
    assert "torch" in [dialect.name for dialect in known.dialects]
    assert len(known.broken) == 1
    assert json.dumps(facts_of(source).dialect) == '"torch"'


def test_the_order_of_preference_is_the_project_s_own() -> None:
    names = [dialect.name for dialect in known_dialects().dialects]
    assert names == [
        "dcp",
        "torch",
        "gptbridge",
        "paddle",
        "mindspore",
        "fleetx",
        "modelscope",
        "megatron",
        "nanogpt",
    ]
