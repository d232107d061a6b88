"""The fuzzer's good files open, and a reader that does not check is found out within seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, Room

RUN = """
import sys
from tests.fuzz import fuzz
from gptbridge.checkpoint import manifest
if sys.argv[3] == "planted":
    manifest._facts = lambda manifest, name, entry: (entry["size"], entry["sha256"])
fuzz.main(sys.argv[1], sys.argv[2], "-seed=1", "-runs=2000")
"""


@pytest.mark.parametrize("name", TARGETS)
def test_the_good_files_of_a_target_open(tmp_path: Path, name: str) -> None:
    room = Room(name, tmp_path)
    seeds = room.seeds()
    assert len(seeds) == len(room.files)
    whole = {seed for seed, content in seeds.items() if room.opens(content)}
    assert whole == seeds.keys() - {"dcp-.metadata"}  # its tensors lie in a file that is not there
    assert not any(room.opens(content[:1]) for content in seeds.values() if len(room.files) == 1)


@pytest.mark.parametrize("fault", ["none", "planted"])
def test_the_fuzzer_finds_a_planted_fault(tmp_path: Path, fault: str) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, "-c", RUN, "manifest", str(tmp_path / "corpus"), fault]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    crashes = list(tmp_path.glob("corpus-*"))
    if fault == "none":
        assert (done.returncode, crashes) == (0, [])
        assert "Done 2000 runs" in done.stderr
    else:
        assert done.returncode != 0
        assert "in verify" in done.stdout + done.stderr
        assert len(crashes) == 1
