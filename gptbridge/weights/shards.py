"""Shards of the tensors that a backend computes with, and moving weights in and out of them.

A backend is a dialect in memory: its layout says which canonical weights each of its tensors holds, and
how. What is the same for all of them, transposing, taking q, k and v out of one matrix, checks of names
and shapes, is done here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import BackendBroken
from gptbridge.process.place import Place
from gptbridge.session import Shard
from gptbridge.weights.architecture import parameters, sizes, weight_axes, weight_decay
from gptbridge.weights.held import ONLY, HeldPiece, HeldTensor, held_names
from gptbridge.weights.layouts.arrays import Read
from gptbridge.weights.layouts.axes import Axes
from gptbridge.weights.layouts.boxes import Box, sizes_of
from gptbridge.weights.layouts.rules import Layout
from gptbridge_specs import ModelSpec
from gptbridge_specs.run import OptimizerSpec, TaskSpec

Array = NDArray[np.float32]

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Memory(Protocol[T_contra]):
    """How a framework's tensors are reached from the host."""

    def download(self, tensor: T_contra, /) -> Array:
        """Return the tensor as float32, writable; it may share the tensor's memory."""

    def upload(self, tensor: T_contra, array: Array, /) -> None:
        """Fill the tensor, whatever its type, from a float32 array of its shape."""


def shards_of(
    model: ModelSpec,
    layout: Layout,
    tensors: Mapping[str, T],
    memory: Memory[T],
    place: Place = ONLY,
    *,
    sliced: bool = False,
    task: TaskSpec | None = None,
    trained: bool = False,
) -> list[Shard]:
    """Return the shards of the canonical weights, in canonical order, that `tensors` hold under `layout`.

    `tensors` have all weights of `model` for `task`, or, with `trained`, something of those that are
    trained. At a `place` of several, a tensor is the part that tensor parallelism leaves it, and, `sliced`,
    those of its rows that sharding does: `chunk` of its first dimension. A slice that ends inside a head is
    several shards. No tensors have no shards: gradients before the first step, moments of SGD. BackendBroken
    for a tensor that the layout does not know, or a weight of this rank that no tensor holds.
    """
    if not tensors:
        return []
    found: dict[str, list[Shard]] = {}
    for name, held in held_tensors(model, layout, tensors, place, sliced=sliced, task=task).items():
        canonicals = held.native.canonicals
        found |= {canonical: [] for canonical in canonicals}
        for piece in held.pieces():
            found[canonicals[piece.number]].append(_shard(held, piece, tensors[name], memory))
    names = held_names(model, place, task, trained=trained)
    for name in names:
        if name not in found:
            raise BackendBroken("is held by no tensor of the backend", where=name)
    return [shard for name in names for shard in found[name]]


def held_tensors(
    model: ModelSpec,
    layout: Layout,
    names: Iterable[str],
    place: Place = ONLY,
    *,
    sliced: bool = False,
    task: TaskSpec | None = None,
) -> dict[str, HeldTensor]:
    """Return what the rank at `place` holds of each of a backend's tensors, by name: its shape, whose it is.

    BackendBroken for a name that the layout does not know.
    """
    whole, found = sizes(model, task), {}
    for name in names:
        native = layout.find(name)
        if native is None:
            raise BackendBroken("is no weight of this model, by the backend's layout", where=name)
        found[name] = HeldTensor(native, whole, place, sliced)
    return found


def decay_of_tensors(
    model: ModelSpec,
    layout: Layout,
    names: Iterable[str],
    optimizer: OptimizerSpec,
    task: TaskSpec | None = None,
) -> dict[str, float]:
    """Return the decoupled weight decay of each of a backend's tensors that is trained, by name."""
    decays = {p.name: weight_decay(p, optimizer) for p in parameters(model, task) if p.trainable}
    natives = {name: native for name in names if (native := layout.find(name)) is not None}
    return {
        n: decays[native.canonicals[0]] for n, native in natives.items() if native.canonicals[0] in decays
    }


def load(shards: Sequence[Shard], read: Read) -> None:
    """Fill each of `shards` with its slice of what `read` has."""
    for shard in shards:
        shard.write(read(shard.name, shard.box))


def arrays(shards: Sequence[Shard]) -> dict[str, Array]:
    """Return what `shards` hold, by canonical name."""
    return {shard.name: shard.read() for shard in shards}


def from_arrays(model: ModelSpec, weights: Mapping[str, Array], task: TaskSpec | None = None) -> Read:
    """Return a function that reads slices of whole canonical arrays.

    It raises KeyError for an absent name, ValueError for a wrong shape.
    """
    whole = sizes(model, task)

    def read(name: str, box: Box) -> Array:
        order, array = weight_axes(name), weights[name]
        if array.shape != order.shape(whole):
            raise ValueError(f"{name} has shape {array.shape}, the model {order.shape(whole)}")
        return _slice(array, order, whole, box)

    return read


def _slice(array: Array, order: Axes, whole: Mapping[str, int], box: Box) -> Array:
    chosen = order.spread(array, whole)[tuple(slice(*box[letter]) for letter in order.letters)]
    return chosen.reshape(order.shape({letter: stop - start for letter, (start, stop) in box.items()}))


def _shard(held: HeldTensor, piece: HeldPiece, tensor: T, memory: Memory[T]) -> Shard:
    canonical = held.native.canonicals[piece.number]
    order, lengths = weight_axes(canonical), sizes_of(piece.box)
    shape, turned = order.shape(lengths), held.native.axes.parts[piece.number].order_of(order)

    def read() -> Array:
        part = piece.view(memory.download(tensor)).transpose(turned)
        return np.array(part, order="C").reshape(shape)

    def write(array: Array) -> None:
        if array.shape != shape:
            raise ValueError(f"{canonical} has shape {array.shape}, this rank's part of it {shape}")
        # else the tensor's other parts are kept
        content = np.empty(held.shape, np.float32) if piece.whole else memory.download(tensor)
        piece.view(content).transpose(turned)[...] = order.spread(array, lengths)
        memory.upload(tensor, content)

    return Shard(canonical, order, piece.box, owned=held.owned, read=read, write=write)
