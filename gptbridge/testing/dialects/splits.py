"""The kit's splits: every degree that a dialect allows gives the unsplit weights when it is merged."""

from __future__ import annotations

from pathlib import Path

from gptbridge.errors import BadInput
from gptbridge.testing.comparison import require, require_equal_bits
from gptbridge.testing.dialects import sources
from gptbridge.testing.dialects.harness import DialectHarness, read, skip_unless
from gptbridge.testing.dialects.sources import Arrays, Case
from gptbridge.weights.conversion.target import Split
from gptbridge.weights.layouts.rules import Layout

_SIZES = {"vocab_size": 60, "num_layers": 6}
_DEGREES = ((2, 1), (3, 1), (4, 1), (6, 1), (12, 1), (1, 2), (1, 3), (1, 6), (2, 2), (3, 2), (4, 3))
_FEW = ((2, 1), (3, 1), (1, 2), (4, 3))  # of variants that are not the default
_IMPOSSIBLE = (Split(5, 1), Split(1, 4))


class SplitTests(DialectHarness):
    """Tensor ranks, pipeline stages, and both."""

    def _splits(self) -> list[tuple[Layout, Case, Split]]:
        """Return what can be cut; a degree that is refused must be refused by its option's name."""
        found = []
        for number, layout in enumerate(self._dialect().written_layouts):
            case = sources.make(self._model(layout, **_SIZES), zeros=layout.zeros)
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
            case = sources.make(self._model(layout, **_SIZES), zeros=layout.zeros)
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
