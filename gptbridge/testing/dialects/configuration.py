"""The kit's coverage of configurations: every field of a model is written and read, or named as left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptbridge.testing.comparison import require
from gptbridge.testing.dialects import sources
from gptbridge.testing.dialects.harness import DialectHarness, read, skip_unless
from gptbridge.weights.configs.rows import BESIDE
from gptbridge.weights.formats import open_weights
from gptbridge.weights.layouts.rules import Layout
from gptbridge_specs import ModelSpec

# Another value of each field than the kit's models have. Where a system has few, the next one is tried.
_OTHERS: dict[str, tuple[Any, ...]] = {
    "vocab_size": (64,),
    "hidden_size": (48,),
    "num_layers": (3,),
    "num_attention_heads": (4,),
    "ffn_hidden_size": (90, 108, None),
    "max_position_embeddings": (17,),
    "activation": ("gelu_tanh", "gelu_erf", "quick_gelu"),
    "layernorm_epsilon": (2e-4,),
    "hidden_dropout_prob": (0.5,),
    "attention_probs_dropout_prob": (0.0625,),
    "initializer_range": (0.0625,),
    "tie_word_embeddings": (False,),
}
# What the tensors' names and shapes say needs no row; a row that says it too must say the same.
_BY_TENSORS = {
    "vocab_size",
    "hidden_size",
    "num_layers",
    "ffn_hidden_size",
    "max_position_embeddings",
    "tie_word_embeddings",
}


class ConfigurationTests(DialectHarness):
    """The configuration as a table, and in files."""

    def test_every_field_has_one_row(self) -> None:
        """Each field that the tensors do not say has one row, or is in `missing`; each key is one row's."""
        table = self._dialect().config
        require(set(_OTHERS) == set(ModelSpec.model_fields), "the kit does not know every field of ModelSpec")
        rows = [name for row in table.rows for name in row.fields]
        strange = sorted({*rows, *table.missing} - {*ModelSpec.model_fields, *BESIDE})
        require(not strange, f"{self.dialect}: ModelSpec has no {strange}")
        absent = sorted(set(ModelSpec.model_fields) - _BY_TENSORS - {*rows, *table.missing})
        require(not absent, f"{self.dialect}: {absent} have no row, and `missing` does not name them")
        keys = Counter(key for row in table.rows for key in set(row.keys))
        twice = sorted(key for key, count in keys.items() if count > 1)
        require(not twice, f"{self.dialect}: {twice} belong to several rows")

    @pytest.mark.parametrize("name", _OTHERS)
    def test_every_field_is_written_and_read(self, name: str, tmp_path: Path) -> None:
        """A field that changes, changes the files, and is read back; a value without a word is refused."""
        for layout in self._layouts()[:1]:
            before = self._model(layout)
            changed = list(self._changed(layout, name, getattr(before, name)))
            for number, after in enumerate(changed):
                base = self._model(layout, **{name: getattr(before, name)}) if number else before
                self._require_said(layout, name, base, after, tmp_path / f"{number}")

    def _changed(self, layout: Layout, name: str, value: Any) -> Iterator[ModelSpec]:
        """Yield models of another value that the dialect has a word for; refusals must name the field."""
        for other in _OTHERS[name]:
            if other == value:
                continue
            for model in sources.models(**{name: other}):
                case = sources.make(model, _kind(model), layout.zeros)
                problem = self._problem(layout, case)
                if problem is None:
                    yield model
                    break
            else:
                words = (name, str(other), "lm_head.weight" if name == "tie_word_embeddings" else name)
                named = any(word in str(problem) for word in words)
                require(named, f"{self._named(layout)} refuses {name}={other} as: {problem}")

    def _require_said(
        self, layout: Layout, name: str, before: ModelSpec, after: ModelSpec, place: Path
    ) -> None:
        what = f"{self._named(layout)}: {name}={getattr(after, name)}"
        place.mkdir()
        written: list[dict[str, object]] = []
        for model in (before, after):
            case = sources.make(model, _kind(model), layout.zeros)
            folder, done = self._write(place / f"{len(written)}", case, layout)
            written.append(_content(folder, done.files))
        found = getattr(read(folder, self.dialect).model, name)
        if name in self._dialect().config.missing:
            noted = any(f"{name}=" in note for note in done.notes)
            require(noted, f"{what} is in `missing`, and no note says that it is lost")
            require(found == ModelSpec.model_fields[name].default, f"{what} is read as {found}")
            return
        require(written[0] != written[1], f"{what} is written nowhere")
        expected = after.ffn_size if name == "ffn_hidden_size" else getattr(after, name)
        require(found == expected, f"{what} is read as {found}")

    def test_tokens_are_written_and_read(self, tmp_path: Path) -> None:
        """The ids of special tokens come back, or a note says that there is no place for them."""
        layout = self._layouts()[0]
        case = sources.make(self._model(layout), zeros=layout.zeros)
        folder, done = self._write(tmp_path / "tokens", case, layout)
        rows = {name for row in self._dialect().config.rows for name in row.fields}
        kept = {name: token for name, token in case.tokens.items() if name in rows}
        found = read(folder, self.dialect).tokens
        require(found == kept, f"{self.dialect}: tokens {found}, not {kept}")
        lost = sorted(case.tokens.keys() - kept.keys())
        noted = all(any(name in note for note in done.notes) for name in lost)
        require(noted, f"{self.dialect}: {lost} are lost without a note")

    def test_what_adapters_are_scaled_by_is_kept(self, tmp_path: Path) -> None:
        """LoRA's alpha comes back with its factors."""
        found = list(self._cases("adapters"))
        skip_unless(found, "adapters")
        for layout, case in found[:1]:
            folder, _ = self._write(tmp_path / "adapters", case, layout)
            again = read(folder, self.dialect)
            rank = next(iter(again.adapters.values())).shape[0]
            scale = (again.alpha or 0.0) / rank
            require(scale == sources.ALPHA / sources.RANK, f"{self.dialect}: alpha / rank is {scale}")


def _kind(model: ModelSpec) -> str:
    return "tied" if model.tie_word_embeddings else "untied"


def _content(folder: Path, weight_files: tuple[str, ...]) -> dict[str, object]:
    """Return every file's content, of those with weights what stands beside the tensors, and their shapes."""
    content: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name in weight_files:
            with open_weights(path) as weights:
                content[name] = (repr(weights.tree), {x.name: x.shape for x in weights.tensors.values()})
        elif path.is_file():
            content[name] = path.read_bytes()
    return content
