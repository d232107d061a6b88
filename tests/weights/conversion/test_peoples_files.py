"""Files in the forms that people have: what they say of themselves decides, whatever they are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gptbridge.weights.formats import TensorRef, Tree, open_weights, write_torch
from gptbridge.weights.opening import Hints
from tests.weights.conversion.checkpoints import (
    NO_HINTS,
    arrays_in,
    assert_identical,
    converted,
    entries_of,
    weights_of,
)

MEGATRON_FILE = "release/mp_rank_00/model_optim_rng.pt"


def assert_same(source: Path, original: Path, hints: Hints = NO_HINTS, **options: Any) -> None:
    back = converted(source, source.parent / "back", "torch", hints=hints, overwrite=True, **options)
    assert_identical(weights_of(back), weights_of(original))


def renamed(name: str, names: Mapping[str, str]) -> str:
    """`name` with each of `names` that is in it replaced."""
    for old, new in names.items():
        name = name.replace(old, new)
    return name


def rewrap(source: Path, target: Path, top: str, names: Mapping[str, str], **beside: Tree) -> None:
    """Write the tensors of a torch file under the key `top`, renamed, with other values `beside` them."""
    arrays = {renamed(name.removeprefix("model."), names): array for name, array in arrays_in(source).items()}
    refs: dict[Any, Tree] = {name: TensorRef(f"{top}.{name}") for name in arrays}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_torch(target, entries_of({f"{top}.{name}": x for name, x in arrays.items()}), {top: refs, **beside})


def tree_of(file: Path) -> dict[Any, Tree]:
    with open_weights(file) as weights:
        assert isinstance(weights.tree, dict)
        return weights.tree


ENGINE = {
    "input_layernorm.": "self_attention.layernorm_qkv.layer_norm_",
    "self_attention.query_key_value.": "self_attention.layernorm_qkv.",
    "self_attention.dense.": "self_attention.proj.",
    "post_attention_layernorm.": "layernorm_mlp.layer_norm_",
    "mlp.dense_h_to_4h.": "layernorm_mlp.fc1_",
    "mlp.dense_4h_to_h.": "layernorm_mlp.fc2_",
}


@pytest.mark.parametrize(("version", "norm"), [(3, "layernorm"), (2, "norm"), (3, "norm")])
@pytest.mark.parametrize("tensor", [1, 2])
def test_transformer_engines_names_in_the_classic_model(
    version: int, norm: str, tensor: int, original: Path, tmp_path: Path
) -> None:
    source = converted(
        original, tmp_path / "m", "megatron", tensor, variant=f"version-{version}", vocab_size=64
    )
    for rank in range(tensor):
        file = source / f"release/mp_rank_{rank:02d}/model_optim_rng.pt"
        beside = {key: value for key, value in tree_of(file).items() if key != "model"}
        rewrap(file, file, "model", {**ENGINE, "final_layernorm": f"final_{norm}"}, **beside)
    assert_same(source, original, vocab_size=61)
