"""For every room: one thread a process, processes that end with their test, signals that reach them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

# Processes that share two cores lose most of their time in each other's barriers: one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Return a function that starts a process, by default into pipes; the test's end is its end."""
    with ExitStack() as stack:

        def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
            settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
            process: subprocess.Popen[str] = subprocess.Popen(command, text=True, **settings)
            stack.enter_context(process)  # waits for it, once it is killed
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def signals_count() -> Iterator[None]:
    """Let SIGINT and SIGHUP reach the processes that a test starts: a child inherits what is ignored.

    A script's background jobs ignore SIGINT, and what runs under nohup ignores SIGHUP.
    """
    handlers: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
