"""Orders of a pipeline: each turn once, none before what it needs, few micro-batches alive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptbridge.rules.pipelining import Turn, ordered, turns
from gptbridge_specs.run import ParallelSpec

LAYOUTS = st.tuples(
    st.sampled_from(["gpipe", "1f1b"]), st.integers(1, 5), st.integers(1, 3), st.integers(1, 4)
)


@given(LAYOUTS)
def test_every_turn_is_taken_once_and_none_before_what_it_needs(layout: tuple[str, int, int, int]) -> None:
    schedule, stages, virtual, rounds = layout
    micro_batches = rounds * stages
    parallel = ParallelSpec.model_validate(
        {"pipeline": stages, "virtual_pipeline": virtual, "pipeline_schedule": schedule}
    )
    taken: list[tuple[int, Turn]] = []
    for now in ordered(parallel, micro_batches):
        assert len({each.stage for each in now}) == len(now) > 0
        before = {(number, turn.micro_batch, turn.backward) for number, turn in taken}
        for each in now:
            n, last = each.turn.micro_batch, each.number == stages * virtual - 1
            assert each.turn.backward or each.number == 0 or (each.number - 1, n, False) in before
            assert not each.turn.backward or (each.number, n, False) in before
            assert not each.turn.backward or last or (each.number + 1, n, True) in before
        taken += [(each.number, each.turn) for each in now]
    assert len({*taken}) == len(taken) == 2 * stages * virtual * micro_batches


@pytest.mark.parametrize(("schedule", "most"), [("1f1b", [4, 3, 2, 1]), ("gpipe", [8, 8, 8, 8])])
def test_1f1b_keeps_as_many_micro_batches_as_stages_follow(schedule: str, most: list[int]) -> None:
    for stage, expected in enumerate(most):
        alive = peak = 0
        for turn in turns(schedule, stage, 4, 1, 8):  # type: ignore[arg-type]
            alive += -1 if turn.backward else 1
            peak = max(peak, alive)
        assert peak == expected


def test_micro_batches_that_are_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="3 micro-batches are no rounds of 2"):
        turns("1f1b", 0, 2, 2, 3)
