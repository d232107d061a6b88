"""The loss scale of fp16 training: one policy for every backend."""

from __future__ import annotations

from dataclasses import replace

from gptbridge.session import TrainerState
from gptbridge_specs.run import PrecisionSpec


def initial_state(precision: PrecisionSpec) -> TrainerState:
    """Return the state before the first step; the scale is None unless compute is fp16."""
    if precision.compute != "fp16":
        return TrainerState()
    fixed = precision.loss_scale
    return TrainerState(loss_scale=precision.initial_loss_scale if fixed == "dynamic" else fixed)


def after_step(state: TrainerState, precision: PrecisionSpec, *, overflowed: bool) -> TrainerState:
    """Return the state after a step: halve the scale on overflow, double it after a window of good steps."""
    updates = state.updates + (not overflowed)
    if state.loss_scale is None or precision.loss_scale != "dynamic":
        return replace(state, updates=updates)
    if overflowed:
        return TrainerState(updates, max(state.loss_scale / 2, 1.0), 0)
    if state.good_steps + 1 == precision.loss_scale_window:
        return TrainerState(updates, state.loss_scale * 2, 0)
    return TrainerState(updates, state.loss_scale, state.good_steps + 1)


def continued(state: TrainerState, precision: PrecisionSpec) -> TrainerState:
    """Return where a run at `precision` goes on from `state`, which may come from another precision."""
    start = initial_state(precision)
    same_kind = (state.loss_scale is None) == (start.loss_scale is None)
    return state if same_kind else replace(start, updates=state.updates)
