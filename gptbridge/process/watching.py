"""A thread of each rank: it shows signs of life, and looks for what the command above wants."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

from gptbridge.process import signals
from gptbridge.process.records import OwnRecord, is_free

STOP_FILE = "stop"  # the number of the signal that the command has got
ASK_FILE = "where"  # asks each rank where it stands
_SECONDS = 0.3


def watch(request: Path, record: OwnRecord, private: Path | None) -> None:
    """Begin to watch. Where the command that made `request` supervises its ranks, `private` is its folder.

    It holds a lock on `request` while it lives, and where it was killed, the ranks remove that folder.
    """
    _leave_if_alone(request, private)
    threading.Thread(target=_watch, args=(request, record, private), daemon=True).start()


def _watch(request: Path, record: OwnRecord, private: Path | None) -> None:
    while record.record.exit_code is None:
        record.beat()
        _leave_if_alone(request, private)
        stop = request.with_name(STOP_FILE)
        if signals.asked is None and stop.exists():
            signals.asked = signal.Signals(int(stop.read_text()))
        if request.with_name(ASK_FILE).exists() and not record.record.stack:
            record.say(stack=_stack())
        time.sleep(_SECONDS)


def _leave_if_alone(request: Path, private: Path | None) -> None:
    """End this process where nobody is left who would end it: what is kept appears whole."""
    if private is None:
        return
    with suppress(FileNotFoundError):  # the command has ended by itself, and removed what it should
        if not is_free(request):
            return
        shutil.rmtree(private, ignore_errors=True)
    print("the command that started this rank has gone", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(1)


def _stack() -> tuple[str, ...]:
    """Return where the main thread stands, in the log with all that is around it."""
    main = threading.main_thread().ident
    frames = traceback.extract_stack(sys._current_frames()[main]) if main is not None else []
    print("".join(["asked where it stands:\n", *traceback.format_list(frames)]), file=sys.stderr, flush=True)  # noqa: T201
    return tuple(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
