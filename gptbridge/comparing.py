"""Do backends train the same model? Run one spec on each, in its own process, and compare."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge import reference
from gptbridge.data.batches import open_data
from gptbridge.errors import RunFailed, UsageError
from gptbridge.plan.fitting import require_room
from gptbridge.plugins.backend import load_backend
from gptbridge.process.worker import run_worker
from gptbridge.rules.schedule import learning_rate
from gptbridge.weights.architecture import count_parameters
from gptbridge.weights.initial import InitialWeights
from gptbridge.weights.shards import load
from gptbridge_specs import RunSpec

TOLERANCE = 1e-4
REFERENCE = "NumPy reference"

# The reference holds the model in float64: above this many parameters the first backend stands in.
_REFERENCE_PARAMETERS = 200_000_000
_LOGITS_SAMPLES, _LOGITS_TOKENS = 2, 64
# Compilation and warm caches: the first steps say nothing about speed.
_WARM_UP_STEPS = 3

StepProgress = Callable[[str, int, float], None]  # backend, step, loss


@dataclass(frozen=True, slots=True)
class Measured:
    """What one backend made of a spec."""

    backend: str
    device: str
    tokens: NDArray[np.int32]  # (B, T)
    logits: NDArray[np.float32]  # (B, T, V) of the initial weights
    losses: tuple[float, ...]  # of each step
    grad_norms: tuple[float, ...]
    tokens_per_second: float | None  # None when there were too few steps


@dataclass(frozen=True, slots=True)
class Row:
    """One backend beside what it is compared with: losses and norms with the first backend's."""

    backend: str
    device: str
    logits_difference: float | None  # largest absolute difference; None for the stand-in itself
    loss_difference: float  # largest relative difference of any step
    loss_step: int  # the step that has it
    grad_norm_difference: float  # largest relative difference of any step
    tokens_per_second: float | None
    final_loss: float


@dataclass(frozen=True, slots=True)
class Parity:
    """The table, and what lies beyond the tolerance."""

    rows: tuple[Row, ...]
    logits_against: str
    steps: int
    tolerance: float
    failures: tuple[str, ...]
    notes: tuple[str, ...]

    def require(self) -> None:
        """Raise RunFailed, naming step and backend, when something lies beyond the tolerance."""
        if self.failures:
            raise RunFailed("\n".join(self.failures))

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def compare_backends(
    spec: RunSpec,
    backends: Sequence[str],
    *,
    steps: int,
    tolerance: float = TOLERANCE,
    progress: StepProgress = lambda backend, step, loss: None,
) -> Parity:
    """Run up to `steps` steps of `spec` on each backend, one after the other, and compare.

    Dropout is set to 0: each framework draws its own. Raises what a missing or broken backend or an
    impossible spec raises, before anything runs.
    """
    if not backends or len(set(backends)) < len(backends):
        raise UsageError(f"{','.join(backends) or 'nothing'}: name each backend once", where="--backends")
    if spec.parallel.world_size > 1:
        raise UsageError(
            f"a layout of {spec.parallel.world_size} ranks: backends are compared in one process each",
            where="parallel",
            hint="Leave the parallel section out",
        )
    plain = without_dropout(spec)
    notes = () if plain == spec else ("dropout is set to 0: each framework draws its own",)
    for name in backends:
        plugin = load_backend(name)
        plugin.check(plain)
        require_room(plain, plugin.info, overrule="")
    found = [measure_in_worker(plain, name, steps=steps, progress=progress) for name in backends]
    return compare(plain, found, tolerance=tolerance, notes=notes)


def without_dropout(spec: RunSpec) -> RunSpec:
    """Return `spec` with every dropout at 0."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return spec.model_copy(update={"model": spec.model.model_copy(update=off)})


def measure_in_worker(
    spec: RunSpec,
    backend: str,
    *,
    steps: int,
    progress: StepProgress = lambda backend, step, loss: None,
) -> Measured:
    """Run the first `steps` steps of `spec` on `backend` in a process of its own."""
    device, done = "", []
    with tempfile.TemporaryDirectory(prefix="gptbridge-") as folder:
        path = Path(folder, "logits.npz")
        request = {"backend": backend, "steps": steps, "logits_path": str(path)}
        for event in run_worker(measure, {"spec": spec.model_dump(mode="json"), **request}):
            if event["event"] == "ready":
                device = str(event["device"])
            else:
                done.append(event)
                progress(backend, event["step"], event["loss"])
        with np.load(path, allow_pickle=False) as arrays:
            tokens, logits = arrays["tokens"], arrays["logits"]
    return Measured(
        backend,
        device,
        tokens,
        logits,
        tuple(event["loss"] for event in done),
        tuple(event["grad_norm"] for event in done),
        _speed(spec, [event["seconds"] for event in done]),
    )


def measure(spec: Mapping[str, Any], backend: str, steps: int, logits_path: str) -> Iterator[dict[str, Any]]:
    """Worker: write the logits of the initial weights, then train and yield each step."""
    run = RunSpec.model_validate(spec)
    with open_data(run) as data:
        trainer, device, _ = load_backend(backend).open_trainer(run)
        yield {"event": "ready", "device": device.name}
        load(trainer.shards(), InitialWeights(run.model, run.training.seed).read)
        batches = data.training(1)
        for step in range(1, min(steps, run.training.max_steps) + 1):
            batch = next(batches)
            if step == 1:
                tokens = np.ascontiguousarray(batch.inputs[0, :_LOGITS_SAMPLES, :_LOGITS_TOKENS])
                np.savez(logits_path, tokens=tokens, logits=trainer.logits(tokens))
            started = time.perf_counter()
            rate = learning_rate(run.schedule, run.training.max_steps, step)
            if batch.loss_tokens:
                result = trainer.step(batch, rate)
                seconds = time.perf_counter() - started
                facts = {"loss": result.loss, "grad_norm": result.grad_norm, "seconds": seconds}
                yield {"event": "step", "step": step, **facts}
        trainer.close()


def compare(
    spec: RunSpec, measured: Sequence[Measured], *, tolerance: float, notes: Sequence[str] = ()
) -> Parity:
    """Compare logits with the reference, losses and gradient norms with the first of `measured`."""
    first = measured[0]
    against, expected = REFERENCE, None
    if count_parameters(spec.model) <= _REFERENCE_PARAMETERS:
        weights = InitialWeights(spec.model, spec.training.seed)
        expected = reference.logits(spec.model, weights, first.tokens)
    else:
        against = first.backend
    rows = tuple(_row(each, first, expected) for each in measured)
    failures = tuple(line for row in rows for line in _failures(row, rows[0], against, tolerance))
    return Parity(rows, against, len(first.losses), tolerance, failures, tuple(notes))


def _row(found: Measured, first: Measured, expected: NDArray[np.float64] | None) -> Row:
    if expected is not None:
        logits_difference: float | None = _largest(found.logits, expected)
    else:
        logits_difference = None if found is first else _largest(found.logits, first.logits)
    losses = _relative(found.losses, first.losses)
    step = int(np.argmax(losses)) if losses else 0
    return Row(
        backend=found.backend,
        device=found.device,
        logits_difference=logits_difference,
        loss_difference=losses[step] if losses else math.inf,
        loss_step=step + 1,
        grad_norm_difference=max(_relative(found.grad_norms, first.grad_norms), default=math.inf),
        tokens_per_second=found.tokens_per_second,
        final_loss=found.losses[-1] if found.losses else math.nan,
    )


def _failures(row: Row, first: Row, against: str, tolerance: float) -> Iterator[str]:
    # Gradient norms are shown, not judged: they part sooner than losses do, for rounding alone.
    if row.logits_difference is not None and not row.logits_difference <= tolerance:
        yield (
            f"{row.backend}: initial logits differ from the {against}'s by {row.logits_difference:.2g}, "
            f"more than {tolerance:g}"
        )
    if not row.loss_difference <= tolerance:
        yield (
            f"{row.backend}: the loss of step {row.loss_step} differs from {first.backend}'s "
            f"by {row.loss_difference:.2g} of its value, more than {tolerance:g}"
        )


def _largest(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(found - expected).max()) if found.shape == expected.shape else math.inf


def _relative(found: Sequence[float], expected: Sequence[float]) -> list[float]:
    """Return |difference| / |expected| for each step; NaN counts as infinitely far."""
    if len(found) != len(expected):
        return [math.inf]
    gaps = [abs(one - other) / max(abs(other), 1e-300) for one, other in zip(found, expected, strict=True)]
    return [math.inf if math.isnan(gap) else gap for gap in gaps]


def _speed(spec: RunSpec, seconds: Sequence[float]) -> float | None:
    timed = seconds[_WARM_UP_STEPS:]
    return round(spec.tokens_per_step / statistics.median(timed), 1) if timed else None
