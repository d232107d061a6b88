"""Which layout a file's tensor names follow, what is missing or left over, and the sizes they imply."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gptbridge.errors import BadInput, printable
from gptbridge.weights.layouts.axes import Axes
from gptbridge.weights.layouts.rules import CANONICAL_AXES, OPTIONAL, Layout, NativeTensor

_LAYER = re.compile(r"h\.(\d+)\.(.+)")
_BLOCK = tuple(n for n in CANONICAL_AXES if n.startswith(("ln_1", "ln_2", "attn", "mlp")))
_TOP = tuple(n for n in CANONICAL_AXES if n not in _BLOCK and n not in OPTIONAL)


@dataclass(frozen=True, slots=True)
class Match:
    """A file's tensors, understood."""

    layout: Layout
    natives: Mapping[str, NativeTensor]  # by the name in the file
    dropped: tuple[str, ...]
    unknown: tuple[str, ...]
    missing: tuple[str, ...]  # canonical weights without a tensor, q, k and v told apart
    num_layers: int

    @property
    def canonical_names(self) -> frozenset[str]:
        """The canonical weights that the file holds."""
        return frozenset(native.canonical for native in self.natives.values())


def _match_one(layout: Layout, names: Collection[str]) -> Match:
    natives = {name: native for name in names if (native := layout.find(name))}
    rest = [name for name in names if name not in natives]
    held = {(native.canonical, native.part) for native in natives.values()}
    layers = {int(found.group(1)) for name, _ in held if (found := _LAYER.fullmatch(name))}
    count = max(layers) + 1 if layers else 0
    expected = [*_TOP, *(f"h.{n}.{name}" for n in range(min(count, len(names) + 1)) for name in _BLOCK)]
    missing = [
        native.canonical if native.part is None else f"{'qkv'[native.part]} of {native.canonical}"
        for native in layout.natives(expected)
        if (native.canonical, native.part) not in held
    ]
    dropped = tuple(name for name in rest if layout.is_dropped(name))
    unknown = tuple(name for name in rest if name not in set(dropped))
    return Match(layout, natives, dropped, unknown, tuple(missing), count)


def best_match(layouts: Sequence[Layout], names: Collection[str]) -> Match:
    """Return the match of the layout that understands the most tensors, whole or not."""
    return max(
        (_match_one(layout, names) for layout in layouts),
        key=lambda match: (len(match.natives), -len(match.missing)),
    )


def require_whole(match: Match, where: object) -> Match:
    """Return `match` if every tensor is understood and none is missing; BadInput names the first."""
    if not match.natives:
        raise BadInput("no tensor has a name that a known GPT layout uses", where=where)
    for kind, names in (("is missing", match.missing), ("is left over", match.unknown)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise BadInput(
                f"{printable(names[0])}{more} {kind} for {match.layout.dialect} ({match.layout.variant})",
                where=where,
            )
    return match


def solve_sizes(
    tensors: Sequence[tuple[str, Axes, tuple[int, ...]]], known: Mapping[str, int], where: object
) -> dict[str, int]:
    """Return the size of every letter that the shapes of (name, axes, shape) settle.

    `known` holds letters that are given, such as the number of heads. BadInput names two tensors
    that disagree, or a tensor whose shape cannot be.
    """
    sizes = dict(known)
    source = dict.fromkeys(known, "the configuration")
    for name, layout, shape in tensors:
        if len(shape) != len(layout.groups):
            raise BadInput(
                f"{printable(name)} has shape {shape}, not {len(layout.groups)} dimensions", where=where
            )
        for group, length in zip(layout.groups, shape, strict=True):
            if len(group) > 1:
                continue
            if sizes.setdefault(group, length) != length:
                raise BadInput(
                    f"{printable(name)} has shape {shape}, "
                    f"but {source[group]} says {sizes[group]}, not {length}",
                    where=where,
                )
            source.setdefault(group, printable(name))
    return sizes
