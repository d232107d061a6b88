"""Run with paddle in a process of its own; see with_torch.py."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.framework import io_utils


def describe(tensors: dict[str, Any]) -> dict[str, list[Any]]:
    described = {}
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(tensor.numpy()) if not isinstance(tensor, np.ndarray) else tensor
        # Paddle's arrays of 16 unsigned bits are bfloat16.
        dtype = "bfloat16" if array.dtype == np.uint16 else str(array.dtype)
        described[name] = [dtype, list(tensor.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    return described


def odd_tensors() -> dict[str, Any]:
    paddle.seed(0)
    layer = paddle.nn.Sequential(paddle.nn.Linear(30, 40), paddle.nn.LayerNorm(40))
    base = paddle.randn([12, 50])
    every = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    every += ["complex64", "complex128"]
    tensors = {name: (base > 0).astype("float32").astype(name) for name in every}
    extra = {
        "scalar": paddle.to_tensor(3.5),
        "empty": paddle.zeros([0, 4]),
        "transposed": base.t(),
        "base": base,
    }
    return {**layer.state_dict(), **tensors, **extra}


def main(folder: Path) -> None:
    for file, expected in json.loads((folder / "given.json").read_text()).items():
        assert describe(paddle.load(str(folder / file))) == expected, file
    odd = odd_tensors()
    written = {}
    for protocol in (2, 3, 4):
        paddle.save(odd, str(folder / f"state-{protocol}"), protocol=protocol)
        written[f"state-{protocol}"] = describe(odd)
        nested = {"epoch": 3, "layers": [odd["base"], {"bias": odd["float16"]}], "name": "x"}
        paddle.save(nested, str(folder / f"nested-{protocol}"), protocol=protocol)
        written[f"nested-{protocol}"] = describe({"layers.0": odd["base"], "layers.1.bias": odd["float16"]})
        dense = paddle.base.core.DenseTensor()
        dense.set(odd["base"].numpy(), paddle.CPUPlace())
        paddle.save([dense], str(folder / f"dense-{protocol}"), protocol=protocol)
        written[f"dense-{protocol}"] = describe({"0": odd["base"]})
        paddle.save(odd["base"], str(folder / f"one-{protocol}"), protocol=protocol)
        written[f"one-{protocol}"] = describe({odd["base"].name: odd["base"]})
    for dtype in ("float32", "bfloat16", "int64", "bool"):
        paddle.save(odd[dtype], str(folder / f"binary-{dtype}"), use_binary_format=True)
        written[f"binary-{dtype}"] = describe({"tensor": odd[dtype]})
    optimizer = paddle.optimizer.AdamW(parameters=[paddle.create_parameter([3, 4], "float32")])
    optimizer._parameter_list[0].sum().backward()
    optimizer.step()
    paddle.save(optimizer.state_dict(), str(folder / "optimizer"))
    moments = {n: t for n, t in optimizer.state_dict().items() if isinstance(t, paddle.Tensor)}
    written["optimizer"] = describe(moments)
    cut_into_slices(folder, odd, written)
    (folder / "written.json").write_text(json.dumps(written))


def cut_into_slices(folder: Path, odd: dict[str, Any], written: dict[str, Any]) -> None:
    """Paddle slices arrays over 1 GiB; here its own code does so over 1 KiB."""
    source = Path(io_utils.__file__).read_text().replace("2**30 - 1", "2**10 - 1")
    start = source.index("def _unpack_saved_dict")
    scope = dict(vars(io_utils))
    exec(source[start : source.index("def set_value")], scope)  # noqa: S102
    paddle.framework.io._unpack_saved_dict = scope["_unpack_saved_dict"]
    for protocol in (2, 3):
        paddle.save(odd, str(folder / f"sliced-{protocol}"), protocol=protocol)
        assert b"UnpackBigParamInfor@@" in (folder / f"sliced-{protocol}").read_bytes()
        written[f"sliced-{protocol}"] = describe(odd)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
