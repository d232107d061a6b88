"""A first signal asks a run to stop after the step it is in; a second, after a moment, ends it at once.

A thread reads them from a pipe that Python's own handler in C writes to: the main thread may be in a
framework's step for minutes, and runs no handler of ours until that returns.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, Self

_ALWAYS = (signal.SIGINT, signal.SIGTERM)
# Unless ignored, as under nohup, or the program's that calls us.
_UNLESS_TAKEN = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Seconds within which signals are one request: `timeout` and service managers send theirs twice.
_ONE_REQUEST = 0.1
_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


_last_acts: list[Callable[[], None]] = []  # also where a second signal ends this process
asked: signal.Signals | None = None  # what the command above a rank has got: for all of its ranks


class StopRequest:
    """While entered, remembers the first signal in `received`, and leaves at once at a second one.

    `words` tell a person on stderr when the run will stop. Without words it is a rank's, which gets a signal
    from several sides, some of them more than once: then only the first one counts.
    """

    WORDS = "stopping after this step"

    def __init__(self, words: str | None = WORDS) -> None:
        self._received: signal.Signals | None = None
        self._words = words
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Python allows handlers in the main thread only; elsewhere the caller owns the signals.
        if threading.current_thread() is threading.main_thread():
            free = [number for number in _UNLESS_TAKEN if signal.getsignal(number) == signal.SIG_DFL]
            for number in (*_ALWAYS, *free):
                self._before[number] = signal.signal(number, self._note)
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._fd_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return self

    @property
    def received(self) -> signal.Signals | None:
        """The first signal that came."""
        return self._received or asked

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            # None: a framework had installed a handler in C, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._before:
            signal.set_wakeup_fd(self._fd_before)
            os.close(self._writer)  # which ends the thread

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = self._received or signal.Signals(number)

    def _watch(self, reader: int) -> None:
        first: float | None = None
        while content := os.read(reader, 1):
            number, now = content[0], time.monotonic()
            if number not in self._before or self._words is None:
                continue
            if first is None:
                first = now
                _tell(f"{self._words}; once more to stop at once\n".encode())
            elif now - first > _ONE_REQUEST:
                _tell(_SHOW_CURSOR if os.isatty(2) else b"")
                for last in _last_acts:
                    with suppress(Exception):
                        last()
                os._exit(128 + number)  # all that is kept appears whole: nothing is half written
        os.close(reader)

    @property
    def exit_code(self) -> int:
        """128 + the signal's number: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP, 138 for SIGUSR1."""
        return 128 + (self.received or 0)


@contextmanager
def in_the_end(act: Callable[[], None]) -> Iterator[None]:
    """Do `act` in the end, uninterrupted: also where a second signal ends this process at once."""
    _last_acts.insert(0, act)
    try:
        yield
    finally:
        with _handled(lambda handler: True, signal.SIG_IGN):
            _last_acts.remove(act)
            act()


@contextmanager
def unwinding() -> Iterator[None]:
    """While entered, let SIGTERM and SIGHUP end this process as an error does, with 128 + their number.

    What is open is then closed. One that is ignored, or that the program which calls us handles, is not ours.
    """

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    with _handled(lambda handler: handler == signal.SIG_DFL, leave):
        yield


@contextmanager
def _handled(ours: Callable[[Any], bool], handler: Any) -> Iterator[None]:
    """While entered, let `handler` get each signal that ends a process and whose handler is `ours`."""
    before = {number: signal.getsignal(number) for number in (*_ALWAYS, signal.SIGHUP)}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    taken = {number: was for number, was in before.items() if was is not None and ours(was)}
    try:
        for number in taken:
            signal.signal(number, handler)
        yield
    finally:
        for number, was in taken.items():
            signal.signal(number, was)


def heed_signals() -> None:
    """Let no signal end this process, before or after its loop: the next StopRequest has received it."""

    def note(number: int, frame: FrameType | None) -> None:
        global asked
        asked = asked or signal.Signals(number)

    for number in (*_ALWAYS, signal.SIGHUP):
        signal.signal(number, note)


def _tell(words: bytes) -> None:
    try:
        os.write(2, words)
    except OSError:
        return  # a terminal that hung up
