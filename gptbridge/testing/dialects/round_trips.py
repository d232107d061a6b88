"""The kit's round trips: what a dialect writes, whole or in ranks, is read again bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptbridge import reference
from gptbridge.errors import BadInput
from gptbridge.testing import mistakes
from gptbridge.testing.comparison import require, require_close, require_equal_bits
from gptbridge.testing.dialects import sources
from gptbridge.testing.dialects.harness import DialectHarness, Read, read, skip_unless
from gptbridge.testing.dialects.sources import CASES, Arrays, Case
from gptbridge.weights.conversion.target import Split
from gptbridge.weights.layouts.rules import Layout
from gptbridge_specs import ModelSpec

_TOKENS = np.random.default_rng(3).integers(0, 61, (2, 11), np.int32)
_EXACT = 1e-6
_CUTTABLE = {"vocab_size": 60, "num_layers": 6}
_DEGREES = ((2, 1), (3, 1), (4, 1), (6, 1), (12, 1), (1, 2), (1, 3), (1, 6), (2, 2), (3, 2), (4, 3))
_FEW = ((2, 1), (3, 1), (1, 2), (4, 3))  # of variants that are not the default
_IMPOSSIBLE = (Split(5, 1), Split(1, 4))


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


class SplitTests(DialectHarness):
    """Tensor ranks, pipeline stages, and both."""

    def _splits(self) -> list[tuple[Layout, Case, Split]]:
        """Return what can be cut; a degree that is refused must be refused by its option's name."""
        found = []
        for number, layout in enumerate(self._dialect().written_layouts):
            case = sources.make(self._model(layout, **_CUTTABLE), zeros=layout.zeros)
            for tensor, pipeline in _DEGREES if number == 0 else _FEW:
                split = Split(tensor, pipeline)
                if layout not in self._layouts(pipeline):
                    continue
                problem = self._problem(layout, case, split)
                if problem is None:
                    found.append((layout, case, split))
                else:
                    named = "-parallel" in f"{problem}"
                    require(named, f"{self._named(layout)} refuses {split} without a word of it: {problem}")
        return found

    def test_splits_merge_to_the_whole(self, tmp_path: Path) -> None:
        """Each split is recognised as what it is, and its parts make the original, bit for bit."""
        splits = self._splits()
        skip_unless(splits, "ranks")
        for layout, case, split in splits:
            what = f"{self._named(layout)} over {split.tensor} x {split.pipeline}"
            place = tmp_path / f"{layout.variant}-{split.tensor}-{split.pipeline}"
            folder, done = self._write(place, case, layout, split)
            require(len(done.files) == split.tensor * split.pipeline, f"{what}: {len(done.files)} files")
            found = read(folder, self.dialect)
            require_equal_bits(what, found.arrays, case.arrays)
            degrees = (split.tensor, split.pipeline)
            require(found.degrees == degrees, f"{what} is read as {found.degrees}")

    def test_exchanged_ranks_are_noticed(self, tmp_path: Path) -> None:
        """The comparison above can fail: ranks in each other's place give other weights, or are refused."""
        splits = [each for each in self._splits() if each[2] in (Split(2, 1), Split(1, 2))]
        skip_unless(splits, "ranks")
        for layout, case, split in splits:
            place = tmp_path / f"{layout.variant}-{split.tensor}-{split.pipeline}"
            folder, done = self._write(place, case, layout, split)
            first, second = (folder / name for name in done.files)
            before = first.read_bytes()
            first.write_bytes(second.read_bytes())
            second.write_bytes(before)
            same = _same(folder, self.dialect, case.arrays)
            # Layers with numbers of their own find their place wherever their file lies.
            numbered = split.pipeline > 1 and not layout.layers_count_from_stage
            require(numbered or not same, f"{self._named(layout)}: exchanged ranks of {split} read the same")

    def test_impossible_splits_are_refused(self) -> None:
        """Degrees that divide neither heads nor layers are refused by name."""
        for layout in self._dialect().written_layouts:
            case = sources.make(self._model(layout, **_CUTTABLE), zeros=layout.zeros)
            for split in _IMPOSSIBLE:
                if layout in self._layouts(split.pipeline):
                    problem = self._problem(layout, case, split)
                    require(problem, f"{self._named(layout)} accepts {split} of {case.model}")


def _same(folder: Path, dialect: str, expected: Arrays) -> bool:
    try:
        found = read(folder, dialect).arrays
    except BadInput:
        return False
    return all(found[name].tobytes() == array.tobytes() for name, array in expected.items())
