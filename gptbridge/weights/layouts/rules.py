"""A dialect's layout as data: one two-way rule for each kind of tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from gptbridge.weights.architecture import BLOCK, layer_of, weight_axes
from gptbridge.weights.layouts.axes import CUT
from gptbridge.weights.layouts.stored import StoredAxes, stored_axes
from gptbridge.weights.layouts.wrappers import is_wrapped, peeled

# What a head has of q, k and v: m key/value heads, with g query heads each.
HEADS = {"q": "m g d", "k": "m d", "v": "m d"}
# How the three lie in one tensor: one after the other, or all of a group of heads together.
CONCATENATED = "(q:m g d | k:m d | v:m d)"
BY_HEAD = "(m (q:g d | k:d | v:d))"
QKV_WEIGHT = tuple(f"attn.{part}.weight" for part in HEADS)
QKV_BIAS = tuple(f"attn.{part}.bias" for part in HEADS)
_JOINED = {"attn.qkv.weight": QKV_WEIGHT, "attn.qkv.bias": QKV_BIAS}
_LAYER = re.compile(r"^h\.(\d+)\.")
_NUMBER = re.compile(r"(?<![^.])(?:0|[1-9][0-9]{0,3})(?![^.])")  # the first part of a name that is a number


@dataclass(frozen=True, slots=True)
class Rule:
    """Where a dialect keeps one kind of weight, or several that it joins in one tensor.

    `canonical` names the parts of `axes`, in their order.
    """

    canonical: tuple[str, ...]  # "h.{}.attn.q.weight", ...; {} stands for the layer number
    native: str
    axes: StoredAxes


@dataclass(frozen=True, slots=True)
class NativeTensor:
    """One tensor of a dialect, and the canonical weights that it holds, in the order of its parts."""

    name: str
    canonicals: tuple[str, ...]
    axes: StoredAxes


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
    # canonical names, {} standing for the layer, of weights that it leaves out because they are zeros
    zeros: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()  # those that its software computes, if its configuration has no word
    plain_name: Callable[[str], str] = str  # from a name in a virtual stage to that without

    @cached_property
    def _natives(self) -> dict[str, Rule]:
        """The rule of each native name, {} standing for its layer number."""
        return {rule.native: rule for rule in self.rules}

    @cached_property
    def _rules(self) -> dict[str, tuple[Rule, bool]]:
        """The rule of each canonical name, and whether the rule begins with it."""
        return {name: (rule, not part) for rule in self.rules for part, name in enumerate(rule.canonical)}

    @cached_property
    def has_wrappers(self) -> bool:
        """Its own names have parts that are wrappers elsewhere: then names are taken as they are."""
        return any(is_wrapped(rule.native) for rule in self.rules)

    @cached_property
    def _dropped(self) -> re.Pattern[str]:
        return re.compile("|".join(f"(?:{pattern})" for pattern in self.dropped) or "(?!)")

    def find(self, name: str) -> NativeTensor | None:
        """Return what the tensor `name` holds, or None for a name that the layout does not know."""
        _, template, number = _understood(name, self.plain_name, self.has_wrappers)
        layer = 0 if number is None else number - self.first_layer
        if template not in self._natives or layer < 0:
            return None
        rule = self._natives[template]
        return NativeTensor(name, tuple(part.format(layer) for part in rule.canonical), rule.axes)

    def is_dropped(self, name: str) -> bool:
        """Tell whether `name` is a buffer or other tensor that is left out on purpose."""
        plain, _, _ = _understood(name, self.plain_name, self.has_wrappers)
        return self._dropped.fullmatch(plain) is not None

    def leaves_out(self, name: str) -> bool:
        """Tell whether the canonical weight `name` is one of `zeros`."""
        return _LAYER.sub("h.{}.", name) in self.zeros

    def natives(self, canonical_names: Iterable[str], num_layers: int) -> Iterator[NativeTensor]:
        """Yield the tensors that hold the given canonical weights, in the order of their first ones."""
        for name in canonical_names:
            if self.leaves_out(name):
                continue
            rule, begins = self._rules[_LAYER.sub("h.{}.", name)]
            if begins:
                layer = layer_of(name)
                number = self.first_layer + (num_layers if layer is None else layer)
                canonicals = tuple(part.format(layer) for part in rule.canonical)
                yield NativeTensor(rule.native.format(number), canonicals, rule.axes)


@lru_cache(1 << 16)  # a file's names are tried with every layout
def _understood(
    name: str, plain_name: Callable[[str], str], has_wrappers: bool
) -> tuple[str, str, int | None]:
    """Return the plain name, the same with {} for the first part that is a number, and that number."""
    plain = plain_name(name if has_wrappers else peeled(name))
    number = _NUMBER.search(plain)
    if number is None:
        return plain, plain, None
    return plain, f"{plain[: number.start()]}{{}}{plain[number.end() :]}", int(number.group())


Table = Mapping[str | tuple[str, ...], tuple[str, str]]


def rows(names: Mapping[str, str], *, qkv: str = CONCATENATED, out_in: bool = False) -> Table:
    """Build rows of `rules` from `canonical name: native name`, with the axes of the architecture.

    `*` in both stands for `weight` and `bias`. `attn.qkv` is q, k and v in one tensor, joined as `qkv` says.
    With `out_in` the linear weights of a layer are (out, in).
    """
    table: dict[str | tuple[str, ...], tuple[str, str]] = {}
    for name, native in names.items():
        for kind in ("weight", "bias") if "*" in name else ("",):
            canonical = name.replace("*", kind)
            joined = _JOINED.get(canonical)
            first = joined[0] if joined else canonical
            order = weight_axes(first).words
            if joined:
                order[-1] = qkv
            if out_in and first in BLOCK:
                order.reverse()
            table[joined or canonical] = (native.replace("*", kind), " ".join(order))
    return table


def rules(*, top: Table, block: Table, blocks: str) -> tuple[Rule, ...]:
    """Build rules from `canonical name, or those that one tensor joins: (native name, axes)`.

    `block` holds the weights of one layer, without `h.N.`; `blocks` is the native prefix of a
    layer, such as `transformer.h.{}.`.
    """
    return tuple(
        Rule(
            tuple(canonical + name for name in ((names,) if isinstance(names, str) else names)),
            native + stored,
            stored_axes(order),
        )
        for table, canonical, native in ((top, "", ""), (block, "h.{}.", blocks))
        for names, (stored, order) in table.items()
    )
