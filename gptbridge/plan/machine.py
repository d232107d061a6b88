"""How much memory there is: of this machine, its container and its limits, or of its first GPU."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from gptbridge.session import DeviceKind

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
# Of control groups 2, then 1: the limit and the use in bytes, and the part of the use that is only a cache.
_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
_ASK_GPU = ("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits")


def gpu_memory() -> int | None:
    """Return the free bytes of the GPU that would be used, as its driver says; None: no such GPU."""
    if not shutil.which(_ASK_GPU[0]):
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return None
    chosen = ("-i", visible.split(",")[0].strip()) if visible else ()
    try:
        answer = subprocess.run([*_ASK_GPU, *chosen], capture_output=True, text=True, timeout=10, check=True)
        return int(answer.stdout.split()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def gpu_count() -> int:
    """Return how many GPUs a run on this machine may use, as their driver says."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not shutil.which(_ASK_GPU[0]):
        return 0
    if visible is not None:
        return len([word for word in visible.split(",") if word.strip() not in ("", "-1")])
    try:
        answer = subprocess.run(_ASK_GPU, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(answer.stdout.split())


def host_memory() -> int:
    """Return the bytes that this process can still get: of the machine, its container and its limits."""
    return min([_available(), *_left_in_containers(), *_limits()])


def swap() -> int:
    """Return the free bytes of swap."""
    return _meminfo().get("SwapFree", 0)


def memory_of(kind: DeviceKind) -> int | None:
    """Return the free bytes of a device; None where only its framework can say."""
    return {"cpu": host_memory, "gpu": gpu_memory}.get(kind, lambda: None)()


def _meminfo() -> dict[str, int]:
    try:
        lines = (PROC / "meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {line.partition(":")[0]: int(line.split()[1]) << 10 for line in lines if line.endswith("kB")}


def _available() -> int:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _meminfo().get("MemAvailable", whole)


def _left_in_containers() -> Iterator[int]:
    """Yield what is left in each control group of this process, from its own to the outermost."""
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        root = CGROUP if number == "0" else CGROUP / "memory"
        place = root / path.lstrip("/")
        for group in (place, *place.parents):
            if group == root or root in group.parents:
                yield from _left_in(group)


def _left_in(group: Path) -> Iterator[int]:
    for limit, use, cache in _FILES:
        try:
            most, used = int((group / limit).read_text()), int((group / use).read_text())
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # absent, or `max`
            continue
        yield max(0, most - used + int(statistics.get(cache, 0)))


def _limits() -> Iterator[int]:
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft
