"""Another process for a framework: `python -m gptbridge.process.worker`, its protocol from both ends.

The parent writes one JSON request to stdin; the worker answers with one JSON event a line on what
was its stdout, and ends with an event `done` or `error`. File descriptor 1 leads to stderr while it
works, so that nothing a framework prints can corrupt the answer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import IO, Any

from gptbridge.errors import (
    BackendBroken,
    BackendMissing,
    BadInput,
    BridgeError,
    RunFailed,
    UsageError,
    printable,
)

Event = dict[str, Any]

# What a worker can do: a function of a module, called with the request's fields; it yields events.
Task = Callable[..., Iterator[Event]]
_ERRORS: dict[int, Callable[[str], BridgeError]] = {
    kind.exit_code: kind for kind in (RunFailed, UsageError, BackendMissing, BackendBroken, BadInput)
}


def run_worker(task: Task, request: Mapping[str, Any], *, timeout: float | None = None) -> Iterator[Event]:
    """Call `task(**request)` in a new process and yield its events as they come.

    Raises what the worker raised; RunFailed when it dies without a word or exceeds `timeout` seconds.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as noise:
        process = subprocess.Popen(
            [sys.executable, "-m", "gptbridge.process.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
        )
        watchdog = threading.Timer(timeout or threading.TIMEOUT_MAX, process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield from _conversation(process, {"task": [task.__module__, task.__name__], **request})
        except _Silence:
            late = not watchdog.is_alive()
            raise RunFailed(
                _last_words(process, noise, timeout if late else None), where=task.__name__
            ) from None
        finally:
            watchdog.cancel()
            process.kill()
            process.wait()


def main() -> None:
    """Answer one request."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        request = json.load(sys.stdin)
        module, function = request.pop("task")
        for event in getattr(import_module(module), function)(**request):
            _send(answer, event)
        _send(answer, {"event": "done"})
    except BrokenPipeError:
        os._exit(1)  # the parent is gone: nobody waits for what is left
    except BridgeError as error:
        _send(answer, {"event": "error", "message": str(error), "exit_code": error.exit_code})
        sys.exit(error.exit_code)


class _Silence(Exception):
    """The worker ended without `done` or `error`."""


def _conversation(process: subprocess.Popen[str], request: Mapping[str, Any]) -> Iterator[Event]:
    if process.stdin is None or process.stdout is None:
        raise _Silence
    try:
        process.stdin.write(json.dumps(request))
        process.stdin.close()
    except BrokenPipeError:
        raise _Silence from None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "done":
            return
        if event["event"] == "error":
            raise _ERRORS.get(event["exit_code"], RunFailed)(event["message"])
        yield event
    raise _Silence


def _send(answer: IO[str], event: Mapping[str, Any]) -> None:
    answer.write(json.dumps(event) + "\n")
    answer.flush()


def _last_words(process: subprocess.Popen[str], noise: IO[str], timeout: float | None) -> str:
    if timeout is not None:
        return f"the worker did not finish within {timeout:g} seconds"
    code = process.wait()
    noise.seek(0)
    lines = [line.strip() for line in noise if line.strip()]
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"the worker ended with {how}: {printable(lines[-1]) if lines else 'it printed nothing'}"


if __name__ == "__main__":
    main()
