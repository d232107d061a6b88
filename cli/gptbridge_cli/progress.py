"""Progress of something that reads bytes: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from gptbridge.errors import printable

LINE_SECONDS = 10.0

# bytes done, bytes in all, a few words on what came of them
ShowBytes = Callable[[int, int, str], None]


@contextmanager
def transfer_progress(what: str, *, quiet: bool = False) -> Iterator[ShowBytes]:
    """Give a function to call with the progress; it goes to stderr with MB/s and the time left."""
    if quiet:
        yield lambda done, total, note: None
    elif sys.stderr.isatty():
        with _bar(what) as report:
            yield report
    else:
        yield _lines(what)


@contextmanager
def _bar(what: str) -> Iterator[ShowBytes]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as progress:
        task = progress.add_task(printable(what), total=None, note="")
        yield lambda done, total, note: progress.update(task, completed=done, total=total, note=note)


def _lines(what: str) -> ShowBytes:
    what = printable(what)
    shown = time.monotonic()
    first: tuple[int, float] | None = None

    def report(done: int, total: int, note: str) -> None:
        nonlocal shown, first
        now = time.monotonic()
        first = first or (done, now)  # what was done before this run began must not count as its speed
        if now - shown < LINE_SECONDS or done == first[0]:
            return
        shown = now
        rate = (done - first[0]) / (now - first[1])
        left = (total - done) / rate
        amount = f"{done / 1e6:.1f} of {total / 1e6:.1f} MB, {rate / 1e6:.1f} MB/s"
        typer.echo(f"{what}: {amount}, {left:.0f} s left, {note}", err=True)

    return report
