"""Wrappers in names are peeled once, for every dialect, in any order and depth."""

from __future__ import annotations

import pytest

from gptbridge.weights.dialects.registry import known_dialects
from gptbridge.weights.layouts.matching import best_match
from gptbridge.weights.layouts.rules import Layout
from gptbridge.weights.layouts.wrappers import WRAPPERS, leading_wrappers, peeled

# Where a part of a layout's own names is such a wrapper, a sibling of it reads the other forms.
LAYOUTS = [
    layout for dialect in known_dialects().dialects for layout in dialect.layouts if not layout.has_wrappers
]


@pytest.mark.parametrize(
    ("name", "plain", "leading"),
    [
        ("module.h.0.ln_1.weight", "h.0.ln_1.weight", "module"),
        ("_orig_mod.module.h.0.ln_1.weight", "h.0.ln_1.weight", "_orig_mod.module"),
        ("h.0._checkpoint_wrapped_module.ln_1.weight", "h.0.ln_1.weight", ""),
        (
            "_fsdp_wrapped_module.h.0._fsdp_wrapped_module.ln_1._orig_mod.weight",
            "h.0.ln_1.weight",
            "_fsdp_wrapped_module",
        ),
        ("module.module.module.wte.weight", "wte.weight", "module.module.module"),
        ("network.backbone.layernorm.gamma", "backbone.layernorm.gamma", "network"),
        ("model_state_dict.module.wte.weight", "wte.weight", "model_state_dict.module"),
        ("submodule.wte.module_.weight", "submodule.wte.module_.weight", ""),
        ("h.0.module", "h.0.module", ""),
    ],
)
def test_names_are_peeled(name: str, plain: str, leading: str) -> None:
    assert (peeled(name), leading_wrappers(name)) == (plain, leading)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.dialect} {layout.variant}")
def test_every_layout_reads_wrapped_names(layout: Layout, wrapper: str) -> None:
    for rule in layout.rules:
        plain = rule.native.format(layout.first_layer + 3)
        expected = layout.find(plain)
        assert expected is not None
        parts = plain.split(".")
        for place in (0, len(parts) // 2, len(parts) - 1):
            name = ".".join((*parts[:place], wrapper, wrapper, *parts[place:]))
            found = layout.find(name)
            assert found is not None
            assert (found.canonicals, found.name) == (expected.canonicals, name)
        other = layout.find(f"not_a_{wrapper}.{plain}")
        assert other is None or other.canonicals != expected.canonicals


def test_the_variant_says_what_names_are_wrapped_in() -> None:
    (layout,) = (each for each in LAYOUTS if (each.dialect, each.variant) == ("torch", "GPT2Model"))
    names = [rule.native.format(0) for rule in layout.rules if "lm_head" not in rule.native]
    for before, variant in (("", "GPT2Model"), ("module.", "GPT2Model in module")):
        assert best_match([layout], [[before + name for name in names]]).variant == variant


def test_one_weight_under_two_names_is_left_over() -> None:
    (layout,) = (each for each in LAYOUTS if (each.dialect, each.variant) == ("torch", "GPT2Model"))
    match = best_match([layout], [["wte.weight", "module.wte.weight"]])
    assert match.unknown == ("module.wte.weight",)
