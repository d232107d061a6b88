"""The update rules of a spec, by MindSpore's fused kernels, with the arithmetic of torch.optim."""

from __future__ import annotations

import math
from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from gptbridge.session import MOMENTS, Kind
from gptbridge_specs.run import OptimizerSpec

_ADAM = ops.AdamWeightDecay()
_SUM = ops.ReduceSum()


class Optimizer:
    """AdamW or SGD over weights by canonical name, which it changes in place."""

    def __init__(
        self, spec: OptimizerSpec, weights: Mapping[str, Tensor], decays: Mapping[str, float]
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._decay = decays
        self._clip = ms.jit(_clip)
        kinds = MOMENTS if spec.name == "adamw" else ()
        self._moments: dict[Kind, dict[str, Tensor]] = {
            kind: {name: Tensor(np.zeros(weight.shape, np.float32)) for name, weight in weights.items()}
            for kind in kinds
        }

    def moments(self, kind: Kind) -> dict[str, Tensor]:
        """Return the moments of `kind` by the weights' names; none for SGD."""
        return self._moments.get(kind, {})

    def clip(self, gradients: Mapping[str, Tensor], scale: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the L2 norm of all gradients / `scale`, and them scaled down to the largest one allowed."""
        limit = self._spec.clip_grad_norm or math.inf
        norm, *clipped = self._clip(_scalar(1 / scale), _scalar(limit), *gradients.values())
        return norm, dict(zip(gradients, clipped, strict=True))

    def update(self, gradients: Mapping[str, Tensor], learning_rate: float, count: int) -> None:
        """Change the weights by their gradients; `count` numbers the update, 1 is the first."""
        rule = self._adamw if self._spec.name == "adamw" else self._sgd
        for name in self._weights:
            rule(name, gradients[name], learning_rate, count)

    def _adamw(self, name: str, gradient: Tensor, learning_rate: float, count: int) -> None:
        """Apply p *= 1 - lr decay; p -= lr m_hat / (sqrt(v_hat) + epsilon).

        The kernel knows no bias correction: it does p -= rate (m / (sqrt(v) + epsilon) + decay p).
        With c1 = 1 - beta1^count, c2 = 1 - beta2^count, m_hat = m / c1 and v_hat = v / c2 that is the
        same update for rate = lr sqrt(c2) / c1, epsilon sqrt(c2) and decay lr / rate.
        """
        spec = self._spec
        root = math.sqrt(1 - spec.beta2**count)
        ratio = root / (1 - spec.beta1**count)
        _ADAM(
            self._weights[name],
            self._moments["exp_avg"][name],
            self._moments["exp_avg_sq"][name],
            learning_rate * ratio,
            spec.beta1,
            spec.beta2,
            spec.epsilon * root,
            self._decay[name] / ratio,
            gradient,
        )

    def _sgd(self, name: str, gradient: Tensor, learning_rate: float, count: int) -> None:
        """Apply p *= 1 - lr decay; p -= lr g."""
        weight = self._weights[name]
        kept = 1 - learning_rate * self._decay[name]
        ops.assign(weight, weight * kept - gradient * learning_rate)


def _clip(unscale: Tensor, limit: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
    """Return the norm and the clipped gradients.

    Squares are summed by row first: MindSpore's L2Loss, one running sum, is off by 6e-4 over two
    million numbers.
    """
    total = 0.0
    for gradient in gradients:
        total = total + _SUM(_SUM(gradient * gradient, -1))
    norm = ops.sqrt(total) * unscale
    factor = unscale * ops.minimum(1.0, limit / norm)
    return (norm, *[gradient * factor for gradient in gradients])


def _scalar(value: float) -> Tensor:
    return Tensor(value, ms.float32)
