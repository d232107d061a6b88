"""How a run looks while it goes: a progress bar on a terminal, plain lines elsewhere, or JSON lines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from gptbridge.errors import printable
from gptbridge_cli.lines import LONGEST

if TYPE_CHECKING:
    from rich.progress import Progress

    from gptbridge.training.events import Event


def choose_display(log_interval: int, *, quiet: bool, as_json: bool) -> list[Callable[[Event], None]]:
    """Return the observers that print a run."""
    if as_json:
        return [while_read(lambda event: typer.echo(json.dumps(event)))]
    if quiet:
        return [while_read(_warn)]
    return [while_read(ProgressBar() if sys.stdout.isatty() else PlainLines(log_interval))]


def _warn(event: Event) -> None:
    """Tell on stderr what also somebody who wants no lines must know, such as a damaged checkpoint."""
    if event["event"] == "warning":
        for line in describe(event):
            typer.echo(line, err=True)


def while_read(display: Callable[[Event], None]) -> Callable[[Event], None]:
    """Return a display that falls silent where nobody reads it any more: the run goes on.

    The reader of a pipe leaves (| head), a terminal hangs up.
    """

    def show(event: Event) -> None:
        try:
            display(event)
        except OSError:
            # or Python fails when it flushes at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return show


class PlainLines:
    """One line every `log_interval` steps, with the fields that the seed systems' logs have."""

    def __init__(self, log_interval: int) -> None:
        self._interval = log_interval
        self._window: list[Event] = []
        self._facts: Event = {}

    def __call__(self, event: Event) -> None:
        """Print what the event calls for."""
        kind = event["event"]
        if kind in ("start", "resume"):
            self._facts = event
        if kind == "step":
            self._window.append(event)
        if self._window and (kind == "end" or (kind == "step" and event["step"] % self._interval == 0)):
            typer.echo(self._line())
            self._window = []
        for line in describe(event):
            typer.echo(line)

    def _line(self) -> str:
        """Return the seeds' fields, averaged over the steps since the last line."""
        window, last = self._window, self._window[-1]
        losses = [event["loss"] for event in window if event["loss"] is not None]
        reader = sum(event["data_seconds"] for event in window) / len(window)
        cost = sum(event["step_seconds"] for event in window) / len(window)
        rate = self._facts["tokens_per_step"] / cost
        first = (last["step"] - 1) * self._facts["global_batch_size"]
        epoch, sample = divmod(first, self._facts["samples_per_epoch"])
        fields = {
            "global step": last["step"],
            "epoch": epoch,
            "batch": sample // self._facts["global_batch_size"],
            "loss": f"{sum(losses) / len(losses):.9f}" if losses else "none",
            "avg_reader_cost": f"{reader:.5f} sec",
            "avg_batch_cost": f"{cost:.5f} sec",
            "speed": f"{1 / cost:.2f} step/s",
            "ips_total": f"{rate:.0f} tokens/s",
            "ips": f"{rate / self._facts['devices']:.0f} tokens/s",
            "learning rate": f"{last['learning_rate']:.5e}",
        }
        if last["grad_norm"] is not None:
            fields["grad_norm"] = f"{last['grad_norm']:.6f}"
        if "loss_scale" in last:
            fields["loss_scale"] = f"{last['loss_scale']:g}"
        if any("skipped" in event for event in window):
            fields["skipped"] = sum("skipped" in event for event in window)
        return ", ".join(f"{name}: {value}" for name, value in fields.items())


class ProgressBar:
    """A bar with step, loss, learning rate, tokens/s and the time left; other events as lines above it."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def __call__(self, event: Event) -> None:
        """Draw the event."""
        kind = event["event"]
        if kind == "step" and self._progress is not None:
            self._progress.update(
                self._progress.task_ids[0],
                completed=event["step"],
                loss="none" if event["loss"] is None else f"{event['loss']:.4f}",
                rate=f"{event['learning_rate']:.2e}",
                speed=f"{event['tokens_per_second']:,.0f}",
            )
            return
        if kind == "end" and self._progress is not None:
            self._progress.stop()
        for line in describe(event):
            if self._progress is None:
                typer.echo(line)
            else:
                self._progress.console.print(line, markup=False, highlight=False)
        if kind in ("start", "resume"):
            self._begin(event)

    def _begin(self, facts: Event) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  lr {task.fields[rate]}  {task.fields[speed]} tokens/s"),
            TimeRemainingColumn(),
        )
        last = min(facts["max_steps"], facts["stop_after_steps"] or facts["max_steps"])
        done = facts.get("step", 0)
        self._progress.add_task("", total=last, completed=done, loss="-", rate="-", speed="-")
        self._progress.start()


def describe(event: Event) -> list[str]:
    """Return the lines that say an event other than a step to a person."""
    describer = _DESCRIBERS.get(event["event"])
    return [printable(line, LONGEST) for line in describer(event)] if describer else []


def _start(event: Event) -> list[str]:
    steps = f"{event['max_steps']:,} steps of {event['tokens_per_step']:,} tokens"
    if event["stop_after_steps"]:
        steps += f", stopping after {event['stop_after_steps']:,}"
    lines = [
        f"backend  {event['backend']} {event['framework_version']} on {event['device']}, {event['compute']}",
        f"model    {event['parameters']:,} parameters",
        f"data     {event['data']}, {event['training_tokens']:,} training tokens" + _records(event),
        f"steps    {steps}",
        f"run      {event['run']}",
    ]
    if classes := event.get("classes"):
        lines.insert(3, "classes  " + ", ".join(f"{name}: {number:,}" for name, number in classes.items()))
    if origin := event.get("origin"):
        lines.append(f"began    with the weights of {origin['path']}, {origin['dialect']}")
    return lines


def _records(event: Event) -> str:
    """Return how many records of a file are trained on: the other splits have the rest."""
    if "records" not in event:
        return ""
    return f" in {event['training_records']:,} of {event['records']:,} records"


def _resume(event: Event) -> list[str]:
    return [
        *_start(event),
        f"resume   after step {event['step']:,} by {event['written_by']}: {event['checkpoint']}",
    ]


def _evaluate(event: Event) -> list[str]:
    if event["loss"] is None:
        return []  # the warning that follows says it
    more, unit = "", "texts"
    if "perplexity" in event:
        more, unit = f"perplexity {event['perplexity']:.3f}, ", "tokens"
    return [
        f"evaluate at step {event['step']}: loss {event['loss']:.6f}, {more}"
        f"{event['tokens']:,} {unit} in {event['seconds']:.1f} s"
    ]


def _end(event: Event) -> list[str]:
    if "message" in event:
        return []  # the error says it
    return [f"{event['reason']} at step {event['step']}"]


_DESCRIBERS: dict[str, Callable[[Event], list[str]]] = {
    "start": _start,
    "resume": _resume,
    "evaluate": _evaluate,
    "checkpoint": lambda event: [f"saved {event['path']} in {event['seconds']:.1f} s"],
    "warning": lambda event: [f"warning: {event['message']}"],
    "end": _end,
}
