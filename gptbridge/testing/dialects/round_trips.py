"""The kit's round trips: what a dialect writes is read again bit for bit, and computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptbridge import reference
from gptbridge.testing import mistakes
from gptbridge.testing.comparison import require, require_close, require_equal_bits
from gptbridge.testing.dialects.harness import DialectHarness, Read, read, skip_unless
from gptbridge.testing.dialects.sources import CASES, Case
from gptbridge.weights.layouts.rules import Layout
from gptbridge_specs import ModelSpec

_TOKENS = np.random.default_rng(3).integers(0, 61, (2, 11), np.int32)
_EXACT = 1e-6


class RoundTripTests(DialectHarness):
    """There and back through files, and what the reference computes from them."""

    @pytest.mark.parametrize("kind", CASES)
    def test_round_trip(self, kind: str, tmp_path: Path) -> None:
        """Every variant gives back each bit of every weight, and so does what is made of it again."""
        found = list(self._cases(kind))
        skip_unless(found, kind)
        for layout, case in found:
            folder, _ = self._write(tmp_path / layout.variant, case, layout)
            for what, place, name in (("read", folder, self.dialect), ("back", self._back(folder), None)):
                self._require_same(f"{self._named(layout)}, {kind}, {what}", read(place, name), case)

    def _require_same(self, what: str, found: Read, case: Case) -> None:
        require_equal_bits(what, found.arrays, case.arrays)
        adapters = {name: found.adapters.get(name) for name in case.adapters}
        absent = [name for name, array in adapters.items() if array is None]
        require(not absent, f"{what}: {absent} are lost")
        require_equal_bits(what, {n: a for n, a in adapters.items() if a is not None}, case.adapters)
        require(found.num_labels == case.num_labels, f"{what}: {found.num_labels} classes")

    @pytest.mark.parametrize("kind", ["tied", "untied"])
    def test_logits_match_the_reference(self, kind: str, tmp_path: Path) -> None:
        """What is read again computes what the original computes: the model's fields come along too."""
        found = list(self._cases(kind))
        skip_unless(found, kind)
        for layout, case in found:
            folder, _ = self._write(tmp_path / layout.variant, case, layout)
            again = read(folder, self.dialect)
            missing = self._dialect().config.missing
            model = case.model.model_copy(update={name: getattr(again.model, name) for name in missing})
            expected = {"logits": reference.logits(model, case.arrays, _TOKENS)}
            actual = {"logits": reference.logits(again.model, again.arrays, _TOKENS)}
            wrong = self._mistakes(layout, model, case)
            require_close(f"{self._named(layout)}, {kind}", actual, expected, wrong, _EXACT)
            self._compare_system(layout, folder, expected, wrong)

    def _compare_system(
        self, layout: Layout, folder: Path, expected: Mapping[str, Any], wrong: Mapping[str, Any]
    ) -> None:
        logits = self.system_logits(folder, _TOKENS)
        if logits is not None:
            what = f"{self._named(layout)}, the system's own"
            require_close(what, {"logits": logits}, expected, wrong, self.tolerance)

    def _mistakes(self, layout: Layout, model: ModelSpec, case: Case) -> dict[str, Any]:
        """Return the logits that each known mistake would lead to, where it makes a difference."""
        table = mistakes.in_weights(model, dict(case.arrays))
        if model.layernorm_epsilon == ModelSpec.model_fields["layernorm_epsilon"].default:
            del table["layernorm_epsilon is ignored"]
        return {
            name: {"logits": reference.logits(bad, weights, _TOKENS)}
            for name, (bad, weights) in table.items()
        }
