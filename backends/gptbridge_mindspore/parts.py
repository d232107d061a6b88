"""What a GPT is made of, as Cells whose gradients MindSpore derives.

MindSpore's CPU kernels of a transpose, and of any binary operator that broadcasts, keep a table of 8
to 16 bytes a number for as long as their graph lives: more than the activations themselves. So heads
are moved by gathering rows, and what is smaller than its partner is spread by `broadcast_to`, which
keeps no table and is no slower. `ops.tanh` is off by 1e-4 on CPU and is not used.
Shapes: B samples, T tokens, H wide, N heads of this rank, D head size, C keys that a token can see (T
without a cache).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops.operations._grad_ops import SigmoidGrad

from gptbridge.session import DeviceKind
from gptbridge_mindspore.adapters import NoAdapters
from gptbridge_mindspore.collectives import enter, leave
from gptbridge_mindspore.dropout import DeviceDrop, DeviceDropout, HostDrop, HostDropout, Masks, Site
from gptbridge_mindspore.parallel import Cut
from gptbridge_specs import ModelSpec

HIDDEN = -1e9  # added to the score of a key that a token must not see
_TANH_1 = 2 * math.sqrt(2 / math.pi)
_TANH_3 = 0.044715 * _TANH_1


def gelu_erf(x: Tensor) -> Tensor:
    """Return x times the normal distribution function."""
    return x * (0.5 + 0.5 * ops.erf(x * math.sqrt(0.5)))


def quick_gelu(x: Tensor) -> Tensor:
    """Return x sigmoid(1.702 x)."""
    return x * ops.sigmoid(1.702 * x)


class GeluTanh(nn.Cell):
    """0.5 x (1 + tanh u), which is x sigmoid(2 u). The derived gradient takes twice as long."""

    def __init__(self) -> None:
        super().__init__()
        self.of_sigmoid = SigmoidGrad()

    def construct(self, x: Tensor) -> Tensor:
        """Activate numbers of any shape."""
        return x * ops.sigmoid(x * (_TANH_1 + _TANH_3 * (x * x)))

    def bprop(self, x: Tensor, out: Tensor, dy: Tensor) -> tuple[Tensor]:
        """Return the gradient of x."""
        square = x * x
        gate = ops.sigmoid(x * (_TANH_1 + _TANH_3 * square))
        return (dy * (gate + self.of_sigmoid(gate, x * (_TANH_1 + 3 * _TANH_3 * square))),)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": GeluTanh(),
    "gelu_erf": gelu_erf,
    "quick_gelu": quick_gelu,
}


def parameter(*shape: int) -> Parameter:
    """Return a weight of zeros: its values are imported."""
    return Parameter(Tensor(np.zeros(shape, np.float32)))


class Linear(nn.Cell):
    """x W + b with W (in, out), the product in the compute type, with what `adapt` put beside it.

    What each rank has of the product can `leave`.
    """

    def __init__(self, inputs: int, outputs: int, dtype: Any, leave: nn.Cell | None = None) -> None:
        super().__init__()
        self.weight = parameter(inputs, outputs)
        self.bias = parameter(outputs)
        self.dtype = dtype
        self.product = ops.MatMul()
        self.leave = leave
        self.adapters: nn.Cell = NoAdapters()

    def construct(self, x: Tensor, *mask: Tensor) -> Tensor:
        """Return (B, T, out) of (B, T, in); `mask` is of the dropout before adapters."""
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        y = self.product(rows, self.weight.astype(self.dtype)).astype(ms.float32)
        shape = (*x.shape[:-1], y.shape[-1])
        if self.leave is not None:
            y = self.leave(y.reshape(shape))
            shape = y.shape
            y = y.reshape(-1, shape[-1])
        return self.adapters(x, (y + ops.broadcast_to(self.bias, y.shape)).reshape(shape), *mask)


class LayerNorm(nn.Cell):
    """Mean 0 and variance 1 along the last axis, then a gain and an offset."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = parameter(width)
        self.bias = parameter(width)
        self.normalize = ops.LayerNorm(-1, -1, epsilon)

    def construct(self, x: Tensor) -> Tensor:
        """Normalize; x and the result are (B, T, H)."""
        return self.normalize(x, self.weight, self.bias)[0]


class Embedding(nn.Cell):
    """A row of a table for each id."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = parameter(count, width)

    def construct(self, ids: Tensor) -> Tensor:
        """Return (B, T, H) of ids (B, T)."""
        return ops.gather(self.weight, ids, 0).astype(ms.float32)


class Words(Embedding):
    """The embedding of tokens, of which each rank has some rows."""

    def __init__(self, cut: Cut, width: int) -> None:
        super().__init__(len(cut.words), width)
        self.start, self.count = cut.words.start, len(cut.words)
        self.leave = leave(cut)

    def construct(self, ids: Tensor) -> Tensor:
        """Return (B, T, H) of ids (B, T)."""
        if self.leave is None:
            return ops.gather(self.weight, ids, 0).astype(ms.float32)
        rows, found = own(ids, self.start, self.count)
        x = ops.gather(self.weight, rows, 0).astype(ms.float32)
        return self.leave(x * ops.broadcast_to(found.reshape(*ids.shape, 1), x.shape))


def own(ids: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Return ids as rows of a table of `count` that begins at `start`, and 1.0 where there is one, else 0."""
    rows = ids - start
    found = ops.logical_and(rows >= 0, rows < count)
    return rows * found.astype(ms.int32), found.astype(ms.float32)


class Softmax(nn.Cell):
    """Softmax along the last axis. Its gradient as MindSpore derives it broadcasts; this one does not.

    On CPU two products with ones add up rows and spread the sums in a third of the time of `ReduceSum`
    and `broadcast_to`.
    exp(LogSoftmax(x)) is no way out: on CPU it is off by 1e-5, and a row no longer adds up to 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.softmax = ops.Softmax(-1)
        self.product = ops.MatMul()

    def construct(self, x: Tensor) -> Tensor:
        """Return numbers of the shape of x of which each row adds up to 1."""
        return self.softmax(x)

    def bprop(self, x: Tensor, out: Tensor, dy: Tensor) -> tuple[Tensor]:
        """Return the gradient of x."""
        width = out.shape[-1]
        sums = self.product((out * dy).reshape(-1, width), ops.ones((width, 1), ms.float32))
        spread = self.product(sums, ops.ones((1, width), ms.float32))
        return (out * (dy - spread.reshape(dy.shape)),)


class Core(nn.Cell):
    """Softmax attention of heads: what remains between the two linear layers."""

    def __init__(
        self, model: ModelSpec, dtype: Any, heads: int, drop: Callable[[float], nn.Cell] = HostDrop
    ) -> None:
        super().__init__()
        self.scale = model.head_size**-0.5
        self.dtype = dtype
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.softmax = Softmax()
        self.mix = ops.BatchMatMul()
        self.drop = drop(model.attention_probs_dropout_prob)

    def construct(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *masks: Tensor) -> Tensor:
        """Return (B N, T, D) of q (B N, T, D), k and v (B N, C, D), under bias (B N, T, C)."""
        kind = self.dtype
        scores = self.scores((q * self.scale).astype(kind), k.astype(kind)).astype(ms.float32)
        weights = self.drop(self.softmax(scores + bias), *masks)
        return self.mix(weights.astype(kind), v.astype(kind)).astype(ms.float32)


class FlashCore(nn.Cell):
    """The same for whole rows by Ascend's fused kernel, which keeps no (T, T) numbers.

    Written by the kernel's documentation, not run: nothing but the type of its graph is tested.
    """

    def __init__(self, model: ModelSpec, dtype: Any, heads: int) -> None:
        super().__init__()
        self.heads, self.scale, self.dtype = heads, model.head_size**-0.5, dtype
        self.keep = 1 - model.attention_probs_dropout_prob
        self.later = later_keys()

    def construct(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *masks: Tensor) -> Tensor:
        """Return (B N, T, D) of q, k and v (B N, T, D); what bias says, the kernel knows."""
        rows, t, d = q.shape
        shape = (rows // self.heads, self.heads, t, d)
        y = ops.flash_attention_score(
            q.reshape(shape).astype(self.dtype),
            k.reshape(shape).astype(self.dtype),
            v.reshape(shape).astype(self.dtype),
            self.heads,
            drop_mask=masks[0].reshape(*shape[:3], t // 8) if len(masks) > 0 else None,
            attn_mask=self.later,
            keep_prob=self.keep if len(masks) > 0 else 1.0,
            scalar_value=self.scale,
            input_layout="BNSD",
            sparse_mode=LEFT_UP_CAUSAL,
        )
        return y.reshape(q.shape).astype(ms.float32)


LEFT_UP_CAUSAL = 2  # the mode that skips what is hidden, and takes a mask of this size whatever T is
LATER_KEYS = 2048


@cache
def later_keys() -> Tensor:
    """Return the mask of that mode: True where a key is hidden."""
    return Tensor(np.triu(np.ones((LATER_KEYS, LATER_KEYS), np.bool_), 1))


def ascend_core(model: ModelSpec, dtype: Any, heads: int) -> nn.Cell:
    """Return the fused kernel where it can: it knows half precision and heads of a multiple of 16."""
    fits = dtype in (ms.float16, ms.bfloat16) and model.head_size % 16 == 0
    return FlashCore(model, dtype, heads) if fits else Core(model, dtype, heads, DeviceDrop)


@dataclass(frozen=True, slots=True)
class Kernels:
    """What a kind of device computes in its own way."""

    core: Callable[[ModelSpec, Any, int], nn.Cell]
    dropout: Callable[[ModelSpec, Cut, list[Site]], nn.Cell]  # makes the masks
    drop: Callable[[float], nn.Cell]  # applies one


KERNELS: dict[DeviceKind, Kernels] = {
    "cpu": Kernels(Core, HostDropout, HostDrop),
    "ascend": Kernels(ascend_core, DeviceDropout, DeviceDrop),
}


class Recomputed(nn.Cell):
    """A Cell without weights that runs again in the backward pass, instead of keeping what it computed.

    `depend` makes its second run wait for the gradient; without that the two would be one.
    """

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.cell = cell
        self.gradient = ops.GradOperation(get_all=True, sens_param=True)(cell)

    def construct(self, x: Tensor, others: tuple[Tensor, ...]) -> Tensor:
        """Call the Cell with x and the others."""
        return self.cell(x, *others)

    def bprop(
        self, x: Tensor, others: tuple[Tensor, ...], out: Tensor, dy: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the gradients of the inputs."""
        of_inputs = self.gradient(ops.depend(x, dy), *others, dy)
        return of_inputs[0], of_inputs[1:]


class Attention(nn.Cell):
    """Causal self-attention."""

    def __init__(self, model: ModelSpec, recompute: str, dtype: Any, kernels: Kernels, cut: Cut) -> None:
        super().__init__()
        self.heads = len(cut.heads)
        width = self.heads * model.head_size
        self.enter = enter(cut)
        self.c_attn = Linear(model.hidden_size, 3 * width, dtype)
        self.c_proj = Linear(width, model.hidden_size, dtype, leave(cut))
        self.core = kernels.core(model, dtype, self.heads)
        again = recompute == "core_attn" and isinstance(self.core, Core)  # the fused kernel does so by itself
        self.recomputed = Recomputed(self.core) if again else None
        self.split = ops.Split(0, 3)

    def construct(self, x: Tensor, bias: Tensor, mask: Masks, adapted: Masks = ()) -> Tensor:
        """Attend; x and the result are (B, T, H), bias (1 or B, T, T) is added to the scores.

        `mask` is of the probabilities, `adapted` are those before adapters.
        """
        first = self.c_attn.adapters.masks
        q, k, v = self.by_head(x, *adapted[:first])
        others = (k, v, by_heads(bias, x.shape[0], self.heads), *mask)
        y = self.core(q, *others) if self.recomputed is None else self.recomputed(q, others)
        return self.joined(y, x.shape[0], *adapted[first:])

    def by_head(self, x: Tensor, *mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v, (B N, T, D) each, of x (B, T, H)."""
        joint = self.c_attn(self.enter(x), *mask)
        b, t, width = joint.shape
        n, d = self.heads, width // (3 * self.heads)
        rows = ops.gather(joint.reshape(-1, d), heads_first(b, t, n), 0)
        return self.split(rows.reshape(3 * b * n, t, d))  # type: ignore[no-any-return]

    def joined(self, y: Tensor, b: int, *mask: Tensor) -> Tensor:
        """Return (B, T, H) from what the heads found, (B N, T, D)."""
        _, t, d = y.shape
        n = self.heads
        joined = ops.gather(y.reshape(-1, d), tokens_first(b, t, n), 0).reshape(b, t, n * d)
        return self.c_proj(joined, *mask)


def by_heads(bias: Tensor, b: int, n: int) -> Tensor:
    """Return a bias (1 or B, T, C) for every head, (B N, T, C)."""
    _, t, c = bias.shape
    return ops.broadcast_to(bias.reshape(-1, 1, t, c), (b, n, t, c)).reshape(b * n, t, c)


@ms.constexpr  # type: ignore[untyped-decorator]
def heads_first(b: int, t: int, n: int) -> Tensor:
    """Return the order of the rows of [q|k|v], (B T 3 N, D), that puts (3, B, N) before T."""
    rows = np.arange(b * t * 3 * n, dtype=np.int32).reshape(b, t, 3, n)
    return Tensor(np.ascontiguousarray(rows.transpose(2, 0, 3, 1)).ravel())


@ms.constexpr  # type: ignore[untyped-decorator]
def tokens_first(b: int, t: int, n: int) -> Tensor:
    """Return the order of rows (B N T, D) that puts (B, T) before N."""
    rows = np.arange(b * n * t, dtype=np.int32).reshape(b, n, t)
    return Tensor(np.ascontiguousarray(rows.transpose(0, 2, 1)).ravel())


class FeedForward(nn.Cell):
    """Two linear layers around the activation."""

    def __init__(self, model: ModelSpec, dtype: Any, cut: Cut) -> None:
        super().__init__()
        self.enter = enter(cut)
        self.c_fc = Linear(model.hidden_size, len(cut.ffn), dtype)
        self.activation = ACTIVATIONS[model.activation]
        self.c_proj = Linear(len(cut.ffn), model.hidden_size, dtype, leave(cut))

    def construct(self, x: Tensor, *adapted: Tensor) -> Tensor:
        """Widen, activate, narrow; x and the result are (B, T, H). `adapted` are masks before adapters."""
        first = self.c_fc.adapters.masks
        return self.c_proj(self.activation(self.c_fc(self.enter(x), *adapted[:first])), *adapted[first:])
