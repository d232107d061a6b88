"""The update rules of a spec, by torch's fused kernels.

Through the functions, not the classes of torch.optim: these import torch's compiler, a second at every start.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from gptbridge.session import MOMENTS, Kind
from gptbridge_specs.run import OptimizerSpec
from gptbridge_torch.collectives import all_reduce
from gptbridge_torch.parallel import Groups

Arrays = Mapping[str, Tensor]


class Optimizer:
    """AdamW or SGD over the parameters of a model, with global norm clipping.

    `decays` are the decoupled weight decays by the parameters' names, `owned` the parameters of which this
    rank's part counts in the norm over all ranks. SGD's weight decay in torch is added
    to the gradient, which without momentum is the decoupled rule.
    """

    def __init__(
        self,
        spec: OptimizerSpec,
        parameters: Mapping[str, nn.Parameter],
        decays: Mapping[str, float],
        owned: Collection[str],
        groups: Groups,
    ) -> None:
        self._spec = spec
        self._owned = owned
        self._all = groups.all
        self._parameters = parameters
        self._decayed = {
            decay: [name for name in parameters if decays[name] == decay] for decay in set(decays.values())
        }
        self._moments: dict[str, dict[str, Tensor]] = {
            kind: {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
            for kind in (MOMENTS if spec.name == "adamw" else ())
        }

    def clip(self) -> Tensor:
        """Scale the gradients to the largest norm that the spec allows; return their norm before.

        Not by torch's clip_grad_norm_, whose limit is 1e-6 lower than the other backends'.
        """
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        norms = torch.stack(torch._foreach_norm(list(gradients.values())))
        norm: Tensor = torch.linalg.vector_norm(
            norms * norms.new_tensor([name in self._owned for name in gradients])
        )
        if self._all is not None:
            norm = all_reduce(norm.square(), self._all).sqrt()
        if self._spec.clip_grad_norm is not None:
            torch._foreach_mul_(list(gradients.values()), (self._spec.clip_grad_norm / norm).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def update(self, learning_rate: float, count: int) -> None:
        """Change the parameters by their gradients; AdamW's bias correction goes by `count`."""
        rule = self._adamw if self._spec.name == "adamw" else self._sgd
        for decay, names in self._decayed.items():
            gradients = {name: g for name in names if (g := self._parameters[name].grad) is not None}
            if gradients:
                rule([self._parameters[name] for name in gradients], gradients, learning_rate, decay, count)

    def _adamw(
        self, parameters: list[Tensor], gradients: Arrays, learning_rate: float, decay: float, count: int
    ) -> None:
        before = torch.full((len(parameters),), count - 1.0, device=parameters[0].device)
        first, second = ([self._moments[kind][name] for name in gradients] for kind in MOMENTS)
        adamw(
            parameters,
            list(gradients.values()),
            first,
            second,
            [],
            list(before.unbind()),
            lr=learning_rate,
            beta1=self._spec.beta1,
            beta2=self._spec.beta2,
            eps=self._spec.epsilon,
            weight_decay=decay,
            fused=True,
            amsgrad=False,
            maximize=False,
        )

    def _sgd(
        self, parameters: list[Tensor], gradients: Arrays, learning_rate: float, decay: float, count: int
    ) -> None:
        sgd(
            parameters,
            list(gradients.values()),
            [None] * len(parameters),
            lr=learning_rate,
            weight_decay=decay,
            momentum=0,
            dampening=0,
            fused=True,
            nesterov=False,
            maximize=False,
        )

    def moments(self, kind: Kind) -> Mapping[str, Tensor]:
        """Return the moments of `kind` by the parameters' names; none for SGD."""
        return self._moments.get(kind, {})
