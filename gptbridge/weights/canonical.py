"""The canonical weights: Hugging Face GPT-2's names and layout, without the `transformer.` prefix.

Linear weights are (in, out); `attn.c_attn` holds [q|k|v] along its last axis, each as heads x head size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gptbridge_specs import ModelSpec

Initial = Literal["normal", "residual", "zeros", "ones"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One trained tensor of the model."""

    name: str
    shape: tuple[int, ...]
    initial: Initial

    @property
    def is_matrix(self) -> bool:
        """Matrices and embeddings take weight decay; biases and LayerNorm do not, by default."""
        return len(self.shape) > 1


def parameters(model: ModelSpec) -> list[Parameter]:
    """Return every parameter of `model`, in the order of Hugging Face's state dict."""
    h, f = model.hidden_size, model.ffn_size
    table = [
        Parameter("wte.weight", (model.vocab_size, h), "normal"),
        Parameter("wpe.weight", (model.max_position_embeddings, h), "normal"),
    ]
    block: tuple[tuple[str, tuple[int, ...], Initial], ...] = (
        ("ln_1.weight", (h,), "ones"),
        ("ln_1.bias", (h,), "zeros"),
        ("attn.c_attn.weight", (h, 3 * h), "normal"),
        ("attn.c_attn.bias", (3 * h,), "zeros"),
        ("attn.c_proj.weight", (h, h), "residual"),
        ("attn.c_proj.bias", (h,), "zeros"),
        ("ln_2.weight", (h,), "ones"),
        ("ln_2.bias", (h,), "zeros"),
        ("mlp.c_fc.weight", (h, f), "normal"),
        ("mlp.c_fc.bias", (f,), "zeros"),
        ("mlp.c_proj.weight", (f, h), "residual"),
        ("mlp.c_proj.bias", (h,), "zeros"),
    )
    table += [
        Parameter(f"h.{n}.{name}", shape, initial)
        for n in range(model.num_layers)
        for name, shape, initial in block
    ]
    table += [Parameter("ln_f.weight", (h,), "ones"), Parameter("ln_f.bias", (h,), "zeros")]
    if not model.tie_word_embeddings:
        table.append(Parameter("lm_head.weight", (model.vocab_size, h), "normal"))
    return table


def initial_value(parameter: Parameter, model: ModelSpec, seed: int) -> NDArray[np.float32]:
    """Draw one parameter from its own Philox stream, keyed by (seed, name).

    The value is the same on every backend and does not depend on what else was drawn.
    """
    if parameter.initial == "zeros":
        return np.zeros(parameter.shape, np.float32)
    if parameter.initial == "ones":
        return np.ones(parameter.shape, np.float32)
    digest = hashlib.blake2b(f"{seed}:{parameter.name}".encode(), digest_size=16).digest()
    stream = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    std = model.initializer_range
    if parameter.initial == "residual":
        std /= math.sqrt(2 * model.num_layers)
    return stream.standard_normal(parameter.shape, dtype=np.float32) * np.float32(std)


class InitialWeights(Mapping[str, NDArray[np.float32]]):
    """The initial weights of a model, each drawn when it is asked for."""

    def __init__(self, model: ModelSpec, seed: int) -> None:
        self._model = model
        self._seed = seed
        self._table = {p.name: p for p in parameters(model)}

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return initial_value(self._table[name], self._model, self._seed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)
