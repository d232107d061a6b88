"""One rank of a job: `python -m gptbridge.plugins.rank REQUEST`, started by a framework's own launcher.

The request, a JSON file, names a task: a function that is called with this rank's record and the request's
fields, and returns what goes into the record as its result.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from gptbridge.errors import BridgeError
from gptbridge.files import open_own
from gptbridge.plugins.backend import load_backend
from gptbridge.process.records import OwnRecord
from gptbridge.process.signals import heed_signals
from gptbridge.process.watching import watch

RankTask = Callable[..., Mapping[str, Any]]


def main() -> NoReturn:
    """Do the task and leave at once: nothing that a framework still waits for holds the others up."""
    path = Path(sys.argv[1])
    request = json.loads(path.read_bytes())
    module, function = request.pop("task")
    number = load_backend(request["backend"]).rank()
    if number is not None:
        _print_into(path.with_name(f"rank-{number}.log"))
    record = OwnRecord(path.parent, number)
    private = request.pop("private")
    watch(path, record, None if private is None else Path(private))
    heed_signals()
    try:
        result = getattr(import_module(module), function)(record, **request)
        record.end(0, result=result)
    except BridgeError as error:
        record.end(error.exit_code, str(error))
        traceback.print_exc()
    except BaseException as error:
        record.end(1, f"{type(error).__name__}: {error}", foreseen=False)
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(record.record.exit_code or 0)


def _print_into(path: Path) -> None:
    """Let all that this process and its framework print go into a file."""
    log = open_own(path)
    os.ftruncate(log, 0)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)


if __name__ == "__main__":
    main()
