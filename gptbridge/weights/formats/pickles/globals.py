"""The exact table of names that a weight file's pickle may mention, and the data that each becomes.

A table's function gets the arguments of the pickle's call, checks them and returns plain data or an inert
record of values.py. None calls, imports or allocates what the pickle asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gptbridge.errors import printable
from gptbridge.weights.formats.pickles import numpy_calls, python_calls, torch_calls
from gptbridge.weights.formats.pickles.python_calls import Args, plain_object
from gptbridge.weights.formats.pickles.torch_calls import TORCH_STORAGES
from gptbridge.weights.formats.pickles.values import (
    Attributes,
    Global,
    NumpyArray,
    NumpyDType,
    Refused,
    has_names,
    kind_of,
)
from gptbridge.weights.formats.tensor import STORAGE_DTYPES

# Enumerations that trainers leave in the arguments and state beside weights; kept as text.
_ENUMERATIONS = {
    "megatron.core.enums": ("ModelType",),
    "megatron.enums": ("PositionEmbeddingType",),
    "megatron.model.enums": ("ModelType", "LayerType", "AttnType", "AttnMaskType", "PositionEmbeddingType"),
    "megatron.legacy.model.enums": ("ModelType", "LayerType", "AttnType", "AttnMaskType"),
    "megatron.core.transformer.enums": (
        "ModelType",
        "LayerType",
        "AttnType",
        "AttnMaskType",
        "AttnBackend",
        "CudaGraphScope",
    ),
    "megatron.core.rerun_state_machine": ("RerunMode", "RerunState", "RerunDiagnostic"),
    "deepspeed.runtime.zero.config": ("ZeroStageEnum",),
    "signal": ("Signals",),
}
# Classes of theirs that hold settings or an optimizer's state: attributes and no more.
_PLAIN_CLASSES = {
    "megatron.core.optimizer.optimizer_config": (
        "OptimizerConfig",
        "AdamOptimizerConfig",
        "SGDOptimizerConfig",
    ),
    "deepspeed.runtime.fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
    "deepspeed.utils.tensor_fragment": ("fragment_address",),
}
# Objects whose state is no weight, whatever it is: the extra state of fp8 layers, a random generator.
_OPAQUE = ("_io.BytesIO", "io.BytesIO", "torch._C.Generator")


def _enum(name: str) -> Callable[[Args], object]:
    def make(args: Args) -> str:
        match args:
            case (bool() | int() | str(),):
                return f"{name}({printable(args[0])})"
            case _:
                raise Refused(f"makes a {name} of something else than a value")

    return make


def _generator(args: Args) -> Attributes:
    """torch.Generator(device)."""
    match args:
        case () | (str(),):
            return Attributes("torch._C.Generator")
        case _:
            raise Refused("makes a random generator of something else than a device")


def build_state(target: object, state: object) -> None:
    """Carry out BUILD: give an object that a call made its state."""
    match target, state:
        case NumpyArray(content=None), (
            int(),
            tuple(shape),
            NumpyDType() as dtype,
            bool() | int() as fortran,
            raw,
        ):
            target.shape, target.dtype, target.fortran, target.content = shape, dtype, bool(fortran), raw
        case NumpyDType(), (int(), "<" | "|" | "=" | ">" as order, None, None, None, *_):
            target.order = order
        case Attributes(values=empty), dict(values) if not empty and has_names(values):
            target.values = values
        case Attributes(name=name), tuple() if name in _OPAQUE:
            pass
        case dict(), dict():
            pass  # Python attributes of an OrderedDict, such as torch's _metadata: not weight data.
        case _:
            raise Refused(f"sets the state of a {kind_of(target)} to a {kind_of(state)}")


def _table() -> dict[tuple[str, str], Global]:
    functions = {**python_calls.FUNCTIONS, **numpy_calls.FUNCTIONS, **torch_calls.FUNCTIONS}
    entries = [Global(name, call) for name, call in functions.items()]
    for module in ("torch", "torch.cuda", "torch.storage"):
        entries += [Global(f"{module}.{name}", None, dtype) for name, dtype in TORCH_STORAGES.items()]
    entries += [Global(f"torch.{dtype}", None, dtype) for dtype in STORAGE_DTYPES]
    for module, names in _ENUMERATIONS.items():
        entries += [Global(f"{module}.{name}", _enum(name)) for name in names]
    plain = [f"{module}.{name}" for module, names in _PLAIN_CLASSES.items() for name in names]
    entries += [Global(name, plain_object(name)) for name in plain]
    entries += [Global("numpy.dtypes.UInt32DType"), Global("torch._C.Generator", _generator)]
    return {(module, name): entry for entry in entries for module, _, name in [entry.name.rpartition(".")]}


GLOBALS: Mapping[tuple[str, str], Global] = _table()
