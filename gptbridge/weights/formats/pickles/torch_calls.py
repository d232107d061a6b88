"""Calls with which a pickle rebuilds torch's tensors and storages, as inert records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gptbridge.weights.formats.pickles.python_calls import Args
from gptbridge.weights.formats.pickles.values import Global, Refused, TorchStorage, TorchTensor

# Storage class -> its element type.
TORCH_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
_PENDING = ("conj", "neg")


def _tensor(args: Args) -> TorchTensor:
    """_rebuild_tensor and _rebuild_tensor_v2: storage, offset, shape, strides, gradient, hooks, metadata."""
    match args:
        case (TorchStorage() as storage, int(offset), tuple(shape), tuple(strides), *rest) if len(rest) <= 3:
            _refuse_pending(rest[2:])
            return TorchTensor(storage, storage.dtype, offset, shape, strides)
        case _:
            raise Refused("holds a malformed torch tensor")


def _tensor_v3(args: Args) -> TorchTensor:
    """_rebuild_tensor_v3: as v2, with the element type before the metadata."""
    match args:
        case (
            TorchStorage() as storage,
            int(offset),
            tuple(shape),
            tuple(strides),
            _,
            _,
            Global() as kind,
            *rest,
        ):
            if kind.dtype is None or len(rest) > 1:
                raise Refused(f"holds torch elements of type {kind.name}")
            _refuse_pending(rest)
            return TorchTensor(storage, kind.dtype, offset, shape, strides)
        case _:
            raise Refused("holds a malformed torch tensor")


def _refuse_pending(metadata: list[Any]) -> None:
    for flags in metadata:
        if flags is not None and type(flags) is not dict:
            raise Refused("holds a malformed torch tensor")
        pending = [name for name in _PENDING if flags and flags.get(name)]
        if pending:
            raise Refused(f"holds a tensor whose {pending[0]} is still to be applied")


def _parameter(args: Args) -> TorchTensor:
    match args:
        case (TorchTensor() as tensor, *rest) if len(rest) in (2, 3):
            return tensor
        case _:
            raise Refused("holds a malformed torch parameter")


def _subclass(args: Args) -> object:
    """_rebuild_from_type_v2: a tensor with Python attributes, which are left out."""
    match args:
        case (Global() as rebuild, Global() as kind, tuple(inner), _) if kind.name in _TENSOR_CLASSES:
            if rebuild.name in _TENSOR_REBUILDERS:
                return _TENSOR_REBUILDERS[rebuild.name](inner)
    raise Refused("holds a tensor of a class that is not torch's own")


def _size(args: Args) -> tuple[Any, ...]:
    match args:
        case (list(shape) | tuple(shape),):
            return tuple(shape)
        case _:
            raise Refused("holds a malformed torch.Size")


def _device(args: Args) -> str:
    if not 1 <= len(args) <= 2 or not all(isinstance(part, (str, int)) for part in args):
        raise Refused("holds a malformed torch.device")
    return ":".join(str(part) for part in args)


def load_torch_storage(reference: object) -> TorchStorage:
    """Return the storage that torch's persistent id names: zip files give 5 parts, legacy files 6."""
    match reference:
        case ("storage", Global(dtype=str(dtype)), str(key), str(), int(count), *rest) if len(rest) <= 1:
            if count < 0:
                raise Refused(f"holds a storage of {count} elements")
            match rest:
                case [] | [None]:
                    return TorchStorage(dtype, key, count)
                case [(str(view_key), int(start), int(length))]:
                    return TorchStorage(dtype, key, count, (view_key, start, length))
    raise Refused("refers to something else than a storage")


_TENSOR_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter")
_TENSOR_REBUILDERS: Mapping[str, Callable[[Args], object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
FUNCTIONS: Mapping[str, Callable[[Args], object] | None] = {
    **_TENSOR_REBUILDERS,
    **dict.fromkeys(_TENSOR_CLASSES),
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": _size,
    "torch.device": _device,
}
