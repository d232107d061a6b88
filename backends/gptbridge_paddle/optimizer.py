"""AdamW and SGD on Paddle's tensors, with the arithmetic of torch.optim.

Weights are updated in place; AdamW's moments are dictionaries by canonical name, fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import paddle
from paddle import Tensor

from gptbridge.weights.canonical import Parameter
from gptbridge_specs.run import OptimizerSpec


class AdamW:
    """Decoupled decay, then p -= lr * m_hat / (sqrt(v_hat) + epsilon)."""

    def __init__(self, weights: Mapping[str, Tensor], decayed: frozenset[str], spec: OptimizerSpec) -> None:
        self._weights = weights
        self._decayed = decayed
        self._spec = spec
        self.exp_avg = {name: paddle.zeros_like(weight) for name, weight in weights.items()}
        self.exp_avg_sq = {name: paddle.zeros_like(weight) for name, weight in weights.items()}
        self._no_correction = (paddle.zeros([1]), paddle.zeros([1]))

    def update(self, learning_rate: float, updates: int) -> None:
        """Update every weight that has a gradient; `updates` counts this one, from 1."""
        spec = self._spec
        # The fused kernel keeps beta ** t as a running fp32 product, which a resumed run could not
        # repeat bit for bit. So the product is given as 0, and the correction, computed here,
        # goes into learning rate, epsilon and decay: the same update.
        root = math.sqrt(1 - spec.beta2**updates)
        rate = learning_rate * root / (1 - spec.beta1**updates)
        rate_tensor = paddle.to_tensor([rate], dtype="float32")
        decay = spec.weight_decay * (1 - spec.beta1**updates) / root
        for name, weight in self._weights.items():
            # The operator under paddle.optimizer.AdamW: its class would hide moments and products.
            paddle._C_ops.adamw_(
                weight,
                weight.grad,
                rate_tensor,
                self.exp_avg[name],
                self.exp_avg_sq[name],
                None,  # no AMSGrad maximum
                *self._no_correction,
                None,  # the weight is its own fp32 master
                None,  # overflow is found before
                spec.beta1,
                spec.beta2,
                spec.epsilon * root,
                1.0,  # learning rate ratio of the layer
                decay,
                name in self._decayed,
                False,  # lazy mode
                1000,  # rows from which a sparse update uses threads
                False,  # multi_precision
                False,  # global beta products
                False,  # amsgrad
            )


class SGD:
    """p -= lr * gradient, after the same decoupled decay as AdamW."""

    exp_avg: Mapping[str, Tensor] = {}
    exp_avg_sq: Mapping[str, Tensor] = {}

    def __init__(self, weights: Mapping[str, Tensor], decayed: frozenset[str], spec: OptimizerSpec) -> None:
        self._weights = weights
        self._decayed = decayed
        self._decay = spec.weight_decay

    def update(self, learning_rate: float, updates: int) -> None:
        """Update every weight that has a gradient."""
        for name, weight in self._weights.items():
            if self._decay and name in self._decayed:
                weight.scale_(1 - learning_rate * self._decay)
            weight.subtract_(weight.grad * learning_rate)


OPTIMIZERS: dict[str, Callable[..., AdamW | SGD]] = {"adamw": AdamW, "sgd": SGD}


def build_optimizer(
    weights: Mapping[str, Tensor], table: list[Parameter], spec: OptimizerSpec
) -> AdamW | SGD:
    """Return the optimizer of `spec` over `weights`, the canonical parameters of `table`."""
    decayed = frozenset(p.name for p in table if p.is_matrix or spec.decay == "all")
    return OPTIMIZERS[spec.name](weights, decayed, spec)


def global_norm(weights: Mapping[str, Tensor]) -> Tensor:
    """Return the L2 norm over all gradients, a scalar tensor."""
    # Not paddle.linalg.norm: on CPU its fp32 sum over five million numbers is off by 0.6 %.
    return paddle.sqrt(paddle.add_n([paddle.sum(paddle.square(w.grad)) for w in weights.values()]))
