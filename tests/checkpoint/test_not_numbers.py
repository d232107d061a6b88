"""Weights that are no numbers are never saved as a checkpoint, and never opened as one."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from gptbridge.checkpoint.manifest import write_manifest
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.errors import BadInput, RunFailed
from gptbridge.testing.cases import weights
from gptbridge.weights.shards import Array, from_arrays
from tests.checkpoint.conftest import content_of, opened_run, spec_of

NUMBERS = [np.nan, np.inf, -np.inf]


def save(store: CheckpointStore, tensors: dict[str, Array], moments: dict[str, Array]) -> Path:
    spec = spec_of()
    read, squares = from_arrays(spec.model, tensors), from_arrays(spec.model, moments)
    content = content_of(spec, 30, {"weight": read, "exp_avg": read, "exp_avg_sq": squares})

    def write(folder: Path) -> None:
        content.create(folder)
        content.write_tensors(folder)

    return store.save(30, write)


@pytest.mark.parametrize("number", [*NUMBERS, np.finfo(np.float32).max])
@pytest.mark.parametrize("kind", ["", ".exp_avg_sq"])
def test_what_is_no_number_is_not_saved(store: CheckpointStore, kind: str, number: float) -> None:
    good = weights(spec_of().model, 1)
    bad = {**good, "h.1.mlp.c_fc.weight": good["h.1.mlp.c_fc.weight"].copy()}
    bad["h.1.mlp.c_fc.weight"][3, 5] = number
    tensors, moments = (good, bad) if kind else (bad, good)
    before = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")}
    if np.isfinite(number):
        assert save(store, tensors, moments) == store.path(30)
        return
    with pytest.raises(RunFailed) as refused:
        save(store, tensors, moments)
    assert f"h.1.mlp.c_fc.weight{kind} holds NaN or infinity" in str(refused.value)
    assert "step-00000030" in str(refused.value)
    assert {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")} == before


@pytest.mark.parametrize("number", NUMBERS)
def test_an_opened_tensor_is_refused_by_name(store: CheckpointStore, number: float) -> None:
    """As an older release could have saved it, with a manifest that agrees."""
    file = store.path(20) / "model.safetensors"
    content = bytearray(file.read_bytes())
    (length,) = struct.unpack_from("<Q", content)
    start, _ = json.loads(content[8 : 8 + length])["h.1.attn.c_attn.weight"]["data_offsets"]
    struct.pack_into("<f", content, 8 + length + start, number)
    file.write_bytes(content)
    (store.path(20) / "manifest.json").unlink()
    write_manifest(store.path(20))
    with opened_run(store.path(20)) as opened:
        with pytest.raises(BadInput, match=r"model.safetensors: h.1.attn.c_attn.weight holds NaN"):
            opened.weights.arrays["h.1.attn.q.weight"]
        assert np.isfinite(opened.weights.arrays["h.1.attn.k.weight"]).all()
