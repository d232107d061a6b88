"""One rank's model in MindSpore, and its optimizer, behind the protocols of `gptbridge.session`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops
from numpy.typing import NDArray

from gptbridge.process.world import World
from gptbridge.rules.rows import CachedDecoder
from gptbridge.rules.stepping import Labels, Stepper
from gptbridge.session import Device, Kind, Shard
from gptbridge.weights.held import TIED
from gptbridge.weights.shards import decay_of_tensors, held_tensors, shards_of
from gptbridge_mindspore.cache import Cache, CachedLayers, LastLogits
from gptbridge_mindspore.collectives import Group, all_reduce_each
from gptbridge_mindspore.dropout import all_sites
from gptbridge_mindspore.gradients import LossAndGradients
from gptbridge_mindspore.loss import LinearCrossEntropy, SquaredError
from gptbridge_mindspore.model import GPT, LAYOUT
from gptbridge_mindspore.optimizer import Optimizer
from gptbridge_mindspore.parallel import Cut, Groups, cut_of
from gptbridge_mindspore.parts import HIDDEN, KERNELS
from gptbridge_mindspore.shapes import pad, usual_size
from gptbridge_mindspore.sharding import Rows, Slices, scatter_each
from gptbridge_specs import RunSpec

COMPUTE = {"fp32": ms.float32, "bf16": ms.bfloat16, "fp16": ms.float16}
ALONE = World()


class MindSporeMemory:
    """How MindSpore's tensors are reached from the host: a `gptbridge.weights.shards.Memory`.

    The tensors hold `factor` times what they stand for. `known` has the arrays that share the memory of some
    of them, by their `id`, until these change.
    """

    def __init__(self, factor: float, known: dict[int, NDArray[np.float32]]) -> None:
        self._factor, self._known = np.float32(factor), known

    def download(self, tensor: Tensor) -> NDArray[np.float32]:
        """Return the tensor as float32; on a CPU it may share the tensor's memory."""
        array = self._known.get(id(tensor))
        if array is None:
            array = (tensor if tensor.dtype == ms.float32 else tensor.astype(ms.float32)).asnumpy()
        return array if self._factor == 1 else array / self._factor

    def upload(self, tensor: Tensor, array: NDArray[np.float32]) -> None:
        """Fill the tensor from a float32 array of its shape."""
        self._known.pop(id(tensor), None)
        content = np.ascontiguousarray(array * self._factor, np.float32)
        ops.assign(
            tensor, Tensor(content).astype(tensor.dtype)
        )  # in place: a compiled graph holds on to the memory it was given


class SlicedMemory:
    """The same, for tensors of which this rank holds some rows."""

    def __init__(self, memory: MindSporeMemory) -> None:
        self._memory = memory

    def download(self, rows: Rows) -> NDArray[np.float32]:
        """Return the rows as float32."""
        return self._memory.download(rows.tensor)[: rows.count]

    def upload(self, rows: Rows, array: NDArray[np.float32]) -> None:
        """Fill the rows."""
        more = rows.tensor.shape[0] - rows.count
        self._memory.upload(rows.tensor, np.pad(array, ((0, more), *((0, 0),) * (array.ndim - 1))))


class MindSporeModel:
    """A `gptbridge.session.LanguageModel`: its matrices are held in the type of the matrix products."""

    def __init__(self, spec: RunSpec, device: Device, world: World = ALONE) -> None:
        self._spec = spec
        self._place = world.place
        self._groups: Groups = world.handle or Groups()
        self._dtype = COMPUTE[spec.precision.compute]
        self._kernels = KERNELS[device.kind]
        self._cut = cut_of(spec.model, self._place, self._groups)
        self._head = self._new_head()
        self._token_losses, self._logits = ms.jit(self._head.token_losses), ms.jit(self._head.logits)
        self._weights = self._open()
        self._known: dict[int, NDArray[np.float32]] = {}

    def _open(self) -> dict[str, Parameter]:
        """Build the graphs that read the model; return the weights that this rank holds."""
        self._model = self._built(self._cut, range(self._spec.model.num_layers))
        self._forward = ms.jit(self._model)
        self._step = ms.jit(CachedLayers(self._spec.model, self._model, self._dtype))
        self._after_last = ms.jit(LastLogits(self._model, self._head))
        return self._model.weights()

    def _new_head(self, *, frozen: bool = False) -> LinearCrossEntropy:
        """Return what is after the model; jit of a method makes it what other graphs find in a Cell."""
        kind = SquaredError if self._spec.task.regression else LinearCrossEntropy
        return kind(self._dtype, self._cut, self._spec.model.vocab_size, frozen=frozen)

    def _built(self, cut: Cut, layers: range) -> GPT:
        model = GPT(
            self._spec.model,
            layers,
            first=self._place.first,
            last=self._place.last,
            recompute=self._spec.training.recompute,
            dtype=self._dtype,
            kernels=self._kernels,
            cut=cut,
            task=self._spec.task,
        )
        for weight in model.weights().values():
            if weight.ndim > 1:
                weight.set_dtype(self._held())
        return model

    def shards(self, kind: Kind = "weight") -> list[Shard]:
        """Return what this rank holds of each tensor of `kind`."""
        spec, tensors, trained = self._spec, self._tensors(kind), kind != "weight"
        memory = MindSporeMemory(self._kept(kind), self._known)
        if not self._sliced(kind):
            return shards_of(
                spec.model, LAYOUT, tensors, memory, self._place, task=spec.task, trained=trained
            )
        held = held_tensors(spec.model, LAYOUT, tensors, self._place, sliced=True)
        rows = {name: Rows(tensor, held[name].shape[0]) for name, tensor in tensors.items()}
        return shards_of(spec.model, LAYOUT, rows, SlicedMemory(memory), self._place, sliced=True)

    def token_losses(
        self, inputs: NDArray[np.int32], labels: Labels, at: NDArray[np.int32] | None = None
    ) -> NDArray[np.float32]:
        """Return the negative log likelihood of each of (B, T) `labels`; of (B, K) at positions `at`."""
        losses = []
        for part, rows in self._rows(inputs, at):
            wanted = labels[part]
            padded = Tensor(pad(wanted.ravel(), (rows.shape[0],)))
            found = self._at_the_end(self._token_losses, rows, padded).asnumpy()
            losses.append(found[: wanted.size].reshape(wanted.shape))
        return np.concatenate(losses)

    def logits(self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Return (B, T, V) logits of (B, T) tokens; (B, K, V) at positions `at` (B, K)."""
        width = (tokens if at is None else at).shape[1]
        logits = []
        for part, rows in self._rows(tokens, at):
            found = self._at_the_end(self._logits, rows).asnumpy()
            samples = len(tokens[part])
            logits.append(found[: samples * width].reshape(samples, width, -1))
        return np.concatenate(logits)

    def decoder(self, rows: int, capacity: int) -> CachedDecoder[Cache]:
        """Return a decoder of `rows` empty rows of at most `capacity` tokens."""
        layers = sum(map(len, self._place.layers(self._spec.model.num_layers)))
        return CachedDecoder(
            self._decode, Cache(self._spec.model, rows, capacity, len(self._cut.heads), layers)
        )

    def close(self) -> None:
        """Free the device."""
        self.__dict__.clear()

    def _decode(self, tokens: NDArray[np.int32], cache: Cache) -> NDArray[np.float32]:
        """Return (R, V) logits after the last of the (R, T) `tokens` that `cache` was prepared for."""
        held = cache.growing()
        logits = self._stepped(cache.spread(tokens), cache, held)
        cache.update(held)
        return np.asarray(logits.asnumpy()[cache.at], np.float32)

    def _stepped(self, ids: Tensor, cache: Cache, held: list[Tensor]) -> Tensor:
        """Return the logits of `_decode`, padded; `held`, of the rows that grow, gets keys and values."""
        x = self._step(ids, cache.positions, cache.bias, cache.slots, *held)
        return self._after_last(x, cache.last)

    def _hidden(self, tokens: Tensor, positions: Tensor, bias: Tensor) -> Tensor:
        """Return what the output projection takes, (B, T, H)."""
        return self._forward(tokens, positions, bias)

    def _at_the_end(self, head: Callable[..., Tensor], rows: Tensor, *others: Tensor) -> Tensor:
        """Return what the output projection makes of hidden rows (R, H)."""
        return head(rows, self._model.head, *others)

    def _held(self) -> Any:
        return self._dtype

    def _tensors(self, kind: Kind) -> Mapping[str, Tensor]:
        return self._weights if kind == "weight" else {}

    def _sliced(self, kind: Kind) -> bool:
        """Return whether tensors of a kind are held by rows."""
        return self._spec.parallel.sharding_stage == 3 and self._groups.sharding is not None

    def _kept(self, kind: Kind) -> float:
        return 1.0

    def _rows(
        self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of (B, T) tokens, and their hidden rows at the positions wanted, both padded."""
        spec, most = self._spec, self._spec.micro_batch_size
        length = usual_size(tokens.shape[1], spec.training.seq_length, spec.model.max_position_embeddings)
        if at is None:
            at = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        for start in range(0, len(tokens), most):
            part = slice(start, start + most)
            shape = usual_size(len(tokens[part]), most, smallest=1), length
            arrays = (pad(tokens[part], shape), positions(shape), causal_bias(length))
            hidden = self._hidden(*map(Tensor, arrays))
            wanted = at[part] + length * np.arange(len(at[part]), dtype=np.int32)[:, None]
            padded = Tensor(pad(wanted.ravel(), (usual_size(wanted.size),)))
            yield part, ops.gather(hidden.reshape(-1, hidden.shape[-1]), padded, 0)


class MindSporeTrainer(MindSporeModel, Stepper[Tensor]):
    """A `gptbridge.session.Trainer`. Its weights are fp32."""

    def __init__(self, spec: RunSpec, device: Device, world: World = ALONE) -> None:
        MindSporeModel.__init__(self, spec, device, world)
        Stepper.__init__(self, spec)
        stage, sharding = spec.parallel.sharding_stage, self._groups.sharding
        self._by_rows = sharding if stage > 0 else None
        decays = decay_of_tensors(spec.model, LAYOUT, self._weights, spec.optimizer, spec.task)
        for name, weight in self._weights.items():
            weight.requires_grad = name in decays
        self._trained = {name: self._weights[name] for name in decays}
        whole = self._by_rows is not None and stage < 3
        self._slices = Slices(self._by_rows, self._trained) if self._by_rows and whole else None
        updated = self._slices.parameters if self._slices else self._trained
        by_rows = self._by_rows is not None
        held = held_tensors(spec.model, LAYOUT, updated, self._place, sliced=by_rows, task=spec.task)
        owned = [part.owned for part in held.values()]
        self._optimizer = Optimizer(spec.optimizer, updated, decays, owned, self._groups)
        self._uncut = [name for name, part in held.items() if part.native.axes.cut is None]
        self._between = cut_of(spec.model, self._place, self._groups, sequence=spec.parallel.sequence)
        self._prepare()
        self._gradients: dict[str, Tensor] = {}
        self._shares_memory = device.kind == "cpu"

    def _prepare(self) -> None:
        """Build the graphs that train."""
        spec, trained = self._spec, self._model
        if self._between.sequence:
            trained = self._built(self._between, trained.layers)
            trained.adopt(self._weights)
        sites = all_sites(spec.model, spec.task.lora)
        self._dropout = self._kernels.dropout(spec.model, self._between, sites)
        head = self._new_head(frozen=not trained.head.requires_grad)
        graph = LossAndGradients(spec, trained, head, self._dropout)
        self._loss_and_gradients = ms.jit(graph)

    def shards(self, kind: Kind = "weight") -> list[Shard]:
        """Return what this rank holds of each tensor of `kind`.

        To ask a tensor for its memory waits for all that is queued, and a save reads beside a step: so
        weights and moments are asked now, where their memory is the host's.
        """
        if self._shares_memory and kind != "gradient":
            self._known |= {id(tensor): tensor.asnumpy() for tensor in self._tensors(kind).values()}
        return super().shards(kind)

    def clear_gradients(self) -> None:
        """Drop every gradient."""
        self._gradients = {}

    def backward(
        self,
        inputs: NDArray[np.int32],
        labels: Labels,
        mask: NDArray[np.bool_],
        factor: float,
        seed: int,
        starts: NDArray[np.int32] | None = None,
    ) -> Tensor:
        """Add the gradient of `factor` x the masked sum of losses; return that sum."""
        drawn = self._dropout.arguments(seed, inputs.shape)
        arrays = self._arguments(inputs, labels, mask * np.float32(factor), starts)
        loss, *found = self._loss_and_gradients(*arrays, *drawn)
        self._add(list(self._trained), found)
        return loss / factor

    def _arguments(
        self,
        inputs: NDArray[np.int32],
        labels: Labels,
        share: NDArray[np.float32],
        starts: NDArray[np.int32] | None,
    ) -> list[Tensor]:
        """Return a micro-batch for a graph: tokens, their positions here, labels, shares, and the bias."""
        length = self._between.padded(inputs.shape[1])
        more = ((0, 0), (0, length - inputs.shape[1]))
        placed, bias = positions((len(inputs), length)), causal_bias(length)
        if starts is not None:
            starts = np.pad(starts, more)
            placed, bias = placed - starts, bias + HIDDEN * (np.arange(length) < starts[..., None])
        placed = np.minimum(placed, self._spec.model.max_position_embeddings - 1)
        padded = [np.pad(array, more) for array in (inputs, labels, share)]
        arrays = (padded[0], placed[:, self._between.tokens(length)], *padded[1:], bias.astype(np.float32))
        return [Tensor(np.ascontiguousarray(array)) for array in arrays]

    def _add(self, names: Sequence[str], found: Sequence[Tensor]) -> None:
        """Add gradients of weights, by their names."""
        if self._by_rows is not None and self._spec.parallel.sharding_stage > 1:
            found = scatter_each(found, self._by_rows)
        for name, gradient in zip(names, found, strict=True):
            held = self._gradients.get(name)
            self._gradients[name] = gradient if held is None else held + gradient

    def combine(self, total: Tensor) -> Tensor:
        """Sum the gradients over the ranks that each have a part of them; return the sum of all totals."""
        groups, found = self._groups, {name: self._gradients[name] for name in self._trained}
        if self._by_rows is not None and self._spec.parallel.sharding_stage == 1:
            found = dict(zip(found, scatter_each(list(found.values()), self._by_rows), strict=True))
        several = groups.replicas if self._by_rows is None else groups.data
        found = dict(zip(found, all_reduce_each(list(found.values()), several), strict=True))
        if self._between.sequence:
            found |= summed(found, self._uncut, groups.tensor)
        if self._spec.model.tie_word_embeddings:
            found |= summed(found, [name for name in found if name == TIED], groups.ends)
        self._gradients = found
        return all_reduce_each([total], groups.all)[0]

    def scale_gradients(self, factor: float) -> None:
        """Multiply every gradient by `factor`."""
        self._gradients = {name: gradient * factor for name, gradient in self._gradients.items()}

    def clip(self) -> Tensor:
        """Return the norm of the gradients; `update` clips them."""
        norm, self._factor = self._optimizer.norm(list(self._gradients.values()))
        return norm

    def update(self, learning_rate: float, count: int) -> None:
        """Change the weights by their gradients."""
        self._known.clear()
        if self._slices:
            self._slices.take()
        self._optimizer.update(list(self._gradients.values()), self._factor, learning_rate, count)
        if self._slices:
            self._slices.spread()

    def measure(self, *scalars: Tensor) -> Callable[[], list[float]]:
        """Return a function that waits for `scalars`."""
        return lambda: [float(scalar) for scalar in scalars]

    def _held(self) -> Any:
        return ms.float32

    def _tensors(self, kind: Kind) -> Mapping[str, Tensor]:
        if kind == "gradient":
            return self._gradients
        return super()._tensors(kind) if kind == "weight" else self._optimizer.moments(kind)

    def _sliced(self, kind: Kind) -> bool:
        return super()._sliced(kind) if kind == "weight" else self._by_rows is not None

    def _kept(self, kind: Kind) -> float:
        return self._optimizer.kept.get(kind, 1.0)


def summed(tensors: Mapping[str, Tensor], names: Sequence[str], group: Group | None) -> dict[str, Tensor]:
    """Return the sums over the ranks of some of the tensors."""
    return dict(zip(names, all_reduce_each([tensors[name] for name in names], group), strict=True))


def positions(shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Return the (B, T) positions of samples that begin at 0."""
    return np.ascontiguousarray(np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape))


@cache
def causal_bias(length: int) -> NDArray[np.float32]:
    """Return the (1, T, T) term that hides later positions from the softmax."""
    return np.triu(np.full((1, length, length), HIDDEN, np.float32), 1)
