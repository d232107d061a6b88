"""Freed memory stays in the process, so that a block is not faulted in again; or it is returned at once."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# In processes of its own: the setting cannot be taken back, and tests measure memory in this one.
FAULTS = """
import resource, sys
import numpy as np
from gptbridge.process.allocator import keep_freed_memory

if sys.argv[1] != "default" and not keep_freed_memory(sys.argv[1] == "keep"):
    raise SystemExit("not glibc")

def touch():
    np.ones(24 << 20, np.uint8)

touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, timeout=60, check=True
    )
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_kept_memory_is_not_faulted_in_again() -> None:
    assert page_faults("keep") < page_faults("default") / 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_returned_memory_is_faulted_in_each_time() -> None:
    assert page_faults("return") > 10 * page_faults("keep")
