"""Every dialect to every other, whole and split, bit for bit; transformers opens what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gptbridge import reference
from gptbridge.errors import UsageError
from gptbridge.weights.conversion.verifying import verify
from gptbridge.weights.formats.pdparams_writer import write_pdparams
from gptbridge.weights.opening import Hints
from tests.weights.conversion.checkpoints import (
    MODEL,
    apart,
    arrays_in,
    assert_identical,
    converted,
    digest_of,
    entries_of,
    facts_of,
    random_weights,
    weights_of,
    write_hugging_face,
)
from tests.weights.conversion.conftest import TOKENS, HuggingFace

WHOLE = [
    ("torch", None),
    ("torch", "GPT2LMHeadModel"),
    ("gptbridge", None),
    ("paddle", None),
    ("paddle", "GPTModel"),
    ("mindspore", None),
    ("fleetx", None),
    ("fleetx", "split"),
    ("modelscope", None),
    *(("megatron", f"version-{version}") for version in (0, 1, 2, 3)),
    ("megatron", "core"),
    ("megatron", "core-fused-norms"),
]


@pytest.fixture(scope="session")
def forms(original: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str | None], Path]:
    """The model in every dialect and variant."""
    folder = tmp_path_factory.mktemp("forms")
    return {
        form: converted(original, folder / f"{n}", form[0], variant=form[1]) for n, form in enumerate(WHOLE)
    }


@pytest.mark.parametrize("form", WHOLE, ids=str)
def test_back_and_forth_is_bit_identical(
    form: tuple[str, str | None], forms: dict[tuple[str, str | None], Path], original: Path, tmp_path: Path
) -> None:
    back = converted(forms[form], tmp_path / "back", "torch", hints=Hints(form[0]))
    assert_identical(weights_of(back), weights_of(original))
    assert (back / "vocab.json").exists()


def contents(folder: Path) -> dict[Path, bytes]:
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_every_pair_goes_as_through_torch(
    forms: dict[tuple[str, str | None], Path], original: Path, tmp_path: Path
) -> None:
    """Every file is the same, to the byte: weights, configurations and tokenizer."""
    expected = digest_of(original)
    default = {dialect: forms[dialect, variant] for dialect, variant in reversed(WHOLE)}
    assert len(default) == 7
    for source, path in default.items():
        torch = converted(path, tmp_path / source, "torch", hints=Hints(source))
        assert contents(torch) == contents(default["torch"]), source
        for target in default:
            output = converted(path, tmp_path / f"{source}-{target}", target, hints=Hints(source))
            assert digest_of(output) == expected, (source, target)
            through = converted(torch, tmp_path / f"{source}-torch-{target}", target)
            direct, indirect = contents(output), contents(through)
            assert direct.keys() == indirect.keys()
            assert [name for name in direct if direct[name] != indirect[name]] == [], (source, target)


def test_digest_tells_weights_apart(original: Path, tmp_path: Path) -> None:
    weights = random_weights(MODEL)
    name = "h.2.attn.c_proj.weight"
    weights[name] = np.ascontiguousarray(weights[name].T)
    other = write_hugging_face(tmp_path / "other", MODEL, weights)
    assert digest_of(other) != digest_of(original)
    verdict = verify(original, other)
    assert not verdict.passed
    assert verdict.max_difference > 1e-2


def test_untied_head_and_other_activations_survive(tmp_path: Path) -> None:
    for number, activation in enumerate(("gelu_tanh", "gelu_erf", "quick_gelu")):
        model = MODEL.model_copy(update={"activation": activation, "tie_word_embeddings": False})
        source = write_hugging_face(tmp_path / f"s{number}", model, random_weights(model, number))
        for dialect in ("paddle", "fleetx", *(() if activation == "quick_gelu" else ("megatron",))):
            output = converted(source, tmp_path / f"{number}-{dialect}", dialect)
            facts = facts_of(output).model
            assert facts.activation == activation
            assert facts.tie_word_embeddings is False
            assert digest_of(output) == digest_of(source)


def test_erf_and_tanh_are_told_apart_in_every_dialect(tmp_path: Path) -> None:
    for number, activation in enumerate(("gelu_tanh", "gelu_erf", "quick_gelu")):
        model = MODEL.model_copy(update={"activation": activation})
        source = write_hugging_face(tmp_path / f"s{number}", model, random_weights(model))
        knows_all = ("torch", "paddle", "mindspore", "fleetx")
        for dialect in (*knows_all, *(() if activation == "quick_gelu" else ("megatron", "modelscope"))):
            output = converted(source, tmp_path / f"{number}-{dialect}", dialect)
            assert facts_of(output).model.activation == activation


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_rounds_every_weight_once(dtype: str, original: Path, tmp_path: Path) -> None:
    for dialect in ("torch", "paddle", "mindspore", "megatron"):
        small = converted(original, tmp_path / dialect, dialect, dtype=dtype)
        assert facts_of(small).dtypes.keys() == {dtype}
        back = converted(small, tmp_path / f"{dialect}-back", "torch", hints=Hints(dialect), dtype="float32")
        for name, value in weights_of(back).items():
            exact = weights_of(original)[name]
            unit = 2.0**-11 if dtype == "float16" else 2.0**-8
            assert np.all(np.abs(value - exact) <= unit * np.abs(exact) + 2.0**-25)
        assert verify(original, small).passed


@pytest.mark.timeout(200)
def test_transformers_opens_the_result_with_the_same_logits(
    forms: dict[tuple[str, str | None], Path],
    original: Path,
    hugging_face: HuggingFace,
    tmp_path: Path,
) -> None:
    expected = reference.logits(MODEL, apart(weights_of(original)), TOKENS)
    for number, (form, path) in enumerate(forms.items()):
        folder = converted(path, tmp_path / f"{number}", "torch", hints=Hints(form[0]))
        assert np.abs(hugging_face.logits(folder) - expected).max() < 1e-5, form


def test_q_k_and_v_of_different_types_are_joined_in_none_of_them(original: Path, tmp_path: Path) -> None:
    """Apart they stay what they are; one matrix for them needs a word from the user."""
    folder = converted(original, tmp_path / "paddle", "paddle")
    arrays = arrays_in(folder / "model_state.pdparams")
    name = "gpt.decoder.layers.1.self_attn.k_proj.weight"
    arrays[name] = arrays[name].astype(np.float16)
    write_pdparams(folder / "model_state.pdparams", entries_of(arrays))
    apart_still = converted(folder, tmp_path / "mindspore", "mindspore")
    found = arrays_in(apart_still / "gpt2.ckpt")["backbone.blocks.1.attention.dense2.weight"]
    assert np.array_equal(found, arrays[name].T)
    with pytest.raises(UsageError, match=r"c_attn\.weight joins .*k\.weight \(float16\).* --dtype"):
        converted(folder, tmp_path / "torch", "torch")
    joined = weights_of(converted(folder, tmp_path / "torch", "torch", dtype="float32"))
    keys = np.split(joined["h.1.attn.c_attn.weight"], 3, -1)[1]
    assert np.array_equal(keys, arrays[name].astype(np.float32))
