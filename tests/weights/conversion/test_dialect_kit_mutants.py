"""The dialects' kit goes red for each known way to be wrong: the example dialect, wrong in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from safetensors.numpy import load_file

from gptbridge import reference
from gptbridge.errors import BridgeError
from gptbridge.testing import DialectConformance
from gptbridge_specs import ModelSpec
from tests.weights.conversion.conftest import Register

_EXAMPLE = Path(__file__).parents[3] / "examples" / "gptbridge-toy-dialect" / "gptbridge_toy_dialect.py"

_BLOCK = {
    "first": "ln_1",
    "second": "ln_2",
    "mix": "attn.c_proj",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
_KINDS = {"gain": "weight", "shift": "bias", "matrix": "weight"}
_TOP = {
    "tokens.table": "wte.weight",
    "places.table": "wpe.weight",
    "last.gain": "ln_f.weight",
    "last.shift": "ln_f.bias",
    "answer.table": "lm_head.weight",
}


def toy_logits(folder: Path, tokens: NDArray[np.int32]) -> NDArray[Any]:
    """What the toy system computes from its files, which are read here without its table."""
    said = yaml.safe_load((folder / "toy.yaml").read_text())["model"]
    stored = load_file(folder / "toy.safetensors")
    width, size = said["width"], said["head_size"]
    weights: dict[str, NDArray[Any]] = {}
    for name, array in stored.items():
        if name in _TOP:
            weights[_TOP[name]] = array
            continue
        _, layer, place, kind = name.split(".")
        if place != "look":
            weights[f"h.{layer}.{_BLOCK[place]}.{_KINDS[kind]}"] = array.T
            continue
        for number, part in enumerate("qkv"):
            rows = [head * 3 * size + number * size + n for head in range(width // size) for n in range(size)]
            weights[f"h.{layer}.attn.{part}.{_KINDS[kind]}"] = array[rows].T
    model = ModelSpec(
        vocab_size=said["words"],
        hidden_size=width,
        num_layers=said["floors"],
        num_attention_heads=width // size,
        ffn_hidden_size=said["inner_width"],
        max_position_embeddings=said["places"],
        layernorm_epsilon=said["epsilon"],
        activation={"tanh": "gelu_tanh", "erf": "gelu_erf"}[said["curve"]],
        tie_word_embeddings="answer.table" not in stored,
    )
    return reference.logits(model, weights, tokens)


class Kit(DialectConformance):
    dialect = "toy"

    def system_logits(self, folder: Path, tokens: NDArray[np.int32]) -> NDArray[Any]:
        return toy_logits(folder, tokens)


Change = tuple[str, str]
_MIX = '"attn.c_proj.weight": ("mix.matrix", "o (m g d)"),'
_EPSILON = 'Key("layernorm_epsilon", ("epsilon",), absent=1e-6)'
_DECLARED = 'DIALECT = Dialect(\n    "toy",\n'
_RULES = "from gptbridge.weights.layouts.rules import"
_ONCE_MORE = '+ rules(top={}, block={"ln_1.bias": ("x", "i")}, blocks="floor.{}."),'
_K_FIRST = """
QKV_WEIGHT = tuple(f"attn.{x}.weight" for x in "kqv")
QKV_BIAS = tuple(f"attn.{x}.bias" for x in "kqv")
"""
_EXCHANGED = """    plain_name=lambda n: n.replace(".0.", ".x.").replace(".1.", ".0.").replace(".x.", ".1."),
    rules="""
_HALF_KEY = """
class Half(Key):
    def {method}:
        return {{}}

"""
_LOOSE = """
class Loose(Words):
    def write(self, described):
        return {"curve": "erf"}

"""
_LOST = """
class Lost(Token):
    def write(self, described):
        return {}

"""
_UNSCALED = """
from gptbridge.weights.dialects import peft

def _read(root, model, stack, *, alpha):
    return peft.read_adapter(root, model, stack, alpha=1.0)

"""
_REFUSE = """
def refuse(described):
    from gptbridge.errors import UsageError
    if not described.model.tie_word_embeddings:
        raise UsageError("no")
    return {}

"""
_COPIES = """
def find(folder, names):
    return tuple(folder / name for name in sorted(names) if "part" in name)

def first_alone(files, root, strategy):
    from gptbridge.weights.canonical.cutting import LetterCutting, Stage
    return [Stage(tuple(files[:1]), tuple(files[0].tensors), LetterCutting(1, root))]

"""

# mistake: (test that must fail, its arguments, part of the message, changes to the example's text)
MUTANTS: dict[str, tuple[str, tuple[str, ...], str, tuple[Change, ...]]] = {
    "a row is missing": (
        "test_every_weight_has_one_place",
        (),
        "['h.{}.mlp.c_fc.bias'] have no place",
        (('            "mlp.c_fc.bias": ("up.shift", "f"),\n', ""),),
    ),
    "a weight has two rows": (
        "test_every_weight_has_one_place",
        (),
        "['h.{}.ln_1.bias'] have several places",
        (('blocks="floor.{}.",\n    ),', f'blocks="floor.{{}}.",\n    ) {_ONCE_MORE}'),),
    ),
    "a weight that is none of the architecture": (
        "test_every_weight_has_one_place",
        (),
        "the architecture has no ['h.{}.mlp.gate.bias']",
        (('"mlp.c_fc.bias"', '"mlp.gate.bias": ("gate", "f"), "mlp.c_fc.bias"'),),
    ),
    "two weights have one name": (
        "test_every_place_has_one_weight",
        (),
        "['floor.{}.first.shift'] stand for several weights",
        (('("second.shift", "i")', '("first.shift", "i")'),),
    ),
    "a layer's name without the layer": (
        "test_every_place_has_one_weight",
        (),
        "say their layer",
        (('blocks="floor.{}."', 'blocks="floor."'),),
    ),
    "an axis of other letters": (
        "test_axes_are_those_of_the_weights",
        (),
        "mix.matrix is `o i`, h.{}.attn.c_proj.weight is `(m g d) o`",
        ((_MIX, _MIX.replace("o (m g d)", "o i")),),
    ),
    "q and k are exchanged in the axes": (
        "test_axes_are_those_of_the_weights",
        (),
        "look.matrix is `(m d) i`, h.{}.attn.q.weight is `i (m g d)`",
        (("(m (q:g d | k:d | v:d))", "(m (k:d | q:g d | v:d))"),),
    ),
    "a square matrix is transposed": (
        "test_logits_match_the_reference",
        ("tied",),
        "the system's own: logits is off by",
        ((_MIX, _MIX.replace("o (m g d)", "(m g d) o")),),
    ),
    "q and k are exchanged": (
        "test_logits_match_the_reference",
        ("tied",),
        "the system's own: logits is off by",
        (
            (f"{_RULES} QKV_BIAS, QKV_WEIGHT, Layout, rules", f"{_RULES} Layout, rules\n{_K_FIRST}"),
            ("q:g d | k:d | v:d", "q:d | k:g d | v:d"),
        ),
    ),
    "heads are interleaved": (
        "test_logits_match_the_reference",
        ("untied",),
        "the system's own: logits is off by",
        (("(m (q:g d | k:d | v:d))", "(q:m g d | k:m d | v:m d)"),),
    ),
    "layers are read in another order": (
        "test_round_trip",
        ("untied",),
        "h.0.ln_1.weight differs",
        (('"plain",\n    rules(', f'"plain",\n{_EXCHANGED}rules('),),
    ),
    "adapters vanish": (
        "test_round_trip",
        ("adapters",),
        "are lost",
        (
            (_DECLARED, f"{_DECLARED}    adapters=AdapterFiles(lambda *a, **k: None, lambda *a: []),\n"),
            ("import Dialect\n", "import AdapterFiles, Dialect\n"),
        ),
    ),
    "a field has no row": (
        "test_every_field_has_one_row",
        (),
        "['layernorm_epsilon'] have no row",
        ((f"            {_EPSILON},\n", ""),),
    ),
    "a row's field is misspelled": (
        "test_every_field_has_one_row",
        (),
        "ModelSpec has no ['layer_norm_epsilon']",
        (('"layernorm_epsilon"', '"layer_norm_epsilon"'),),
    ),
    "two rows have one key": (
        "test_every_field_has_one_row",
        (),
        "['places'] belong to several rows",
        (('Key("vocab_size", ("words",))', 'Key("vocab_size", ("places",))'),),
    ),
    "a key is read and not written": (
        "test_every_field_is_written_and_read",
        ("layernorm_epsilon",),
        "is written nowhere",
        (
            (_EPSILON, _EPSILON.replace("Key", "Half")),
            (_DECLARED, _HALF_KEY.format(method="write(self, described)") + _DECLARED),
        ),
    ),
    "a key is written and not read": (
        "test_every_field_is_written_and_read",
        ("layernorm_epsilon",),
        "layernorm_epsilon=0.0002 is read as 1e-05",
        (
            (_EPSILON, _EPSILON.replace("Key", "Half")),
            (_DECLARED, _HALF_KEY.format(method="read(self, content, where)") + _DECLARED),
        ),
    ),
    "a word stands for two values": (
        "test_every_field_is_written_and_read",
        ("activation",),
        "activation=gelu_tanh is written nowhere",
        (('Words("activation"', 'Loose("activation"'), (_DECLARED, _LOOSE + _DECLARED)),
    ),
    "the quirk of a field is undone wrongly": (
        "test_every_field_is_written_and_read",
        ("num_attention_heads",),
        "num_attention_heads=4 is read as 9",
        (("described.model.head_size}", "described.model.num_attention_heads}"),),
    ),
    "a token is read and not written": (
        "test_tokens_are_written_and_read",
        (),
        "tokens {}, not {'eos_token_id': 4}",
        (
            ('Switch("rotary", False)', 'Lost("eos_token_id")'),
            ("import Content", "import Token, Content"),
            (_DECLARED, _LOST + _DECLARED),
        ),
    ),
    "adapters are scaled otherwise": (
        "test_what_adapters_are_scaled_by_is_kept",
        (),
        "alpha / rank is 0.5",
        (
            (_DECLARED, f"{_DECLARED}    adapters=AdapterFiles(_read, peft.write_adapter),\n"),
            ("import Dialect\n", "import AdapterFiles, Dialect\n"),
            ("_RANKS = ", _UNSCALED + "_RANKS = "),
        ),
    ),
    "the feed-forward width is not cut": (
        "test_splits_merge_to_the_whole",
        (),
        "ffn_hidden_size=84, but the tensors say 168",
        (('dropped=(r"floor', 'cut="mv",\n    dropped=(r"floor'),),
    ),
    "ranks and stages are exchanged in the files' names": (
        "test_splits_merge_to_the_whole",
        (),
        "ffn_hidden_size=84, but the tensors say 42",
        (("_RANKS.path)", "lambda tensor, pipeline, split: _RANKS.path(pipeline, tensor, split))"),),
    ),
    "every rank writes the same file": (
        "test_splits_merge_to_the_whole",
        (),
        "ffn_hidden_size=84, but the tensors say 42",
        (("_RANKS.path)", "lambda tensor, pipeline, split: _RANKS.path(0, 0, split))"),),
    ),
    "every rank holds everything": (
        "test_exchanged_ranks_are_noticed",
        (),
        "exchanged ranks of Split(tensor=2, pipeline=1) read the same",
        (
            ('dropped=(r"floor', 'cut="",\n    dropped=(r"floor'),
            ("ranked=(_RANKS,)", "rank_folders=RankFolders(find, first_alone)"),
            ("import Files, Place, Ranked", "import Files, Place, RankFolders, Ranked"),
            (_DECLARED, _COPIES + _DECLARED),
        ),
    ),
    "the names are another dialect's": (
        "test_it_is_recognised",
        (),
        "is not recognised",
        (
            ("layouts=(_LAYOUT,)", 'layouts=(variant("toy", "plain", ""),)'),
            (_RULES, f"from gptbridge.weights.dialects.huggingface import variant\n{_RULES}"),
        ),
    ),
    "a refusal names nothing": (
        "test_what_has_no_place_is_refused",
        ("untied",),
        "refuses untied as: no",
        (
            ('Switch("rotary", False)', 'Pair("tie_word_embeddings", (), lambda c, w: None, refuse)'),
            (_DECLARED, _REFUSE + _DECLARED),
        ),
    ),
    "whatever is unknown is left out": (
        "test_missing_and_unknown_tensors_are_refused",
        (),
        "DID NOT RAISE",
        (('r"floor\\.\\d+\\.look\\.mask"', 'r".*"'),),
    ),
}


def make(register: Register, changes: tuple[Change, ...]) -> Kit:
    text = _EXAMPLE.read_text()
    for before, after in changes:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    register(text)
    return Kit()


def call(kit: Kit, test: str, arguments: tuple[str, ...], folder: Path) -> None:
    method: Callable[..., None] = getattr(kit, test)
    names = method.__code__.co_varnames[: method.__code__.co_argcount]
    method(*arguments, **({"tmp_path": folder} if "tmp_path" in names else {}))


@pytest.mark.parametrize("mistake", MUTANTS)
def test_the_kit_notices(mistake: str, register: Register, tmp_path: Path) -> None:
    test, arguments, message, changes = MUTANTS[mistake]
    kit = make(register, changes)
    with pytest.raises((AssertionError, BridgeError, pytest.fail.Exception)) as caught:
        call(kit, test, arguments, tmp_path)
    assert message in str(caught.value)


def test_the_kit_passes_what_is_right(register: Register, tmp_path: Path) -> None:
    kit = make(register, ())
    for number, (test, arguments, _, _) in enumerate(MUTANTS.values()):
        (folder := tmp_path / f"{number}").mkdir()
        if arguments != ("adapters",) and "adapters" not in test:
            call(kit, test, arguments, folder)
