"""Which layout a file's tensor names follow, what is missing or left over, and the sizes they imply."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from gptbridge.errors import BadInput, printable
from gptbridge.weights.architecture import BLOCK, TOP, layer_of, shifted
from gptbridge.weights.layouts.rules import Layout, NativeTensor
from gptbridge.weights.layouts.stored import StoredAxes
from gptbridge.weights.layouts.wrappers import leading_wrappers

RANKS_HINT = "If this is one of several ranks, give the folder of them all"

Stages = Sequence[Collection[str]]  # the tensor names of each pipeline stage


@dataclass(frozen=True)
class Match:
    """A checkpoint's tensors, understood."""

    layout: Layout
    natives: Mapping[tuple[int, str], NativeTensor]  # by stage and the name in its file
    missing: tuple[str, ...]  # tensors that are not there
    strange: Sequence[str]  # names that the layout does not know
    doubled: Sequence[str]  # names of what the same stage has under another
    num_layers: int

    @cached_property
    def dropped(self) -> tuple[str, ...]:
        """The names of what is no weight."""
        return tuple(dict.fromkeys(filter(self.layout.is_dropped, self.strange)))

    @cached_property
    def unknown(self) -> tuple[str, ...]:
        """The names of what is left over."""
        dropped = set(self.dropped)
        return (*(name for name in self.strange if name not in dropped), *self.doubled)

    @property
    def variant(self) -> str:
        """The layout's variant, and what its names are wrapped in."""
        first = next((name for _, name in self.natives), "")
        wrapper = "" if self.layout.has_wrappers else leading_wrappers(first)
        return f"{self.layout.variant} in {wrapper}" if wrapper else self.layout.variant

    @property
    def whole(self) -> bool:
        """Every tensor is understood, and none is missing."""
        return bool(self.natives) and not self.missing and not self.unknown


@dataclass(slots=True)
class _Read:
    """What a layout makes of all names: what it knows, and how many layers that is over all stages."""

    natives: dict[tuple[int, str], NativeTensor] = field(default_factory=dict)
    num_layers: int = 0
    strange: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)


def _read(layout: Layout, stages: Stages) -> _Read:
    read = _Read()
    held: dict[tuple[str, ...], int] = {}  # the stage of each tensor, by the weights in it
    for stage, names in enumerate(stages):
        first = read.num_layers if layout.layers_count_from_stage else 0
        seen: set[tuple[str, ...]] = set()
        for name in names:
            native = layout.find(name)
            if native is None:
                read.strange.append(name)
                continue
            layer = layer_of(native.canonicals[0])
            if layer is not None:
                if first:
                    native = replace(native, canonicals=tuple(shifted(n, first) for n in native.canonicals))
                read.num_layers = max(read.num_layers, layer + first + 1)
            if held.setdefault(native.canonicals, stage) != stage:
                continue  # later stages may repeat the embedding
            if native.canonicals in seen:
                read.doubled.append(name)
                continue
            seen.add(native.canonicals)
            read.natives[stage, name] = native
    return read


def _match(layout: Layout, read: _Read, stages: Stages) -> Match:
    count = read.num_layers
    names = sum(len(stage) for stage in stages)
    held = {native.canonicals for native in read.natives.values()}
    expected = [*TOP, *(f"h.{n}.{name}" for n in range(min(count, names + 1)) for name in BLOCK)]
    # Where each stage numbers its layers from 0, a file's name would tell of another layer.
    by_stage = layout.layers_count_from_stage and len(stages) > 1
    missing = [
        native.canonicals[0] if by_stage else native.name
        for native in layout.natives(expected, count)
        if native.canonicals not in held
    ]
    return Match(layout, read.natives, tuple(missing), read.strange, read.doubled, count)


def best_match(layouts: Sequence[Layout], stages: Stages) -> Match:
    """Return the match of the layout that understands the most tensors, whole or not."""
    reads = [(layout, _read(layout, stages)) for layout in layouts]
    most = max(len(read.natives) for _, read in reads)
    best = (_match(layout, read, stages) for layout, read in reads if len(read.natives) == most)
    return min(best, key=lambda match: len(match.missing))


def require_whole(match: Match, where: object) -> Match:
    """Return `match` if every tensor is understood and none is missing; BadInput names the first."""
    if not match.natives:
        first = next(iter((*match.unknown, *match.dropped)), None)
        held = f": it holds {printable(first, 80)}" if first else ""
        raise BadInput(f"no tensor has a name that a known GPT layout uses{held}", where=where)
    for kind, names in (("is missing", match.missing), ("is left over", match.unknown)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise BadInput(
                f"{printable(names[0])}{more} {kind} for {match.layout.dialect} ({match.variant})",
                where=where,
                hint=RANKS_HINT if names is match.missing else None,
            )
    return match


def solve_sizes(
    tensors: Sequence[tuple[str, StoredAxes, tuple[int, ...]]], known: Mapping[str, int], where: object
) -> dict[str, int]:
    """Return the size of every letter that the shapes of (name, axes, shape) settle.

    `known` holds letters that are given, such as the number of heads. BadInput names two tensors
    that disagree, or a tensor whose shape cannot be.
    """
    sizes = dict(known)
    source = dict.fromkeys(known, "the configuration")
    for name, layout, shape in tensors:
        if len(shape) != layout.num_dims:
            raise BadInput(
                f"{printable(name)} has shape {shape}, not {layout.num_dims} dimensions", where=where
            )
        for letter, length in zip(layout.alone, shape, strict=True):
            if length < 1:
                raise BadInput(f"{printable(name)} has shape {shape}", where=where)
            if letter is None:
                continue
            if sizes.setdefault(letter, length) != length:
                raise BadInput(
                    f"{printable(name)} has shape {shape}, "
                    f"but {source[letter]} says {sizes[letter]}, not {length}",
                    where=where,
                )
            source.setdefault(letter, printable(name))
    return sizes
