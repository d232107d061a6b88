"""Every byte that `convert` writes is the expected one: a third of what `python digests.py` compares."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.weights.conversion.digests import (
    SOURCES,
    VECTORS,
    Conversion,
    Guard,
    conversions,
    difference,
    differences,
    read_expected,
)

_STRIDE = 3


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Guard:
    return Guard(tmp_path_factory.mktemp("digests"))


def test_every_conversion_has_an_expectation() -> None:
    expected = read_expected()
    assert [conversion.name for conversion in conversions()] == list(expected)
    assert sum(isinstance(found, str) for found in expected.values()) > len(expected) / 2


@pytest.mark.parametrize("source", SOURCES)
def test_the_bytes_are_the_expected_ones(source: str, guard: Guard) -> None:
    wanted = [conversion for conversion in conversions()[::_STRIDE] if conversion.source.name == source]
    assert wanted
    first = next(differences(guard, wanted, read_expected()), None)
    assert first is None, f"{first[0].name}: {first[1]}"


@pytest.mark.parametrize(
    ("conversion", "file"),
    [
        (Conversion(SOURCES["hf"], "torch"), "model.safetensors"),
        (Conversion(SOURCES["hf"], "megatron", None, 1, 3), "release/mp_rank_00_000/model_optim_rng.pt"),
    ],
)
def test_a_changed_byte_is_found(conversion: Conversion, file: str, guard: Guard, tmp_path: Path) -> None:
    """The vector's last byte is of the embedding, so it is the first stage that differs first."""
    changed = Path(shutil.copytree(VECTORS / "hf", tmp_path / "hf"))
    as_it_is = guard.files(conversion, changed)
    assert not isinstance(as_it_is, int)
    expected = " ".join(as_it_is.values())
    content = bytearray((changed / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (changed / "model.safetensors").chmod(0o600)
    (changed / "model.safetensors").write_bytes(content)
    told = difference(guard.files(conversion, changed), expected)
    assert told
    assert told.startswith(f"{file} (sha256 ")


def test_other_outcomes_are_differences() -> None:
    files = {"config.json": "aa", "model.safetensors": "bb"}
    assert difference(files, "aa bb") is None
    assert difference(2, 2) is None
    assert difference(files, "aa") == "config.json, model.safetensors, expected 1 files"
    assert difference(files, 2) == "wrote config.json, model.safetensors, expected exit code 2"
    assert difference(5, 2) == "exit code 5, expected exit code 2"
    assert difference(2, "aa bb") == "exit code 2, expected files"
    assert difference(2, None) == "exit code 2, expected exit code None"
