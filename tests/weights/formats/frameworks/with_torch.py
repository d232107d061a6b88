"""Run with torch in a process of its own: load what gptbridge wrote, and write what it shall read.

Arguments: a folder. `given.json` says what the files in it hold; `written.json` will say what was written.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file


def describe(tensors: dict[str, torch.Tensor]) -> dict[str, list[Any]]:
    """Each tensor's type, shape and digest of its row-major bytes."""
    described = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().contiguous().reshape(-1)
        raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        digest = hashlib.sha256(raw).hexdigest()
        described[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), digest]
    return described


def load(path: Path) -> list[dict[str, torch.Tensor]]:
    """Every way in which torch opens a file."""
    if path.suffix == ".safetensors":
        return [load_file(path)]
    ways = [torch.load(path, weights_only=True), torch.load(path, weights_only=False)]
    return [*ways, torch.load(path, weights_only=True, mmap=True)] if path.suffix == ".torch" else ways


def odd_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(12, 20)
    every = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
    ]
    every += [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128]
    tensors = {str(dtype).removeprefix("torch."): (base > 0).to(dtype) for dtype in every}
    noted = base.clone()
    noted.note = "an attribute"  # type: ignore[attr-defined]
    return tensors | {
        "base": base,
        "noted": noted,
        "transposed": base.t(),
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "sliced": base[3:7, ::2],
        "row": base[5],
        "expanded": base[:1].expand(3, 20),
        "scalar": torch.tensor(3.5),
        "offset scalar": base[2, 3],
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(base),
        "tied": base,
    }


def main(folder: Path) -> None:
    for file, expected in json.loads((folder / "given.json").read_text()).items():
        for tensors in load(folder / file):
            assert describe(tensors) == expected, file
    odd = odd_tensors()
    wide = {str(d).removeprefix("torch."): torch.arange(7).to(d) for d in (torch.uint16, torch.uint32)}
    wide |= {"float8_e4m3fn": torch.arange(7).to(torch.float8_e4m3fn)}
    wide |= {"float8_e5m2": torch.arange(7).to(torch.float8_e5m2), "uint64": torch.arange(7).to(torch.uint64)}
    written = {}
    for protocol in (2, 3, 4, 5):
        for zipped in (True, False):
            name = f"torch-{'zip' if zipped else 'legacy'}-{protocol}"
            torch.save(odd, folder / name, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
            written[name] = describe(odd)
    torch.save(odd | wide, folder / "wide")
    written["wide"] = describe(odd | wide)
    module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7))
    torch.save(module.state_dict(), folder / "module")
    written["module"] = describe(module.state_dict())
    save_file(
        {n: t.clone().contiguous() for n, t in (odd | wide).items() if n != "complex128"}, folder / "st"
    )
    written["st"] = describe({n: t for n, t in (odd | wide).items() if n != "complex128"})
    megatron = {
        "args": argparse.Namespace(hidden_size=48, params_dtype=torch.float16, data_path=["a"], seed=None),
        "checkpoint_version": 3.0,
        "iteration": 100,
        "model": {"language_model": {"embedding": {"word_embeddings": {"weight": odd["base"]}}}},
        "optimizer": {"state": {0: {"exp_avg": odd["base"], "step": torch.tensor(1.0)}}},
        "opt_param_scheduler": collections.defaultdict(None, {"lr": np.float64(1e-4)}),
        "rng_state": [
            {"random_rng_state": random.getstate(), "np_rng_state": np.random.get_state()},
        ],
    }
    torch.save(megatron, folder / "megatron")
    (folder / "written.json").write_text(json.dumps(written))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
