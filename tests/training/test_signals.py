"""A request to stop is the first signal that comes; a second one ends the process, whatever it is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from gptbridge.process.signals import StopRequest
from tests.conftest import Spawn

# A step of a minute that holds the main thread in C and lets other threads run, as a framework's does.
LONG_STEP = """
import ctypes
from gptbridge.process.signals import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    ctypes.CDLL(None).poll(None, 0, {milliseconds}) < 0 and {again}
print(stop.received)
"""
INTERRUPTED = "[ctypes.CDLL(None).usleep(900_000) for _ in range(70)]"  # by the first signal


def start(spawn: Spawn) -> subprocess.Popen[str]:
    code = LONG_STEP.format(milliseconds=60_000, again=INTERRUPTED)
    process = spawn([sys.executable, "-c", code])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_signals_within_a_moment_are_one_request() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    with StopRequest() as stop:
        assert stop.received is None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
    assert stop.received is signal.SIGTERM
    assert stop.exit_code == 143
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_second_signal_ends_a_long_step_at_once(spawn: Spawn, signals_count: None, second: int) -> None:
    process = start(spawn)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(second)
    began = time.monotonic()
    output, told = process.communicate(timeout=20)
    assert time.monotonic() - began < 2
    assert process.returncode == 128 + second
    assert told == "stopping after this step; once more to stop at once\n"
    assert not output


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGUSR1, 138), (signal.SIGUSR2, 140), (signal.SIGHUP, 129)]
)
def test_other_signals_ask_too(number: signal.Signals, code: int, signals_count: None) -> None:
    with StopRequest() as stop:
        signal.raise_signal(number)
    assert stop.received is number
    assert stop.exit_code == code


def test_what_a_program_does_with_usr1_is_its_own() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1]
    assert stop.received is None


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hang_up_counts_but_under_nohup(ignored: bool, signals_count: None) -> None:
    if ignored:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
    assert stop.received is (None if ignored else signal.SIGHUP)
