"""A worker's answer survives whatever a framework prints, and its death is told."""

from __future__ import annotations

import time

import pytest

from gptbridge.errors import BackendBroken, BackendMissing, RunFailed
from gptbridge.plugins.survey import probe_framework
from gptbridge.process.worker import run_worker
from tests.plugins.conftest import TOY, Gptbridge, WritePlugin

PROBE = "\n@hookimpl\ndef gptbridge_probe():\n    "


def test_prints_do_not_corrupt_the_answer(write_plugin: WritePlugin) -> None:
    noise = "import os; print('hello'); os.system('echo {}'); return {'version': '1', 'devices': ['cpu']}"
    write_plugin("toy", TOY + PROBE + noise)
    assert list(run_worker(probe_framework, {"backend": "toy"})) == [
        {"event": "probe", "version": "1", "devices": ["cpu"]}
    ]


def test_errors_cross_the_process(write_plugin: WritePlugin) -> None:
    write_plugin("toy", TOY + PROBE + "raise ImportError('libhccl.so: cannot open')")
    with pytest.raises(BackendBroken, match=r"gptbridge_probe failed: ImportError: libhccl\.so"):
        list(run_worker(probe_framework, {"backend": "toy"}))
    with pytest.raises(BackendMissing, match="no backend called 'tojo'"):
        list(run_worker(probe_framework, {"backend": "tojo"}))


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("import os; os.abort()", "signal SIGABRT"),
        (
            "import os, sys; print('out of luck', file=sys.stderr, flush=True); os._exit(9)",
            "exit code 9: out of luck",
        ),
    ],
)
def test_a_silent_death_is_told(end: str, reason: str, write_plugin: WritePlugin) -> None:
    write_plugin("toy", TOY + PROBE + end)
    with pytest.raises(RunFailed, match=reason):
        list(run_worker(probe_framework, {"backend": "toy"}))


def test_a_hanging_worker_is_ended(write_plugin: WritePlugin) -> None:
    write_plugin("toy", TOY + PROBE + "import time; time.sleep(600)")
    started = time.monotonic()
    with pytest.raises(RunFailed, match="did not finish within 2 seconds"):
        list(run_worker(probe_framework, {"backend": "toy"}, timeout=2))
    assert time.monotonic() - started < 20


def test_probe_shows_a_framework_that_does_not_import(
    write_plugin: WritePlugin, gptbridge: Gptbridge
) -> None:
    write_plugin("toy", TOY + PROBE + "raise ImportError('libhccl.so: cannot open')")
    result = gptbridge("backends", "--probe")
    assert result.returncode == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "broken" in lines["toy"]
    assert "libhccl.so" in lines["toy"]
    assert "ready" in lines["torch"]
