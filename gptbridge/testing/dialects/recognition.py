"""The kit's recognition: what a dialect writes is taken for its own, and nothing in it is passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptbridge.errors import BadInput, UsageError
from gptbridge.testing.comparison import require
from gptbridge.testing.dialects import sources
from gptbridge.testing.dialects.harness import DialectHarness, read
from gptbridge.weights.conversion.convert import Conversion, convert_checkpoint
from gptbridge.weights.dialects.dialect import Dialect
from gptbridge.weights.dialects.registry import known_dialects
from gptbridge.weights.formats import TREE_WRITERS, WRITERS, Entry, TensorInfo, TensorRef, open_weights
from gptbridge.weights.layouts.matching import best_match

_WORDS: dict[str, tuple[str, ...]] = {
    "untied": ("lm_head.weight", "tie_word_embeddings"),
    "classifier": ("score.weight",),
    "adapters": ("LoRA",),
}
_REFUSED = (BadInput, UsageError)


class RecognitionTests(DialectHarness):
    """Recognised without being named; refused by name where something has no place."""

    def test_it_is_recognised(self, tmp_path: Path) -> None:
        """A checkpoint is found to be this dialect's and variant's, or a dialect's of the same names."""
        dialect = self._dialect()
        for layout, case in self._cases("tied"):
            folder, done = self._write(tmp_path / layout.variant, case, layout)
            try:
                found = read(folder)
            except _REFUSED as error:
                raise AssertionError(f"{self._named(layout)} is not recognised: {error}") from error
            what = (found.dialect, found.variant)
            known = found.dialect in dialect.same_names or what == (self.dialect, layout.variant)
            require(known, f"{self._named(layout)} is recognised as {what[0]} ({what[1]})")
            with open_weights(folder / done.files[0]) as weights:
                others = [each.name for each in known_dialects().dialects if _is_of(each, weights)]
            strange = sorted(set(others) - {self.dialect, *dialect.same_names})
            require(not strange, f"{self._named(layout)} has the tensors of {strange} too: see `same_names`")

    @pytest.mark.parametrize("kind", _WORDS)
    def test_what_has_no_place_is_refused(self, kind: str, tmp_path: Path) -> None:
        """A head or adapters without a place are refused by name, and nothing is written."""
        for layout in self._layouts():
            case = sources.make(self._model(layout), kind, layout.zeros)
            if kind == "adapters":
                lost = not self._has_adapters(layout)
            else:
                lost = self._problem(layout, case) is not None
            if not lost:
                continue
            folder = tmp_path / layout.variant
            try:
                self._write(folder, case, layout)
            except UsageError as refusal:
                named = any(word in str(refusal) for word in _WORDS[kind])
                require(named, f"{self._named(layout)} refuses {kind} as: {refusal}")
                require(not folder.exists(), f"{self._named(layout)} leaves files of what it refuses")
            else:
                raise AssertionError(f"{self._named(layout)} loses {kind}")

    def test_a_weight_that_is_not_zero_is_not_left_out(self, tmp_path: Path) -> None:
        """A variant that leaves weights out refuses those that are not zeros."""
        for layout in self._layouts():
            if layout.zeros:
                case = sources.make(self._model(layout))
                with pytest.raises(UsageError, match="is not zero"):
                    self._write(tmp_path / layout.variant, case, layout)

    def test_missing_and_unknown_tensors_are_refused(self, tmp_path: Path) -> None:
        """A file without one of its weights, or with a tensor of a strange name beside it, is refused."""
        layout = self._layouts()[0]
        case = sources.make(self._model(layout), zeros=layout.zeros)
        folder, done = self._write(tmp_path / "whole", case, layout)
        with open_weights(folder / done.files[0]) as weights:
            names = [name for name in weights.tensors if layout.find(name)]
        last = next(name for name in reversed(names) if ".lm_head" not in f".{name}")
        strange = f"{last.rpartition('.')[0]}.strange"

        for new, words in ((None, "missing"), (strange, strange)):
            folder, done = self._write(tmp_path / words, case, layout)
            _rewrite(folder / done.files[0], last, new)
            with pytest.raises(_REFUSED) as refusal:
                read(folder, self.dialect)
            require(words in str(refusal.value), f"{self._named(layout)} without {last}: {refusal.value}")

    def test_an_unknown_variant_is_refused(self, tmp_path: Path) -> None:
        """A variant that there is not is refused with those that there are."""
        layout = self._layouts()[0]
        case = sources.make(self._model(layout), zeros=layout.zeros)
        source = sources.write(case, tmp_path / "source")
        conversion = Conversion(source, tmp_path / "out", self.dialect, variant="no such variant")
        with pytest.raises(UsageError, match=layout.variant):
            convert_checkpoint(conversion)


def _is_of(dialect: Dialect, weights: Any) -> bool:
    try:
        layouts = dialect.layouts_for(weights)
    except BadInput:
        return False
    return bool(layouts) and best_match(layouts, [tuple(weights.tensors)]).whole


def _rewrite(path: Path, name: str, new: str | None) -> None:
    """Take the tensor `name` out of a file, or put one called `new` beside it."""
    with open_weights(path) as weights:
        arrays = {each: (np.array(weights.read(each)), info) for each, info in weights.tensors.items()}
        tree, kind = weights.tree, weights.format
    if new is None:
        del arrays[name]
    else:
        arrays[new] = (np.ones(3, np.float32), TensorInfo(new, "float32", (3,)))
    entries: list[Entry] = [(info, lambda array=array: [array]) for array, info in arrays.values()]  # type: ignore[misc]
    if kind in TREE_WRITERS:
        TREE_WRITERS[kind](path, entries, _rewritten(tree, name, new))
    else:
        WRITERS[kind](path, entries)


def _rewritten(tree: Any, name: str, new: str | None) -> Any:
    """Return a file's tree without the tensor `name`, or with `new` beside it."""
    if not isinstance(tree, dict):
        return tree
    kept = type(tree)()
    for key, child in tree.items():
        if child != TensorRef(name):
            kept[key] = _rewritten(child, name, new)
        elif new is not None:
            kept[key] = child
            kept[str(key).removesuffix(name.rpartition(".")[2]) + new.rpartition(".")[2]] = TensorRef(new)
    return kept
