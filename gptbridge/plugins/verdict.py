"""Which rank failed first, and which one the others wait for in vain: read from what they say."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptbridge.process.records import Record, Seen

INTERRUPTED = 128  # exit codes from here on: ended by a signal, after saving
# What ranks say, in frameworks' words, that another one has left: they are its victims.
_VICTIM = re.compile(
    r"closed by peer|reset by peer|connect|time[d-]? ?out|broken pipe|socket|heart-?beat", re.I
)
_WAITING = re.compile(r"collectives\.py|distributed|communication|autograd|world\.py")
_MEETING = 10  # times as long may ranks wait for each other before their first step: for other machines
_IDLE = 0.02  # of a core: what a rank that waits may use


def has_failed(record: Record) -> bool:
    """Tell whether a rank has ended by an error."""
    return record.exit_code is not None and 0 < record.exit_code < INTERRUPTED


def is_lost(one: Seen) -> bool:
    """Tell whether a rank has ended without a word."""
    return not one.alive and one.record.exit_code is None and one.record.rank is not None


@dataclass
class Losses:
    """When each rank was found to have ended without a word, by its process."""

    since: dict[int, float] = field(default_factory=dict)

    def look(self, seen: Sequence[Seen]) -> None:
        """Note those that have gone since the last look."""
        for one in filter(is_lost, seen):
            self.since.setdefault(one.record.pid, time.time())

    def first_failure(self, seen: Sequence[Seen]) -> Record | None:
        """Return the record of the rank that failed first, not of one that misses it."""
        failed = [one.record for one in seen if has_failed(one.record)]
        real = [r for r in failed if r.foreseen or not _VICTIM.search(r.message)]
        found = [(record.ended, record) for record in real]
        found += [(self.since[one.record.pid], one.record) for one in seen if one.record.pid in self.since]
        found = found or [(record.ended, record) for record in failed]
        return min(found, key=lambda pair: pair[0])[1] if found else None


@dataclass
class Patience:
    """Sees that ranks hang: one that shows no sign of life, or all of them, which wait for something."""

    seconds: float
    _signs: dict[int, tuple[object, float]] = field(default_factory=dict)
    _samples: deque[tuple[float, list[tuple[int, float]]]] = field(default_factory=deque)

    def silent(self, seen: Sequence[Seen]) -> Record | None:
        """Return a living rank that has neither answered nor computed for too long."""
        now = time.monotonic()
        for one in seen:
            pid, sign = one.record.pid, (one.beat, cpu_seconds(one.record.pid))
            if self._signs.get(pid, (None, now))[0] != sign:
                self._signs[pid] = sign, now
            if now - self._signs[pid][1] > self.seconds:
                return one.record
        return None

    def all_idle(self, seen: Sequence[Seen]) -> bool:
        """Tell whether no rank has done a step or computed for too long."""
        now, spent = time.monotonic(), [cpu_seconds(one.record.pid) for one in seen]
        known = [seconds for seconds in spent if seconds is not None]
        if not seen or len(known) < len(seen):
            return False
        self._samples.append((now, [(one.record.step, s) for one, s in zip(seen, known, strict=True)]))
        meeting = all(one.record.step == 0 for one in seen)
        window = self.seconds * (_MEETING if meeting else 1)
        while len(self._samples) > 1 and self._samples[1][0] <= now - window:
            self._samples.popleft()
        began, before = self._samples[0]
        if now - began < window or len(before) != len(seen):
            return False
        moved = any(one.record.step != step for one, (step, _) in zip(seen, before, strict=True))
        return not moved and all(
            seconds - earlier < _IDLE * (now - began)
            for seconds, (_, earlier) in zip(known, before, strict=True)
        )


def blame(seen: Sequence[Seen]) -> str:
    """Return, of ranks that have said where they stand, for which one the others wait."""
    busy = [
        one.record for one in seen if one.record.stack and not any(map(_WAITING.search, one.record.stack))
    ]
    if 0 < len(busy) < len(seen):
        return "; ".join(f"{r.name} hangs after step {r.step}, in {r.stack[0]}" for r in busy)
    places = (f"{one.record.name} in {one.record.stack[0] if one.record.stack else '?'}" for one in seen)
    return f"the ranks wait for each other after step {seen[0].record.step}: {', '.join(places)}"


def cpu_seconds(pid: int) -> float | None:
    """Return how long a process has computed; None where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
