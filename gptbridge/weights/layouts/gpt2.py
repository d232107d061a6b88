"""GPT-2's own names, which more than one system has, and the memory of every backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

from gptbridge.weights.architecture import LORA_A, LORA_B, LORA_TARGETS, TOP
from gptbridge.weights.layouts.rules import Layout, Rule, rows, rules
from gptbridge_specs.run import LoraSpec

_BLOCK = {
    "ln_1.*": "ln_1.*",
    "attn.qkv.*": "attn.c_attn.*",
    "attn.c_proj.*": "attn.c_proj.*",
    "ln_2.*": "ln_2.*",
    "mlp.c_fc.*": "mlp.c_fc.*",
    "mlp.c_proj.*": "mlp.c_proj.*",
}
_HEAD = {"lm_head.weight": "lm_head.weight"}
# The linear layers of a block, and the targets of adapters that lie side by side in the output of each.
ADAPTED = {
    "attn.c_attn": ("q", "k", "v"),
    "attn.c_proj": ("out",),
    "mlp.c_fc": ("fc",),
    "mlp.c_proj": ("proj",),
}


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
    """Return the layout of a backend's model that has these names, adapters and a classifier's head."""
    adapters = {
        f"{LORA_TARGETS[target]}{factor}": f"{linear}.adapters.{target}{factor}"
        for linear, targets in ADAPTED.items()
        for target in targets
        for factor in (LORA_A, LORA_B)
    }
    own = gpt2_rules(heads={**_HEAD, "score.weight": "score.weight"}, out_in=out_in)
    return Layout(backend, "memory", (*own, *rules(top={}, block=rows(adapters), blocks="h.{}.")))


def adapted(lora: LoraSpec) -> dict[str, tuple[str, ...]]:
    """Return the linear layers of a block that get adapters, and the targets in the output of each."""
    return {linear: targets for linear, targets in ADAPTED.items() if set(targets) & set(lora.targets)}


def adapted_in(
    blocks: Mapping[Any, Any], lora: LoraSpec
) -> Iterator[tuple[Any, tuple[str, ...], tuple[int, str]]]:
    """Yield the linear layers of `blocks`, by layer number, with adapters; their targets; where they drop."""
    for layer, block in blocks.items():
        for linear, targets in adapted(lora).items():
            yield attrgetter(linear)(block), targets, (int(layer), f"{linear} adapters")
