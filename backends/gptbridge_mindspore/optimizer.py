"""The update rules of a spec, by MindSpore's fused kernels, with the arithmetic of torch.optim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from gptbridge.session import Kind
from gptbridge_mindspore.collectives import AllReduce, Group
from gptbridge_mindspore.parallel import Groups
from gptbridge_specs.run import OptimizerSpec

Gradients = Sequence[Tensor]  # in the order of the weights


class Optimizer:
    """Clipping, then AdamW or SGD, over weights by name, which it changes in place.

    `decays` are the decoupled weight decays by the weights' names; `owned` says of which weights this rank's
    part counts in the norm over all ranks. MindSpore's kernel takes
    1 - float32(beta) where 1 - beta is meant, which for a beta near 1 is another number: the moments that
    it keeps are `kept[kind]` times the true ones.
    """

    def __init__(
        self,
        spec: OptimizerSpec,
        weights: Mapping[str, Parameter],
        decays: Mapping[str, float],
        owned: Sequence[bool],
        groups: Groups,
    ) -> None:
        self._spec = spec
        adamw = spec.name == "adamw"
        betas: dict[Kind, float] = {"exp_avg": spec.beta1, "exp_avg_sq": spec.beta2} if adamw else {}
        self._moments: dict[Kind, dict[str, Parameter]] = {
            kind: {
                name: Parameter(Tensor(np.zeros(weight.shape, np.float32)), name=f"{name}.{kind}")
                for name, weight in weights.items()
            }
            for kind in betas
        }
        self.kept = {kind: (1 - float(np.float32(beta))) / (1 - beta) for kind, beta in betas.items()}
        decay = tuple(decays[name] for name in weights)
        tensors = ParameterTuple(list(weights.values()))
        moments = [ParameterTuple(list(by_name.values())) for by_name in self._moments.values()]
        rule = _AdamW(tensors, *moments, decay, spec) if adamw else _Sgd(tensors, decay)  # type: ignore[call-arg]
        self._norm = ms.jit(_Norm(owned, groups.all))
        self._update = ms.jit(rule)

    def moments(self, kind: Kind) -> dict[str, Parameter]:
        """Return the moments of `kind`, times `kept[kind]`, by the weights' names; none for SGD."""
        return self._moments.get(kind, {})

    def norm(self, gradients: Gradients) -> tuple[Tensor, Tensor]:
        """Return the L2 norm of all gradients, and the factor that clips it, which `update` takes."""
        norm, factor = self._norm(_scalar(self._spec.clip_grad_norm or math.inf), *gradients)
        return norm, factor

    def update(self, gradients: Gradients, factor: Tensor, learning_rate: float, count: int) -> None:
        """Change the weights by their gradients; `count` numbers the update, 1 is the first."""
        self._update(factor, *self._numbers(learning_rate, count), *gradients)

    def _numbers(self, learning_rate: float, count: int) -> list[Tensor]:
        """Return what the rule takes beside the gradients.

        AdamW is p *= 1 - lr decay; p -= lr m_hat / (sqrt(v_hat) + epsilon). The kernel knows no bias
        correction: it does p -= rate (m' / (sqrt(v') + epsilon') + decay' p) with the moments that it keeps,
        m' = k1 m and v' = k2 v. With m_hat = m / c1, v_hat = v / c2, c = 1 - beta^count that is the same
        for root = sqrt(k2 c2), ratio = root / (k1 c1), rate = lr ratio, epsilon' = epsilon root and
        decay' = decay / ratio.
        """
        if self._spec.name != "adamw":
            return [_scalar(learning_rate)]
        spec = self._spec
        root = math.sqrt(self.kept["exp_avg_sq"] * (1 - spec.beta2**count))
        ratio = root / (self.kept["exp_avg"] * (1 - spec.beta1**count))
        return [_scalar(n) for n in (learning_rate * ratio, spec.epsilon * root, 1 / ratio)]


_ADAM = ops.AdamWeightDecay()
_SUM = ops.ReduceSum()

# A map over the weights: a loop in a graph takes four times as long to compile.
_adamw = ops.MultitypeFuncGraph("adamw")
_sgd = ops.MultitypeFuncGraph("sgd")
_squares = ops.MultitypeFuncGraph("squares")


@_adamw.register(*["Tensor"] * 4, "Number", "Number", *["Tensor"] * 3, "Number", "Tensor")  # type: ignore[untyped-decorator]
def _adamw_step(
    factor: Tensor, rate: Tensor, epsilon: Tensor, by_ratio: Tensor, beta1: float, beta2: float,
    weight: Parameter, exp_avg: Parameter, exp_avg_sq: Parameter, decay: float, gradient: Tensor
) -> bool:  # fmt: skip
    clipped = gradient * factor
    # The kernel does m += (g - m) (1 - beta): at beta 0 an old m, much larger, would leave its rounding.
    if beta1 == 0:
        ops.assign(exp_avg, clipped * 0.0)
    if beta2 == 0:
        ops.assign(exp_avg_sq, clipped * 0.0)
    _ADAM(weight, exp_avg, exp_avg_sq, rate, beta1, beta2, epsilon, decay * by_ratio, clipped)
    return True


@_sgd.register(*["Tensor"] * 3, "Number", "Tensor")  # type: ignore[untyped-decorator]
def _sgd_step(factor: Tensor, rate: Tensor, weight: Parameter, decay: float, gradient: Tensor) -> bool:
    ops.assign(weight, weight * (1 - rate * decay) - gradient * (factor * rate))
    return True


@_squares.register("Tensor")  # type: ignore[untyped-decorator]
def _sum_of_squares(gradient: Tensor) -> Tensor:
    """Sum by row first: MindSpore's L2Loss, one running sum, is off by 6e-4 over two million numbers."""
    return _SUM(_SUM(gradient * gradient, -1))


class _Norm(nn.Cell):
    def __init__(self, owned: Sequence[bool], ranks: Group | None) -> None:
        super().__init__()
        self.owned = tuple(n for n, mine in enumerate(owned) if mine)
        self.over_ranks = None if ranks is None else AllReduce(ranks)
        self.each = ops.HyperMap()
        self.add = ops.AddN()

    def construct(self, limit: Tensor, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        mine = ()
        for n in self.owned:
            mine = (*mine, gradients[n])  # type: ignore[assignment]
        total = self.add(self.each(_squares, mine)) if len(mine) > 0 else ops.zeros((), ms.float32)
        if self.over_ranks is not None:
            total = self.over_ranks(total)
        norm = ops.sqrt(total)
        return norm, ops.minimum(1.0, limit / norm)


class _AdamW(nn.Cell):
    def __init__(
        self, weights: ParameterTuple, exp_avg: ParameterTuple, exp_avg_sq: ParameterTuple,
        decay: tuple[float, ...], spec: OptimizerSpec
    ) -> None:  # fmt: skip
        super().__init__()
        self.weights, self.exp_avg, self.exp_avg_sq = weights, exp_avg, exp_avg_sq
        self.decay, self.beta1, self.beta2 = decay, spec.beta1, spec.beta2
        self.each = ops.HyperMap()

    def construct(
        self, factor: Tensor, rate: Tensor, epsilon: Tensor, by_ratio: Tensor, *gradients: Tensor
    ) -> Tensor:
        step = ops.partial(_adamw, factor, rate, epsilon, by_ratio, self.beta1, self.beta2)
        self.each(step, self.weights, self.exp_avg, self.exp_avg_sq, self.decay, gradients)
        return factor * 1.0  # a graph returns something: for a weight the host would wait, and spin


class _Sgd(nn.Cell):
    """p *= 1 - lr decay; p -= lr g."""

    def __init__(self, weights: ParameterTuple, decay: tuple[float, ...]) -> None:
        super().__init__()
        self.weights, self.decay = weights, decay
        self.each = ops.HyperMap()

    def construct(self, factor: Tensor, rate: Tensor, *gradients: Tensor) -> Tensor:
        self.each(ops.partial(_sgd, factor, rate), self.weights, self.decay, gradients)
        return factor * 1.0


def _scalar(value: float) -> Tensor:
    return Tensor(value, ms.float32)
