"""The kit's coverage of layouts: each weight has one place, each place one weight, in every variant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gptbridge.testing.comparison import require
from gptbridge.testing.dialects.harness import DialectHarness
from gptbridge.weights.architecture import BLOCK, LORA_A, LORA_B, LORA_TARGETS, TOP, weight_axes
from gptbridge.weights.layouts.axes import CUT
from gptbridge.weights.layouts.rules import Layout
from gptbridge.weights.layouts.wrappers import peeled

_NEEDED = (*TOP, *(f"h.{{}}.{name}" for name in BLOCK))
_HEADS = ("lm_head.weight", "score.weight")
_ADAPTERS = tuple(
    f"h.{{}}.{target}{factor}" for target in LORA_TARGETS.values() for factor in (LORA_A, LORA_B)
)
_LAYERS = 12  # numbers of one and two digits


class LayoutTests(DialectHarness):
    """The tables of names and axes, those that are only read too."""

    def _tables(self) -> Iterator[tuple[str, Layout]]:
        for layout in self._dialect().layouts:
            yield self._named(layout), layout

    def test_every_weight_has_one_place(self) -> None:
        """Every weight of the architecture is in exactly one rule, or left out as zeros; heads may lack."""
        for name, layout in self._tables():
            held = Counter(canonical for rule in layout.rules for canonical in rule.canonical)
            held.update(layout.zeros)
            strange = sorted(held.keys() - {*_NEEDED, *_HEADS, *_ADAPTERS})
            require(not strange, f"{name}: the architecture has no {strange}")
            twice = [canonical for canonical, count in held.items() if count > 1]
            require(not twice, f"{name}: {twice} have several places")
            absent = [canonical for canonical in _NEEDED if canonical not in held]
            require(not absent, f"{name}: {absent} have no place")
            half = [x for x in _ADAPTERS if x in held and _partner(x) not in held]
            require(not half, f"{name}: {half} lack the other factor")

    def test_every_place_has_one_weight(self) -> None:
        """No two rules have one name; a name leads to its weights and these to the name, layer by layer."""
        for name, layout in self._tables():
            natives = Counter(rule.native for rule in layout.rules)
            twice = [native for native, count in natives.items() if count > 1]
            require(not twice, f"{name}: {twice} stand for several weights")
            loose = [
                rule.native for rule in layout.rules if _layered(rule.canonical[0]) != _layered(rule.native)
            ]
            loose = [] if layout.first_layer else loose  # what follows the layers is numbered there
            require(not loose, f"{name}: {loose} say their layer, or say none, where the weight does not")
            canonicals = [
                canonical.format(layer)
                for rule in layout.rules
                for canonical in rule.canonical
                for layer in (range(_LAYERS) if _layered(canonical) else (0,))
            ]
            places = list(layout.natives(canonicals, _LAYERS))
            for place in places:
                found = layout.find(place.name)
                right = found is not None and found.canonicals == place.canonicals
                right = right or bool(layout.first_layer)  # a number stands for a layer or for what follows
                require(right, f"{name}: {place.name} is read as {found and found.canonicals}")
                require(not layout.is_dropped(place.name) or found, f"{name}: {place.name} is left out")
            plain = [place.name if layout.has_wrappers else peeled(place.name) for place in places]
            require(len(set(plain)) == len(plain), f"{name}: two weights in one place")

    def test_axes_are_those_of_the_weights(self) -> None:
        """A place holds the letters of its weights, each once, and is cut where they are."""
        for name, layout in self._tables():
            for rule in layout.rules:
                require(
                    len(rule.canonical) == len(rule.axes.parts),
                    f"{name}: {rule.native} has {len(rule.axes.parts)} parts for {rule.canonical}",
                )
                for canonical, part in zip(rule.canonical, rule.axes.parts, strict=True):
                    own = weight_axes(canonical.format(0))
                    require(
                        sorted(part.letters) == sorted(own.letters),
                        f"{name}: {rule.native} is `{part}`, {canonical} is `{own}`",
                    )
                cuts = {part.cut for part in rule.axes.parts}
                require(len(cuts) == 1, f"{name}: the parts of {rule.native} are cut along {cuts}")
            require(set(layout.cut) <= set(CUT), f"{name}: cut={layout.cut!r}, allowed: letters of {CUT!r}")


def _partner(name: str) -> str:
    return name.replace(LORA_A, LORA_B) if LORA_A in name else name.replace(LORA_B, LORA_A)


def _layered(name: str) -> bool:
    return "{}" in name
