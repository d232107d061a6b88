"""Run with mindspore in a process of its own; see with_torch.py."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, ops
from mindspore.train import serialization


def describe(tensors: dict[str, Any]) -> dict[str, list[Any]]:
    described = {}
    for name, tensor in tensors.items():
        digest = hashlib.sha256(tensor.get_bytes() if tensor.size else b"").hexdigest()
        dtype = str(tensor.dtype).lower()
        described[name] = [dtype, list(tensor.shape), digest]
    return described


def odd_tensors() -> dict[str, Any]:
    base = np.random.default_rng(0).standard_normal((12, 50)).astype("f4")
    every = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8"]
    every += ["uint64", "uint32", "uint16", "uint8"]
    tensors = {name: Tensor(base * 5).abs().astype(getattr(mindspore, name)) for name in every}
    extra = {"scalar": Tensor(3.5), "one": Tensor([3.5]), "transposed": ops.transpose(Tensor(base), (1, 0))}
    return {**tensors, **extra, "bool": Tensor(base > 0), "base": Tensor(base)}


def main(folder: Path) -> None:
    for file, expected in json.loads((folder / "given.json").read_text()).items():
        path = str(folder / file)
        form = "safetensors" if file.endswith(".safetensors") else "ckpt"
        checked = {"crc_check": True} if file == "given-crc.ckpt" else {}
        assert describe(mindspore.load_checkpoint(path, format=form, **checked)) == expected, file
    odd = odd_tensors()
    listed = [{"name": name, "data": tensor} for name, tensor in odd.items()]
    mindspore.save_checkpoint(listed, str(folder / "plain.ckpt"), append_dict={"epoch": 3, "note": "h\u00e9"})
    written = {"plain.ckpt": describe({**odd, "epoch": Tensor(3)})}
    mindspore.save_checkpoint(listed, str(folder / "crc.ckpt"), crc_check=True)
    mindspore.save_checkpoint(listed, str(folder / "st.safetensors"), format="safetensors")
    serialization.SLICE_SIZE = 1  # in KiB, instead of 512 MiB
    mindspore.save_checkpoint(listed, str(folder / "sliced.ckpt"))
    written |= dict.fromkeys(("crc.ckpt", "sliced.ckpt"), describe(odd))
    written["st.safetensors"] = describe(odd)
    for mode in ("AES-GCM", "AES-CBC", "SM4-CBC"):
        file = str(folder / f"encrypted-{mode}.ckpt")
        mindspore.save_checkpoint(listed, file, enc_key=b"0123456789abcdef", enc_mode=mode)
    (folder / "written.json").write_text(json.dumps(written))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
