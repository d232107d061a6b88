"""nanoGPT's ckpt.pt, against a model of its names written anew in torch: read, written, resumed, refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptbridge import reference
from gptbridge.errors import BadInput, UsageError
from gptbridge.weights.opening import open_checkpoint
from gptbridge_specs import ModelSpec
from tests.weights.conversion.checkpoints import (
    assert_identical,
    converted,
    digest_of,
    facts_of,
    random_weights,
    rewrite_torch,
    weights_of,
    write_hugging_face,
)
from tests.weights.conversion.conftest import TOKENS

_SCRIPT = Path(__file__).with_name("frameworks") / "nanogpt_model.py"
_MASKED = ("without flash attention", "of January 2023", "untied")
MODEL = ModelSpec(
    vocab_size=61,
    hidden_size=24,
    num_layers=3,
    num_attention_heads=4,
    max_position_embeddings=20,
    activation="gelu_erf",
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
)


class NanoGpt:
    """A process that saves and opens ckpt.pt with torch."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, ids: NDArray[np.int32] = TOKENS, **request: str) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({**request, "ids": ids.tolist()}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def saved(self, folder: Path, form: str) -> Path:
        folder.mkdir()
        self.ask(save=str(folder), form=form)
        return folder

    def logits(self, folder: Path) -> NDArray[np.float64]:
        self.ask(open=str(folder))
        return np.load(folder / "logits.npy")  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def nanogpt() -> Iterator[NanoGpt]:
    command = [sys.executable, str(_SCRIPT)]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield NanoGpt(process)
        process.communicate(timeout=30)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_hugging_face(tmp_path / "in", MODEL, random_weights(MODEL))


def our_logits(folder: Path, **changed: Any) -> NDArray[np.float64]:
    with open_checkpoint(folder) as opened:
        model = opened.model.model_copy(update=changed)
        return reference.logits(model, opened.arrays, TOKENS)


@pytest.mark.parametrize(
    ("form", "variant", "activation"),
    [
        ("today", "biased", "gelu_erf"),
        ("bias-free", "bias-free", "gelu_erf"),
        ("compiled", "biased", "gelu_erf"),
        ("without flash attention", "biased", "gelu_erf"),
        ("of January 2023", "biased", "gelu_tanh"),
        ("untied", "biased", "gelu_tanh"),
    ],
)
def test_what_it_saves_computes_the_same(
    form: str, variant: str, activation: str, nanogpt: NanoGpt, tmp_path: Path
) -> None:
    folder = nanogpt.saved(tmp_path / "saved", form)
    facts = facts_of(folder)
    assert (facts.dialect, facts.variant, facts.configuration) == ("nanogpt", variant, "model_args")
    model = facts.model
    assert (model.num_attention_heads, model.activation) == (4, activation)
    assert model.tie_word_embeddings == (form != "untied")
    assert ("model.transformer.h.0.attn.bias" in facts.left_out) == (form in _MASKED)
    assert any(f"activation: {activation} taken" in line for line in facts.assumed)
    assert any("zeros are taken" in warning for warning in facts.warnings) == (form == "bias-free")
    expected = np.load(folder / "logits.npy")
    assert np.abs(our_logits(folder) - expected).max() < 1e-9
    other = "gelu_erf" if activation == "gelu_tanh" else "gelu_tanh"
    assert np.abs(our_logits(folder, activation=other) - expected).max() > 1e-4
    there = converted(folder, tmp_path / "torch", "torch")
    assert np.abs(our_logits(there) - expected).max() < 1e-9


def test_it_opens_and_resumes_what_is_written(source: Path, nanogpt: NanoGpt, tmp_path: Path) -> None:
    folder = converted(source, tmp_path / "out", "nanogpt")
    answer = nanogpt.ask(open=str(folder))
    assert answer["model_args"] == {
        "n_layer": 3,
        "n_head": 4,
        "n_embd": 24,
        "block_size": 20,
        "vocab_size": 61,
        "dropout": 0.1,
        "bias": True,
    }
    assert (answer["iter_num"], answer["best_val_loss"], answer["config"]) == (0, 1e9, {})
    assert (answer["changed"], answer["decays"]) == (True, [0.1, 0.0])
    expected = our_logits(source)
    assert np.abs(np.load(folder / "logits.npy") - expected).max() < 1e-9
    assert_identical(weights_of(converted(folder, tmp_path / "back", "torch")), weights_of(source))


def test_models_without_biases_go_there_and_back(nanogpt: NanoGpt, tmp_path: Path) -> None:
    saved = nanogpt.saved(tmp_path / "saved", "bias-free")
    there = converted(saved, tmp_path / "torch", "torch")
    biases = {name: array for name, array in weights_of(there).items() if name.endswith(".bias")}
    assert len(biases) == 3 * 6 + 1
    assert not any(array.any() for array in biases.values())
    back = converted(there, tmp_path / "back", "nanogpt", variant="bias-free")
    biased = converted(there, tmp_path / "biased", "nanogpt")
    expected = np.load(saved / "logits.npy")
    for folder, bias in ((back, False), (biased, True)):
        assert nanogpt.ask(open=str(folder))["model_args"]["bias"] is bias
        assert np.abs(nanogpt.logits(folder) - expected).max() < 1e-9
        assert digest_of(folder) == digest_of(saved)


def refused(source: Path, folder: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        converted(source, folder, "nanogpt", **options)
    assert not folder.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tie_word_embeddings": False}, "model's tie_word_embeddings=false is another"),
        ({"ffn_hidden_size": 72}, "model's ffn_hidden_size=72 is another"),
        ({"activation": "quick_gelu"}, "activation is quick_gelu"),
    ],
)
def test_what_it_cannot_be_is_refused(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    model = MODEL.model_copy(update=changed)
    source = write_hugging_face(tmp_path / "in", model, random_weights(model))
    assert words in refused(source, tmp_path / "out")


def test_a_bias_that_is_not_zero_has_no_place(source: Path, tmp_path: Path) -> None:
    text = refused(source, tmp_path / "out", variant="bias-free")
    assert "h.0.ln_1.bias is not zero, and nanogpt (bias-free) has no place for it" in text
    assert "--variant biased" in text
    assert "never split" in refused(source, tmp_path / "out", tensor=2)


def test_what_it_has_no_word_for_comes_back(tmp_path: Path) -> None:
    changed = {"activation": "gelu_tanh", "layernorm_epsilon": 1e-6, "attention_probs_dropout_prob": 0.2}
    model = MODEL.model_copy(update={**changed, "initializer_range": 0.03})
    source = write_hugging_face(tmp_path / "in", model, random_weights(model))
    folder = converted(source, tmp_path / "out", "nanogpt")
    assert facts_of(folder).model == model.model_copy(update={"ffn_hidden_size": 96})
    assert not facts_of(folder).warnings
    assert not facts_of(folder).assumed


def _without(name: str) -> Callable[[dict[Any, Any]], object]:
    return lambda tree: tree["model_args"].pop(name)


@pytest.mark.parametrize(
    ("form", "change", "words"),
    [
        ("today", lambda tree: tree["model_args"].update(bias=False), r"bias is left over|left over"),
        ("bias-free", lambda tree: tree["model_args"].update(bias=True), "is missing"),
        (
            "today",
            lambda tree: tree["model_args"].update(n_layer=2),
            "says num_layers=2, but the tensors say 3",
        ),
        ("today", lambda tree: tree["model_args"].update(n_head=5), "num_attention_heads=5 does not divide"),
        ("today", _without("n_head"), "number of attention heads is in no file"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    form: str, change: Callable[[dict[Any, Any]], object], words: str, nanogpt: NanoGpt, tmp_path: Path
) -> None:
    folder = nanogpt.saved(tmp_path / "saved", form)
    plain = converted(
        folder, tmp_path / "out", "nanogpt", variant="bias-free" if form == "bias-free" else None
    )
    rewrite_torch(plain / "ckpt.pt", change)
    with pytest.raises((BadInput, UsageError), match=words):
        facts_of(plain)


def test_without_a_bias_key_the_tensors_tell(nanogpt: NanoGpt, tmp_path: Path) -> None:
    folder = nanogpt.saved(tmp_path / "saved", "bias-free")
    plain = converted(folder, tmp_path / "out", "nanogpt", variant="bias-free")
    rewrite_torch(plain / "ckpt.pt", _without("bias"))
    assert facts_of(plain).variant == "bias-free"
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (other / "ckpt.pt").rename(other / "renamed.pt")
    assert facts_of(other).dialect == "nanogpt"
