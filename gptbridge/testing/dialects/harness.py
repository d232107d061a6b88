"""How the kit's tests reach a dialect: through the real conversion, with files on the disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from gptbridge.errors import UsageError
from gptbridge.testing.comparison import require
from gptbridge.testing.dialects import sources
from gptbridge.testing.dialects.sources import Arrays, Case
from gptbridge.weights.architecture import weight_axes
from gptbridge.weights.conversion.convert import Conversion, Converted, convert_checkpoint
from gptbridge.weights.conversion.target import Split, Target, plan_files
from gptbridge.weights.dialects.dialect import Dialect
from gptbridge.weights.dialects.registry import find_dialect
from gptbridge.weights.layouts.rules import Layout
from gptbridge.weights.opening import Hints, open_checkpoint
from gptbridge_specs import ModelSpec

_DTYPE = "float32"


@dataclass(frozen=True)
class Read:
    """What a folder holds, by canonical names."""

    dialect: str
    variant: str
    model: ModelSpec
    arrays: Arrays
    num_labels: int | None
    adapters: Arrays
    alpha: float | None
    tokens: Mapping[str, int]
    degrees: tuple[int, int]  # tensor, pipeline


class DialectHarness:
    """A dialect under test."""

    dialect: ClassVar[str] = ""
    tolerance: ClassVar[float] = 2e-5  # of logits, relative to the largest

    def system_logits(self, folder: Path, tokens: NDArray[np.int32]) -> NDArray[Any] | None:
        """Return the (B, T, V) logits that the system's own software computes from the files in `folder`.

        Override it where that software is at hand, or something that reads its files independently: what
        a table says wrongly in both directions shows in no other way. None: it is not.
        """
        return None

    @classmethod
    def _dialect(cls) -> Dialect:
        require(cls.dialect, f'{cls.__name__} needs a class attribute: dialect = "NAME"')
        return find_dialect(cls.dialect)

    def _layouts(self, pipeline: int = 1) -> list[Layout]:
        """Return the variants that are written for one pipeline stage, or for several."""
        layouts = [x for x in self._dialect().written_layouts if x.staged in (None, pipeline > 1)]
        require(layouts or pipeline > 1, f"{self.dialect} writes no checkpoint of one stage")
        return layouts

    def _model(self, layout: Layout, **fields: Any) -> ModelSpec:
        """Return the most telling of the kit's models with `fields` that the dialect does not refuse."""
        models = sources.models(**fields)
        problems = [self._problem(layout, sources.make(model, zeros=layout.zeros)) for model in models]
        for model, problem in zip(models, problems, strict=True):
            if problem is None:
                return model
        raise AssertionError(f"{self._named(layout)} refuses every model of {fields}: {problems[-1]}")

    def _problem(self, layout: Layout, case: Case, split: Split | None = None) -> UsageError | None:
        """Return why the dialect refuses to write a case, None if it does not."""
        dtypes = dict.fromkeys(case.arrays, _DTYPE)
        split = split or Split()
        try:
            plan_files(Target(self._dialect(), layout, case.model, dtypes, split, case.num_labels))
        except UsageError as problem:
            return problem
        return None

    def _cases(self, kind: str, **fields: Any) -> Iterator[tuple[Layout, Case]]:
        """Yield the variants that have a place for a case of that kind, with the case."""
        for layout in self._layouts():
            case = sources.make(self._model(layout, **fields), kind, layout.zeros)
            if self._problem(layout, case) is None and (kind != "adapters" or self._has_adapters(layout)):
                yield layout, case

    def _has_adapters(self, layout: Layout) -> bool:
        return self._dialect().adapters is not None or any(
            weight_axes(rule.canonical[0].format(0)).letters.count("r") for rule in layout.rules
        )

    def _write(
        self, folder: Path, case: Case, layout: Layout, split: Split | None = None
    ) -> tuple[Path, Converted]:
        """Convert a case into the dialect; return the folder and what was done."""
        source = folder.with_name(f"{folder.name}-source")
        if not source.exists():
            sources.write(case, source)
        conversion = Conversion(source, folder, self.dialect, variant=layout.variant, split=split or Split())
        return folder, convert_checkpoint(conversion)

    def _back(self, folder: Path) -> Path:
        """Convert a folder of the dialect into a checkpoint of a run."""
        output = folder.with_name(f"{folder.name}-back")
        convert_checkpoint(Conversion(folder, output, "gptbridge", Hints(self.dialect)))
        return output

    def _named(self, layout: Layout) -> str:
        return f"{self.dialect} ({layout.variant})"


def read(folder: Path, dialect: str | None = None) -> Read:
    """Read a folder of `dialect`, or of the one that it is recognised as."""
    with open_checkpoint(folder, Hints(dialect)) as opened:
        lora = opened.adapter
        sizes = {**opened.sizes, "r": lora.rank} if lora else opened.sizes
        adapters = {
            name: weight.read(weight.whole(sizes), weight_axes(name), _DTYPE)
            for name, weight in (lora.weights.items() if lora else ())
        }
        return Read(
            opened.dialect,
            opened.variant,
            opened.model,
            {name: np.array(array) for name, array in opened.arrays.items()},
            opened.num_labels,
            adapters,
            lora.alpha if lora else None,
            opened.tokens,
            (opened.stages[0].cutting.degree, len({stage.ranks[0] for stage in opened.stages})),
        )


def skip_unless(found: object, what: str) -> None:
    """Skip the test where the dialect has no place for `what`; that it then refuses it is another test."""
    if not found:
        pytest.skip(f"the dialect has no place for {what}")
