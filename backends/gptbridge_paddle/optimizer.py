"""The update rules of a spec, with the arithmetic of torch.optim, in place."""

from __future__ import annotations

import math
from collections.abc import Mapping

import paddle
from paddle import Tensor

from gptbridge.session import EXP_AVG, EXP_AVG_SQ
from gptbridge_specs.run import OptimizerSpec


class Optimizer:
    """AdamW or SGD over the parameters of a model, with global norm clipping."""

    def __init__(self, spec: OptimizerSpec, parameters: list[Tensor]) -> None:
        self._spec = spec
        self._parameters = parameters
        self._decayed = {p.name for p in parameters if spec.decay == "all" or p.ndim > 1}
        self._moments: dict[str, dict[str, Tensor]] = {p.name: {} for p in parameters}
        if spec.name == "adamw":
            for p in parameters:
                self._moments[p.name] = {s: paddle.zeros_like(p) for s in (EXP_AVG, EXP_AVG_SQ)}
        self._updates = 0
        self._rule = {"adamw": self._adamw, "sgd": self._sgd}[spec.name]

    def clip(self) -> float:
        """Scale the gradients to the largest norm that the spec allows; return their norm before."""
        # Not paddle.linalg.norm: its fp32 sum of five million squares on CPU is 0.6 % too small.
        squares = [paddle.sum(paddle.square(p.grad)) for p in self._parameters]
        norm = math.sqrt(float(paddle.add_n(squares)))
        limit = self._spec.clip_grad_norm
        if limit is not None and norm > limit:
            self.scale_gradients(limit / norm)
        return norm

    def scale_gradients(self, factor: float) -> None:
        """Multiply every gradient by `factor`."""
        with paddle.no_grad():
            for parameter in self._parameters:
                parameter.grad.scale_(factor)

    def update(self, learning_rate: float) -> None:
        """Change the parameters by their gradients."""
        self._updates += 1
        with paddle.no_grad():
            self._rule(learning_rate)

    def moments(self, parameter: Tensor) -> Mapping[str, Tensor]:
        """Return the moments of one parameter by the suffix of their names; none for SGD."""
        return self._moments[parameter.name]

    def set_updates(self, updates: int) -> None:
        """Say how many updates came before: the bias correction counts them."""
        self._updates = updates

    def _sgd(self, learning_rate: float) -> None:
        kept = 1 - learning_rate * self._spec.weight_decay
        for parameter in self._parameters:
            if kept != 1 and parameter.name in self._decayed:
                parameter.scale_(kept)
            parameter.subtract_(parameter.grad * learning_rate)

    def _adamw(self, learning_rate: float) -> None:
        """Decay, then subtract lr * m_hat / (sqrt(v_hat) + epsilon), by the kernel of paddle.optimizer.AdamW.

        Paddle's class keeps beta**t as a running fp32 product, which a resumed run could not repeat
        bit for bit. Here that product is given as 0, which turns the kernel's bias correction off,
        and the correction goes into learning rate, epsilon and decay: the same update.
        """
        spec = self._spec
        root = math.sqrt(1 - spec.beta2**self._updates)
        correction = root / (1 - spec.beta1**self._updates)
        rate = paddle.to_tensor([learning_rate * correction], dtype="float32")
        no_product = paddle.zeros([1])
        for parameter in self._parameters:
            moments = self._moments[parameter.name]
            paddle._C_ops.adamw_(
                *(parameter, parameter.grad, rate, moments[EXP_AVG], moments[EXP_AVG_SQ]),
                *(None, no_product, no_product),  # AMSGrad's maximum, beta1**t, beta2**t
                *(None, None),  # a master copy, the flag to skip the update
                *(spec.beta1, spec.beta2, spec.epsilon * root),
                1.0,  # the layer's share of the learning rate
                spec.weight_decay / correction,
                parameter.name in self._decayed,
                *(False, 1000, False, False, False),  # lazy, its rows, master copy, global products, AMSGrad
            )
