"""The training loop: batches in, steps of one trainer, events out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gptbridge.checkpoint.saving import Saved, Saver
from gptbridge.checkpoint.state import Origin, state_after
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.data.batches import RunData
from gptbridge.errors import BadInput, Interrupted, RunFailed
from gptbridge.finetuning.batches import RecordData
from gptbridge.process.signals import StopRequest
from gptbridge.process.world import World
from gptbridge.rules.schedule import learning_rate
from gptbridge.session import Batch, StepResult, Trainer
from gptbridge.training.evaluate import mean_loss
from gptbridge.training.events import Events
from gptbridge.training.watching import Watch
from gptbridge_specs import RunSpec

Reason = Literal["complete", "stopped", "early"]


@dataclass(frozen=True)
class Loop:
    """One run on one rank's trainer, from the step after `done` to its end."""

    spec: RunSpec
    trainer: Trainer
    world: World
    data: RunData | RecordData
    store: CheckpointStore
    saver: Saver
    events: Events
    stop: StopRequest
    backend: str
    origin: Origin | None
    watch: Watch

    def run(self, done: int) -> tuple[int, Reason]:
        """Train from step `done` + 1 on and save at the end; return the last step and why it was.

        RunFailed where the loss is no number, Interrupted after a signal: the step is finished and
        saved first.
        """
        training = self.spec.training
        last = min(training.max_steps, training.stop_after_steps or training.max_steps)
        if self.watch.exhausted:
            message = "the run had ended early: a larger evaluation.patience goes on"
            self.events.emit("warning", message=message)
            last = done
        batches = self.data.training(done + 1)
        ends = time.monotonic() + 60 * (training.max_minutes or math.inf)
        for step in range(done + 1, last + 1):
            self._step(step, *self._next_batch(step, batches))
            self._tell(self.saver.done())
            is_best = self._due(step, self.spec.evaluation.interval) and self._evaluate(step)
            stopping = self._stopping()
            if self.watch.exhausted or self._over(ends):
                last = step
            if step == last or stopping or step % self.spec.checkpoint.interval == 0 or is_best:
                self.save(step, wait=stopping or step == last)
            if stopping and step < last:
                self._interrupt(step)
            if step == last:
                break
        self.settle()
        step = max(done, last)
        if self.watch.exhausted:
            return step, "early"
        return step, "complete" if step >= training.max_steps else "stopped"

    def save(self, step: int, *, wait: bool = False) -> None:
        """Begin to save the run after `step` steps; training goes on beside it, unless we `wait`.

        Then the checkpoints that are too old to keep are removed. RunFailed where the save before failed.
        """
        state = state_after(
            step,
            self.spec,
            self.trainer.state,
            backend=self.backend,
            digest=self.data.digest,
            tokenizer=self.data.tokenizer.identity,
            origin=self.origin,
            best=self.watch.best,
        )
        self._tell(self.saver.begin(state, self.data.tokenizer, self.trainer.shards, wait=wait))

    def settle(self) -> None:
        """Wait until what is being saved is whole."""
        self._tell(self.saver.finish())

    def _tell(self, saved: Saved | None) -> None:
        if saved is not None:
            seconds = round(saved.seconds, 3)
            self.events.emit("checkpoint", step=saved.step, path=str(saved.path), seconds=seconds)

    def _next_batch(self, step: int, batches: Iterator[Batch]) -> tuple[Batch, float]:
        """Return the batch of a step and the seconds waited.

        One process saves what is done where there is none; of several, the others are in the step already.
        """
        started = time.perf_counter()
        try:
            return next(batches), time.perf_counter() - started
        except BadInput:
            self.settle()
            if self.world.size == 1 and step - 1 not in (0, *self.store.steps()):
                self.save(step - 1, wait=True)
                self.settle()
            raise

    def _step(self, step: int, batch: Batch, waited: float) -> None:
        started = time.perf_counter()
        rate = learning_rate(self.spec.schedule, self.spec.training.max_steps, step)
        result = self.trainer.step(batch, rate) if batch.loss_tokens else None
        seconds = waited + time.perf_counter() - started
        facts = {
            "learning_rate": rate,
            "tokens": step * self.spec.tokens_per_step,
            "tokens_per_second": round(self.spec.tokens_per_step / seconds, 1),
            "step_seconds": round(seconds, 6),
            "data_seconds": round(waited, 6),
        }
        if result is None:
            self.events.emit("step", step=step, loss=None, grad_norm=None, **facts, skipped=True)
            self.events.emit("warning", step=step, message="every token of the batch is masked: step skipped")
            return
        self._require_finite(step, result)
        if result.loss_scale is not None:
            facts["loss_scale"] = result.loss_scale
        if result.skipped:
            facts["skipped"] = True
        loss, norm = _number(result.loss), _number(result.grad_norm)
        self.events.emit("step", step=step, loss=loss, grad_norm=norm, **facts)

    def _require_finite(self, step: int, result: StepResult) -> None:
        finite = math.isfinite(result.loss) and math.isfinite(result.grad_norm)
        if finite or result.skipped:
            return
        self.settle()
        saved = self.store.steps()
        raise RunFailed(
            f"step {step}: the loss is {result.loss}, the gradient norm {result.grad_norm}",
            hint=(f"The last checkpoint is step {saved[-1]}; " if saved else "")
            + "a lower schedule.max_lr, a longer warm-up or optimizer.clip_grad_norm may help",
        )

    def _evaluate(self, step: int) -> bool:
        """Evaluate, unless a signal has come and nothing goes by it; tell whether to save it as the best."""
        spec = self.spec
        if self._stopping() and spec.evaluation.patience is None and not spec.checkpoint.keep_best:
            return False
        started = time.perf_counter()
        loss, tokens = mean_loss(self.trainer, self.data.validation(), self.world)
        if not tokens:
            self.events.emit("warning", step=step, message="every token of the validation split is masked")
            return False
        finite = math.isfinite(loss)
        facts = {"loss": _number(loss)}
        if spec.task.name != "classification":  # whose loss is of classes or values
            facts["perplexity"] = math.exp(min(loss, 20.0)) if finite else None
        is_best = self.watch.take(step, facts, self.world.any)
        seconds = round(time.perf_counter() - started, 3)
        self.events.emit("evaluate", step=step, **facts, tokens=tokens, seconds=seconds, best=is_best)
        if not finite:
            self.events.emit("warning", step=step, message=f"step {step}: the validation loss is {loss}")
        return is_best and spec.checkpoint.keep_best

    def _over(self, ends: float) -> bool:
        """Tell whether training.max_minutes are over on any rank."""
        return self.spec.training.max_minutes is not None and self.world.any(time.monotonic() >= ends)

    def _stopping(self) -> bool:
        """Tell whether a signal has come to any rank, so that all of them end at the same step."""
        return self.world.any(self.stop.received is not None)

    def _due(self, step: int, interval: int) -> bool:
        return bool(interval) and (step % interval == 0 or step == self.spec.training.max_steps)

    def _interrupt(self, step: int) -> None:
        self.settle()
        signal = self.stop.received
        raise Interrupted(
            f"stopped by {signal.name if signal else 'a signal'}; step {step} is saved: "
            f"{self.store.path(step)}. --resume auto continues",
            exit_code=self.stop.exit_code,
        )


def _number(value: float) -> float | None:
    """Return `value` as JSON has it: null for what is no number."""
    return value if math.isfinite(value) else None
