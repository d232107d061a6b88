"""The update rules of a spec, with the arithmetic of torch.optim, in place."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import paddle
from paddle import Tensor

from gptbridge.session import MOMENTS, Kind
from gptbridge_paddle.collectives import all_reduce
from gptbridge_paddle.groups import Group
from gptbridge_specs.run import OptimizerSpec


class Optimizer:
    """AdamW or SGD over the parameters of a model, with global norm clipping.

    `decays` are the decoupled weight decays by the parameters' names, `owned` the parameters of which this
    rank's part counts in the norm over all ranks, `ranks`.
    """

    def __init__(
        self,
        spec: OptimizerSpec,
        parameters: Mapping[str, Tensor],
        decays: Mapping[str, float],
        owned: Collection[str],
        ranks: Group | None,
    ) -> None:
        self._spec = spec
        self._owned = owned
        self._ranks = ranks
        self._parameters = parameters
        self._decays = decays
        kinds = MOMENTS if spec.name == "adamw" else ()
        self._moments: dict[Kind, dict[str, Tensor]] = {
            kind: {name: paddle.zeros_like(p) for name, p in parameters.items()} for kind in kinds
        }
        self._rule = {"adamw": self._adamw, "sgd": self._sgd}[spec.name]

    def clip(self) -> Tensor:
        """Scale the gradients to the largest norm that the spec allows; return their norm before."""
        # Not paddle.linalg.norm: its fp32 sum of five million squares on CPU is 0.6 % too small.
        squares = [paddle.sum(paddle.square(self._parameters[name].grad)) for name in self._owned]
        norm = paddle.sqrt(all_reduce(paddle.add_n(squares or [paddle.zeros([])]), self._ranks))
        limit = self._spec.clip_grad_norm
        if limit is not None and float(norm) > limit:
            self.scale_gradients(limit / float(norm))
        return norm

    def scale_gradients(self, factor: float) -> None:
        """Multiply every gradient by `factor`."""
        with paddle.no_grad():
            for parameter in self._parameters.values():
                parameter.grad.scale_(factor)

    def update(self, learning_rate: float, count: int) -> None:
        """Change the parameters by their gradients; AdamW's bias correction goes by `count`."""
        with paddle.no_grad():
            self._rule(learning_rate, count)

    def moments(self, kind: Kind) -> Mapping[str, Tensor]:
        """Return the moments of `kind` by the parameters' names; none for SGD."""
        return self._moments.get(kind, {})

    def _sgd(self, learning_rate: float, count: int) -> None:
        for name, parameter in self._parameters.items():
            kept = 1 - learning_rate * self._decays[name]
            if kept != 1:
                parameter.scale_(kept)
            parameter.subtract_(parameter.grad * learning_rate)

    def _adamw(self, learning_rate: float, count: int) -> None:
        """Decay, then subtract lr * m_hat / (sqrt(v_hat) + epsilon), by the kernel of paddle.optimizer.AdamW.

        Paddle's class keeps beta**t as a running fp32 product, which a resumed run could not repeat
        bit for bit. Here that product is given as 0, which turns the kernel's bias correction off,
        and the correction goes into learning rate, epsilon and decay: the same update.
        """
        spec = self._spec
        beta2, before, after = _kernel_beta(spec.beta2)
        root = math.sqrt((1 - spec.beta2**count) / after)
        correction = root / (1 - spec.beta1**count)
        rate = paddle.to_tensor([learning_rate * correction], dtype="float32")
        no_product = paddle.zeros([1])
        first, second = (self._moments[kind] for kind in MOMENTS)
        for name, parameter in self._parameters.items():
            if after != 1:
                second[name].scale_(before)
            paddle._C_ops.adamw_(
                *(parameter, parameter.grad, rate, first[name], second[name]),
                *(None, no_product, no_product),  # AMSGrad's maximum, beta1**t, beta2**t
                *(None, None),  # a master copy, the flag to skip the update
                *(spec.beta1, beta2, spec.epsilon * root),
                1.0,  # the layer's share of the learning rate
                self._decays[name] / correction,
                self._decays[name] > 0,
                *(False, 1000, False, False, False),  # lazy, its rows, master copy, global products, AMSGrad
            )
            if after != 1:
                second[name].scale_(after)


def _kernel_beta(beta2: float) -> tuple[float, float, float]:
    """Return a beta2 for the kernel, and by what to multiply the second moments before it and after it.

    The kernel rounds beta2 to fp32 and takes 1 - beta2 of that: up to 0.99 it is right to 3e-6 of itself,
    at 1 - 1e-8 it is 0. Near 1 it gets a small beta, in which nothing is lost, and moments that are scaled:
    with 1 - beta2 = share * after, after * ((1 - share) * before * v + share * g**2) is what it should be.
    """
    if beta2 <= 0.99:
        return beta2, 1.0, 1.0
    share, power = math.frexp(1 - beta2)  # share in [1/2, 1)
    after = 2.0**power
    return 1 - share, beta2 / ((1 - share) * after), after
