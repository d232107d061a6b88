"""A dialect's layout as data: one two-way rule for each kind of canonical weight."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from gptbridge.weights.layouts.axes import CUT, Axes, axes

# The canonical layout (Hugging Face GPT-2's), by name without `h.N.`.
CANONICAL_AXES: dict[str, str] = {
    "wte.weight": "v i",
    "wpe.weight": "t i",
    "ln_1.weight": "i",
    "ln_1.bias": "i",
    "attn.c_attn.weight": "i (p n d)",
    "attn.c_attn.bias": "(p n d)",
    "attn.c_proj.weight": "(n d) o",
    "attn.c_proj.bias": "o",
    "ln_2.weight": "i",
    "ln_2.bias": "i",
    "mlp.c_fc.weight": "i f",
    "mlp.c_fc.bias": "f",
    "mlp.c_proj.weight": "f o",
    "mlp.c_proj.bias": "o",
    "ln_f.weight": "i",
    "ln_f.bias": "i",
    "lm_head.weight": "v i",
    "score.weight": "c i",
    # LoRA of q, k and v: W + scaling * (A^T B^T), for each of the three that has one.
    "attn.c_attn.lora_a": "p r i",
    "attn.c_attn.lora_b": "p (n d) r",
}
LORA_A, LORA_B = LORA = ("attn.c_attn.lora_a", "attn.c_attn.lora_b")
OPTIONAL = ("lm_head.weight", "score.weight", *LORA)  # absent from most checkpoints
_LAYER = re.compile(r"^h\.(\d+)\.")
_NUMBER = re.compile(r"(?<![^.])(?:0|[1-9][0-9]{0,3})(?![^.])")  # the first part of a name that is a number


def canonical_axes(name: str) -> Axes:
    """Return the axes of a canonical weight, such as `h.3.attn.c_attn.weight`."""
    return axes(CANONICAL_AXES[_LAYER.sub("", name)])


@dataclass(frozen=True, slots=True)
class Rule:
    """Where a dialect keeps one kind of canonical weight.

    With three native names, q, k and v are stored apart and `axes` describes each of them.
    """

    canonical: str  # "h.{}.attn.c_attn.weight"; {} stands for the layer number
    native: tuple[str, ...]
    axes: Axes


@dataclass(frozen=True, slots=True)
class NativeTensor:
    """One tensor of a dialect and what it holds of which canonical weight."""

    name: str
    canonical: str
    axes: Axes
    part: int | None  # 0, 1, 2 for q, k, v stored apart; None for the whole weight

    @property
    def box_axes(self) -> Axes:
        """The axes with `p` in front for q, k or v stored apart, as a box of the whole weight needs."""
        return self.axes if self.part is None else Axes(("p", *self.axes.groups))


@dataclass(frozen=True)
class Layout:
    """The layout of one dialect, or of one of its variants."""

    dialect: str
    variant: str
    rules: tuple[Rule, ...]
    dropped: tuple[str, ...] = ()  # regular expressions of native names that are no weights
    layers_count_from_stage: bool = False  # each pipeline stage numbers its layers from 0
    # (canonical, native) of what the last pipeline stage holds once more: the head's embedding
    repeated_in_last_stage: tuple[tuple[str, str], ...] = ()
    first_layer: int = 0  # the number of the first layer; what follows the layers has the next one
    cut: str = CUT  # the letters that tensor parallelism cuts when this layout is written
    staged: bool | None = None  # written for several pipeline stages alone, for one alone, or for both
    activations: tuple[str, ...] = ()  # those that its software computes, if its configuration has no word
    plain_name: Callable[[str], str] = (
        str  # from a name within a wrapper, or a virtual stage, to that without
    )

    @cached_property
    def _natives(self) -> dict[str, tuple[Rule, int | None]]:
        """The rule and part of each native name, {} standing for its layer number."""
        return {
            native: (rule, part if len(rule.native) > 1 else None)
            for rule in self.rules
            for part, native in enumerate(rule.native)
        }

    @cached_property
    def _dropped(self) -> list[re.Pattern[str]]:
        return [re.compile(pattern) for pattern in self.dropped]

    def find(self, name: str) -> NativeTensor | None:
        """Return what the tensor `name` holds, or None for a name that the layout does not know."""
        template, number = _template(self.plain_name(name))
        layer = 0 if number is None else number - self.first_layer
        if template not in self._natives or layer < 0:
            return None
        rule, part = self._natives[template]
        return NativeTensor(name, rule.canonical.format(layer), rule.axes, part)

    def is_dropped(self, name: str) -> bool:
        """Tell whether `name` is a buffer or other tensor that is left out on purpose."""
        plain = self.plain_name(name)
        return any(pattern.fullmatch(plain) for pattern in self._dropped)

    def natives(self, canonical_names: Iterable[str], num_layers: int) -> Iterator[NativeTensor]:
        """Yield the tensors to write for the given canonical weights, in their order."""
        by_canonical = {rule.canonical: rule for rule in self.rules}
        for name in canonical_names:
            layer = _LAYER.match(name)
            number = self.first_layer + (int(layer.group(1)) if layer else num_layers)
            rule = by_canonical[_LAYER.sub("h.{}.", name)]
            apart = len(rule.native) > 1
            for part, native in enumerate(rule.native):
                yield NativeTensor(native.format(number), name, rule.axes, part if apart else None)


@lru_cache(1 << 16)  # a file's names are tried with every layout
def _template(name: str) -> tuple[str, int | None]:
    """Return `name` with {} for the first part that is a number, and that number."""
    number = _NUMBER.search(name)
    if number is None:
        return name, None
    return f"{name[: number.start()]}{{}}{name[number.end() :]}", int(number.group())


def wrapped(layout: Layout, wrapper: str) -> Layout:
    """Return the layout of a checkpoint all of whose names begin with `wrapper`, such as `module`."""
    name = f"{layout.variant} in {wrapper}"
    return replace(layout, variant=name, plain_name=lambda name: name.removeprefix(f"{wrapper}."))


Table = Mapping[str, tuple[str | tuple[str, ...], str]]


def rules(*, top: Table, block: Table, blocks: str) -> tuple[Rule, ...]:
    """Build rules from `canonical name: (native name or names, axes)`.

    `block` holds the weights of one layer, without `h.N.`; `blocks` is the native prefix of a
    layer, such as `transformer.h.{}.`.
    """
    outer = [(name, native, order, "") for name, (native, order) in top.items()]
    inner = [("h.{}." + name, native, order, blocks) for name, (native, order) in block.items()]
    return tuple(
        Rule(
            name,
            tuple(prefix + part for part in ((native,) if isinstance(native, str) else native)),
            axes(order),
        )
        for name, native, order, prefix in (*outer, *inner)
    )
