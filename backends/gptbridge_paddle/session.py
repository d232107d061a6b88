"""One rank's model in Paddle, and its optimizer, behind the protocols of `gptbridge.session`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from gptbridge.process.world import World
from gptbridge.rules.pipelining import turns
from gptbridge.rules.rows import CachedDecoder
from gptbridge.rules.stepping import Labels, Stepper
from gptbridge.session import Batch, Device, Kind, Shard
from gptbridge.weights.architecture import outputs
from gptbridge.weights.held import TIED
from gptbridge.weights.shards import decay_of_tensors, held_tensors, shards_of
from gptbridge_paddle.cache import Cache
from gptbridge_paddle.collectives import Cut, all_gather, all_reduce, all_reduce_each, meet
from gptbridge_paddle.loss import linear_cross_entropy, token_losses
from gptbridge_paddle.model import GPT, LAYOUT
from gptbridge_paddle.optimizer import Optimizer
from gptbridge_paddle.parallel import Groups
from gptbridge_paddle.pipeline import Pipeline
from gptbridge_paddle.sharding import Sharding, reduce_gradient, spread, trained
from gptbridge_specs import RunSpec

UPLOADED = 1 << 20  # numbers at a time
ALONE = World()
_SCALE = re.compile(r"ln_[12f]\.weight$")
COMPUTE = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class PaddleMemory:
    """How Paddle's tensors are reached from the host: a `gptbridge.weights.shards.Memory`."""

    def download(self, tensor: Tensor) -> NDArray[np.float32]:
        """Return the tensor as float32."""
        return _to_host(tensor)

    def upload(self, tensor: Tensor, array: NDArray[np.float32]) -> None:
        """Fill the tensor from a float32 array of its shape, in parts: each is there in fp32 first."""
        rows = max(1, UPLOADED // (array.size // len(array)))
        with paddle.no_grad():
            for start in range(0, len(array), rows):
                part = slice(start, start + rows)
                tensor[part] = paddle.to_tensor(array[part]).astype(tensor.dtype)


class PaddleModel:
    """A `gptbridge.session.LanguageModel`: weights in the type that the model computes in.

    A trainer's are fp32, and lower precision happens in auto_cast regions.
    """

    def __init__(
        self, spec: RunSpec, device: Device, world: World = ALONE, *, weight_dtype: str | None = None
    ) -> None:
        self._spec = spec
        self._place = world.place
        self._groups: Groups = world.handle or Groups()
        self._cut = Cut.of(self._place, self._groups)
        stage = spec.parallel.sharding_stage if self._groups.sharding else 0
        self._sharding = Sharding(self._groups.sharding, stage)
        self._device = device.handle
        self._dtype = COMPUTE[spec.precision.compute]
        self._outputs = outputs(spec.model, spec.task)
        runs = self._place.layers(spec.model.num_layers)
        with _default_dtype(weight_dtype or self._dtype):  # what is built in fp32 and cast is there twice
            self._runs = [
                GPT(
                    spec.model,
                    layers,
                    first=self._place.first and number == 0,
                    last=self._place.last and number == len(runs) - 1,
                    recompute=spec.training.recompute,
                    cut=self._cut,
                    sharding=self._sharding,
                    task=spec.task,
                )
                for number, layers in enumerate(runs)
            ]
        self._pipeline = Pipeline(self._runs, self._groups)

    def shards(self, kind: Kind = "weight") -> list[Shard]:
        """Return what this rank holds of each tensor of `kind`."""
        return shards_of(
            self._spec.model,
            LAYOUT,
            self._tensors(kind),
            PaddleMemory(),
            self._place,
            sliced=self._sharding.stage > (2 if kind == "weight" else 0),
            task=self._spec.task,
            trained=kind != "weight",
        )

    def token_losses(
        self, inputs: NDArray[np.int32], labels: Labels, at: NDArray[np.int32] | None = None
    ) -> NDArray[np.float32]:
        """Return the negative log likelihood of each of (B, T) `labels`; of (B, K) at positions `at`."""

        def losses(hidden: Tensor) -> Tensor:
            hidden, wanted = self._at(hidden, at).flatten(0, 1), self._to_device(labels).flatten()
            return token_losses(hidden, self._runs[-1].head, wanted, self._runs[-1].outputs)

        return self._read(losses, inputs, (labels.size,)).reshape(labels.shape)

    def logits(self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Return (B, T, V) logits of (B, T) tokens; (B, K, V) at positions `at` (B, K)."""
        shape = (*(tokens if at is None else at).shape, self._outputs)
        return self._read(lambda hidden: self._project(self._at(hidden, at)), tokens, shape)

    def decoder(self, rows: int, capacity: int) -> CachedDecoder[Cache]:
        """Return a decoder of `rows` empty rows of at most `capacity` tokens."""
        model, (first, stop) = self._spec.model, self._cut.part(self._spec.model.num_attention_heads)
        layers = [layer for run in self._place.layers(model.num_layers) for layer in run]
        cache = Cache(layers, stop - first, model.head_size, rows, capacity, self._dtype)
        return CachedDecoder(self._decode, cache)

    def close(self) -> None:
        """Free the device."""
        del self._runs, self._pipeline
        if not self._device.is_cpu_place():
            paddle.device.cuda.empty_cache()

    def _tensors(self, kind: Kind) -> Mapping[str, Tensor]:
        return self._parameters() if kind == "weight" else {}

    def _parameters(self) -> dict[str, Tensor]:
        return {name: parameter for run in self._runs for name, parameter in run.named_parameters()}

    def _decode(self, tokens: NDArray[np.int32], cache: Cache) -> NDArray[np.float32]:
        """Return (R, V) logits after the last of the (R, T) `tokens` that `cache` was prepared for."""

        def last(hidden: Tensor) -> Tensor:
            return self._project(paddle.take_along_axis(hidden, cache.last.reshape([-1, 1, 1]), 1)[:, 0])

        return self._read(last, tokens, (len(tokens), self._spec.model.vocab_size), cache)

    def _read(
        self,
        function: Callable[[Tensor], Tensor],
        tokens: NDArray[np.int32],
        shape: tuple[int, ...],
        cache: Cache | None = None,
    ) -> NDArray[np.float32]:
        """Return `function`, an array of `shape`, of the hidden states (B, T, H) of (B, T) tokens.

        They are computed without dropout and without a graph; all stages of a pipeline get the result.
        """
        positions = cache.positions if cache else None
        meet(self._groups.pipeline, self._groups.tensor)
        with paddle.no_grad(), self._autocast():
            self._set_mode(None)
            hidden = self._pipeline.read(
                lambda run, x: run(x, positions, cache), self._to_device(tokens), self._stream(*tokens.shape)
            )
            if self._groups.pipeline is None:
                return _to_host(function(hidden))
            meet(self._groups.pipeline)
            # what the other stages add is 0
            found = function(hidden).astype("float32") if self._place.last else paddle.zeros(shape)
            return _to_host(all_reduce(found, self._groups.pipeline))

    def _set_mode(self, length: int | None) -> None:
        """Let the model train on samples of `length` tokens; None: let it be read."""
        self._cut.length = length if self._spec.parallel.sequence else None
        for run in self._runs:
            if run.training == (length is None):  # it goes through all layers, which takes a millisecond
                run.eval() if length is None else run.train()

    def _stream(self, samples: int, tokens: int) -> list[int]:
        """Return the shape of what one stage passes to the next."""
        start, stop = (0, tokens) if self._cut.length is None else self._cut.part(tokens)
        return [samples, stop - start, self._spec.model.hidden_size]

    def _autocast(self) -> Any:
        enabled = self._dtype != "float32"
        return paddle.amp.auto_cast(enable=enabled, dtype=self._dtype if enabled else "float16", level="O1")

    def _at(self, hidden: Tensor, at: NDArray[np.int32] | None) -> Tensor:
        """Return the hidden states (B, K, H) at positions `at` (B, K); all of them for None."""
        return hidden if at is None else paddle.take_along_axis(hidden, self._to_device(at).unsqueeze(2), 1)

    def _project(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states over the whole vocabulary."""
        head = self._runs[-1].head
        if hidden.place.is_cpu_place() and hidden.ndim == 2 and 4 < len(hidden) < 16:
            logits = paddle.matmul(head, hidden, transpose_y=True).t()  # MKL with 8 rows: 26 ms, else 40
        else:
            logits = paddle.matmul(hidden, head, transpose_y=True)
        lengths = self._cut.lengths(self._outputs)
        return all_gather(logits, self._groups.tensor, logits.ndim - 1, lengths)

    def _to_device(self, array: NDArray[np.generic]) -> Tensor:
        return paddle.to_tensor(np.ascontiguousarray(array), place=self._device)


class PaddleTrainer(PaddleModel, Stepper[Tensor]):
    """A `gptbridge.session.Trainer`."""

    def __init__(self, spec: RunSpec, device: Device, world: World = ALONE) -> None:
        PaddleModel.__init__(self, spec, device, world, weight_dtype="float32")
        Stepper.__init__(self, spec)
        parameters = self._parameters()
        decays = decay_of_tensors(spec.model, LAYOUT, parameters, spec.optimizer, spec.task)
        # With a frozen scale, Paddle's layer_norm returns a wrong gradient of its input.
        self._scales = [p for name, p in parameters.items() if name not in decays and _SCALE.search(name)]
        for name, parameter in parameters.items():
            parameter.stop_gradient = name not in decays and not _SCALE.search(name)
        trains = {name: trained(parameters[name]) for name in decays}
        held = held_tensors(
            spec.model, LAYOUT, trains, self._place, sliced=self._sharding.stage > 0, task=spec.task
        )
        owned = [name for name in trains if held[name].owned]
        self._optimizer = Optimizer(spec.optimizer, trains, decays, owned, self._groups.all)
        self._trains = trains
        # Where the tokens are cut, each tensor rank has seen its own alone.
        self._by_tokens = [
            name for name in trains if spec.parallel.sequence and held[name].native.axes.cut is None
        ]
        self._at_both_ends = [
            name for name in trains if spec.model.tie_word_embeddings and TIED in held[name].native.canonicals
        ]

    def clear_gradients(self) -> None:
        """Drop every gradient."""
        for tensor in (*self._trains.values(), *self._scales):
            tensor.grad = None  # clear_gradient would keep its memory

    def backward(
        self,
        inputs: NDArray[np.int32],
        labels: Labels,
        mask: NDArray[np.bool_],
        factor: float,
        seed: int,
        starts: NDArray[np.int32] | None = None,
    ) -> Tensor:
        """Add the gradient of `factor` x the masked sum of losses; return that sum, still on the device."""
        (run,) = self._runs
        self._set_mode(inputs.shape[1])
        with self._autocast():
            hidden = run(self._to_device(inputs), seed=seed, starts=self._begun(starts))
            loss = self._masked_sum(hidden, labels, mask)
        (loss * factor).backward()
        return loss.detach()

    def run(self, batch: Batch, labels: Labels, factor: float) -> Tensor:
        """Add the gradients of all micro-batches; return the sum of this rank's unmasked losses."""
        parallel, (number, samples, tokens) = self._spec.parallel, batch.inputs.shape
        meet(self._groups.all)
        if parallel.pipeline == 1:
            return super().run(batch, labels, factor)

        def forward(run: GPT, n: int, x: Tensor | None) -> Tensor:
            with self._autocast():
                starts = self._begun(batch.starts if batch.starts is None else batch.starts[n])
                x = self._to_device(batch.inputs[n]) if x is None else x
                x = run(x, seed=batch.dropout_seeds[n], starts=starts)
                return self._masked_sum(x, labels[n], batch.loss_mask[n]) if run.last else x

        order = turns(
            parallel.pipeline_schedule,
            self._place.index("pipeline"),
            parallel.pipeline,
            parallel.virtual_pipeline,
            number,
        )
        self._set_mode(tokens)
        return self._pipeline.train(order, forward, factor, self._stream(samples, tokens))

    def _begun(self, starts: NDArray[np.int32] | None) -> Tensor | None:
        return None if starts is None else self._to_device(starts)

    def combine(self, total: Tensor) -> Tensor:
        """Sum the gradients over the ranks that see other samples or tokens; return the sum of the totals."""
        groups = self._groups
        meet(groups.all)
        for parameter in self._parameters().values():
            reduce_gradient(parameter, self._sharding)
        others = groups.data if self._sharding.stage else groups.replicas
        all_reduce_each(self._gradients(self._trains), others)
        all_reduce_each(self._gradients(self._by_tokens), groups.tensor)
        all_reduce_each(self._gradients(self._at_both_ends), groups.ends)
        return all_reduce(total, groups.losses)

    def _gradients(self, names: Iterable[str]) -> list[Tensor]:
        return [self._trains[name].grad for name in names]

    def scale_gradients(self, factor: float) -> None:
        """Multiply every gradient by `factor`."""
        self._optimizer.scale_gradients(factor)

    def clip(self) -> Tensor:
        """Clip the gradients; return their norm before."""
        return self._optimizer.clip()

    def update(self, learning_rate: float, count: int) -> None:
        """Change the weights by their gradients."""
        self._optimizer.update(learning_rate, count)
        with paddle.no_grad():
            spread(self._parameters().values(), self._sharding)

    def measure(self, *scalars: Tensor) -> Callable[[], list[float]]:
        """Read `scalars` before anything more is queued; return a function that returns them."""
        numbers = [float(scalar) for scalar in scalars]
        return lambda: numbers

    def close(self) -> None:
        """Free the device."""
        del self._optimizer, self._trains, self._scales
        super().close()

    def _tensors(self, kind: Kind) -> Mapping[str, Tensor]:
        if kind == "gradient":
            return {name: p.grad for name, p in self._trains.items() if p.grad is not None}
        return super()._tensors(kind) if kind == "weight" else self._optimizer.moments(kind)

    def _masked_sum(self, hidden: Tensor, labels: Labels, mask: NDArray[np.bool_]) -> Tensor:
        """Return the sum of the unmasked tokens' negative log likelihood; `hidden` is (B, T, H)."""
        wanted, counted = self._to_device(labels).flatten(), self._to_device(mask).flatten()
        return linear_cross_entropy(
            hidden.flatten(0, 1),
            self._runs[-1].head,
            wanted,
            counted.astype("float32"),
            self._runs[-1].outputs,
        )


@contextmanager
def _default_dtype(dtype: str) -> Iterator[None]:
    """Give layers that are built meanwhile parameters of `dtype`."""
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        yield
    finally:
        paddle.set_default_dtype(before)


def _to_host(tensor: Tensor) -> NDArray[np.float32]:
    array = tensor.numpy()
    # NumPy has no bfloat16: Paddle gives the upper halves of fp32 as uint16
    wide = (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array
    return np.asarray(wide, np.float32)
