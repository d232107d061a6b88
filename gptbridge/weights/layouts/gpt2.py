"""GPT-2's own names, which more than one system has, and the memory of every backend."""

from __future__ import annotations

from collections.abc import Mapping

from gptbridge.weights.architecture import TOP
from gptbridge.weights.layouts.rules import Layout, Rule, rows, rules

_BLOCK = {
    "ln_1.*": "ln_1.*",
    "attn.qkv.*": "attn.c_attn.*",
    "attn.c_proj.*": "attn.c_proj.*",
    "ln_2.*": "ln_2.*",
    "mlp.c_fc.*": "mlp.c_fc.*",
    "mlp.c_proj.*": "mlp.c_proj.*",
}
_HEAD = {"lm_head.weight": "lm_head.weight"}


def gpt2_rules(
    prefix: str = "", *, heads: Mapping[str, str] = _HEAD, out_in: bool = False
) -> tuple[Rule, ...]:
    """Return the rules; `prefix` is before all but `heads`. Linear weights are (in, out), or (out, in)."""
    return rules(
        top=rows({**{name: prefix + name for name in TOP}, **heads}),
        block=rows(_BLOCK, out_in=out_in),
        blocks=f"{prefix}h.{{}}.",
    )


def gpt2_in_memory(backend: str, *, out_in: bool) -> Layout:
    """Return the layout of a backend's model that has these names."""
    return Layout(backend, "memory", gpt2_rules(out_in=out_in))
