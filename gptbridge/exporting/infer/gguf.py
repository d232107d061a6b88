"""The model of this folder's model.gguf in NumPy: to see that the file is right. llama.cpp is for speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray

Array = NDArray[np.float32]


class Model:
    """A GPT-2 in float32, whatever type its matrices are stored in. It keeps no keys and values."""

    def __init__(self, folder: Path | str) -> None:
        file = GGUFReader(Path(folder) / "model.gguf")
        self._weights = {each.name: dequantize(each.data, each.tensor_type) for each in file.tensors}
        self._layers, self._heads, self._epsilon = (
            file.get_field(f"gpt2.{key}").contents()
            for key in ("block_count", "attention.head_count", "attention.layer_norm_epsilon")
        )

    def feed(self, tokens: NDArray[np.int64], past: Any = None) -> tuple[Array, Any]:
        """Return (B, T, V) logits of (B, T) tokens after those of `past`, and all of them."""
        whole = tokens if past is None else np.concatenate([past, tokens], axis=1)
        w = self._weights
        x = w["token_embd.weight"][whole] + w["position_embd.weight"][: whole.shape[1]]
        for layer in range(self._layers):
            block = f"blk.{layer}"
            x = x + self._attention(block, self._norm(f"{block}.attn_norm", x))
            inner = self._linear(f"{block}.ffn_up", self._norm(f"{block}.ffn_norm", x))
            x = x + self._linear(f"{block}.ffn_down", _gelu(inner))
        head = w.get("output.weight", w["token_embd.weight"])
        return self._norm("output_norm", x)[:, -tokens.shape[1] :] @ head.T, whole

    def _attention(self, block: str, x: Array) -> Array:
        b, t, h = x.shape
        qkv = self._linear(f"{block}.attn_qkv", x).reshape(b, t, 3, self._heads, h // self._heads)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        scores = q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(h // self._heads))
        scores = np.where(np.tri(t, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ v
        return self._linear(f"{block}.attn_output", mixed.transpose(0, 2, 1, 3).reshape(b, t, h))

    def _linear(self, name: str, x: Array) -> Array:
        y: Array = x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
        return y

    def _norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(self._epsilon))
        y: Array = centred / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return y


def _gelu(x: Array) -> Array:
    y: Array = x * (1 + np.tanh(np.float32(0.7978845608) * (x + np.float32(0.044715) * x**3))) / 2
    return y
