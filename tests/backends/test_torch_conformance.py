"""The kit on torch, and wrong dropouts that it must notice: the example backend has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from numpy.typing import NDArray

from gptbridge.session import Batch, Session
from gptbridge.testing import BackendConformance, cases
from gptbridge_specs import RunSpec

Gradients = Iterator[tuple[str, NDArray[Any]]]


class TestTorch(BackendConformance):
    backend = "torch"


def unscaled(session: Session, batch: Batch) -> Gradients:
    """Return gradients as a dropout of 0.4 without its 1 / (1 - p) gives them."""
    return ((name, gradient * 0.6) for name, gradient in session.gradients(batch))


def one_draw(session: Session, batch: Batch) -> Gradients:
    """Return gradients as one dropout for all micro-batches gives them."""
    first = replace(batch, inputs=batch.inputs[:1], labels=batch.labels[:1], loss_mask=batch.loss_mask[:1])
    return ((name, gradient * len(batch.inputs)) for name, gradient in session.gradients(first))


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout"])
@pytest.mark.parametrize(
    ("wrong", "words"), [(unscaled, "what is kept is not scaled"), (one_draw, "two dropouts")]
)
def test_the_kit_notices_a_wrong_dropout(
    kind: str, wrong: Callable[[Session, Batch], Gradients], words: str
) -> None:
    class Wrong(BackendConformance):
        backend = "torch"

        def _start(self, spec: RunSpec, weights: cases.Arrays) -> Session:
            session = self._open(spec)
            session.import_weights(weights)
            mutant: Session = SimpleNamespace(gradients=partial(wrong, session))
            return mutant

    with pytest.raises(AssertionError, match=words):
        getattr(Wrong(), f"test_{kind}_has_its_rate_and_its_scale")()
