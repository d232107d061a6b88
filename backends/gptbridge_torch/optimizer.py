"""The update rules of a spec, by torch's fused kernels."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from gptbridge.session import MOMENTS, Kind
from gptbridge_specs.run import OptimizerSpec
from gptbridge_torch.collectives import all_reduce
from gptbridge_torch.parallel import Groups


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
        rules: list[dict[str, object]] = [
            {
                "params": [parameters[name] for name in parameters if decays[name] == decay],
                "weight_decay": decay,
            }
            for decay in sorted(set(decays.values()), reverse=True)
        ]
        self._rule = _rule(spec, rules)
        self._updates = 0

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

    def update(self, learning_rate: float, count: int) -> None:
        """Change the parameters by their gradients; AdamW's bias correction goes by `count`."""
        if self._updates != count - 1:
            for state in self._rule.state.values():
                if "step" in state:
                    state["step"].fill_(count - 1)
        for group in self._rule.param_groups:
            group["lr"] = learning_rate
        self._rule.step()
        self._updates = count

    def moments(self, kind: Kind) -> dict[str, Tensor]:
        """Return the moments of `kind` by the parameters' names; none for SGD."""
        states = {name: self._rule.state[parameter] for name, parameter in self._parameters.items()}
        return {name: state[kind] for name, state in states.items() if kind in state}


def _rule(spec: OptimizerSpec, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    if spec.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, fused=True)
    betas = (spec.beta1, spec.beta2)
    rule = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=spec.epsilon, fused=True)
    for group in rule.param_groups:
        for parameter in group["params"]:
            # As torch would at the first update; here they can be saved and loaded before it.
            rule.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                **{kind: torch.zeros_like(parameter, requires_grad=False) for kind in MOMENTS},
            }
    return rule
