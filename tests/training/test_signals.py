"""A request to stop is the first signal that comes; afterwards the handlers are the old ones again."""

from __future__ import annotations

import signal

import pytest

from gptbridge.process.signals import StopRequest


def test_a_second_signal_changes_nothing() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest() as stop:
        assert stop.received is None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
    assert stop.received is signal.SIGTERM
    assert stop.exit_code == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hang_up_counts_but_under_nohup(ignored: bool, signals_count: None) -> None:
    if ignored:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
    assert stop.received is (None if ignored else signal.SIGHUP)
