"""The update rules of a spec, by torch's fused kernels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gptbridge.session import EXP_AVG, EXP_AVG_SQ
from gptbridge_specs.run import OptimizerSpec

MOMENTS = {EXP_AVG: "exp_avg", EXP_AVG_SQ: "exp_avg_sq"}  # suffix of the canonical name: torch's own


class Optimizer:
    """AdamW or SGD over the parameters of a model, with global norm clipping.

    SGD's weight decay in torch is added to the gradient, which without momentum is the decoupled rule.
    """

    def __init__(self, spec: OptimizerSpec, parameters: list[nn.Parameter]) -> None:
        self._spec = spec
        self._parameters = parameters
        decayed = [p for p in parameters if spec.decay == "all" or p.dim() > 1]
        others = [p for p in parameters if spec.decay != "all" and p.dim() <= 1]
        groups = [
            {"params": decayed, "weight_decay": spec.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._rule = _rule(spec, [group for group in groups if group["params"]])

    def clip(self) -> Tensor:
        """Scale the gradients to the largest norm that the spec allows; return their norm before.

        Not by torch's clip_grad_norm_, whose limit is 1e-6 lower than the other backends'.
        """
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if self._spec.clip_grad_norm is not None:
            torch._foreach_mul_(gradients, (self._spec.clip_grad_norm / norm).clamp(max=1.0))
        return norm

    def update(self, learning_rate: float) -> None:
        """Change the parameters by their gradients."""
        for group in self._rule.param_groups:
            group["lr"] = learning_rate
        self._rule.step()

    def moments(self, parameter: nn.Parameter) -> Mapping[str, Tensor]:
        """Return the moments of one parameter by the suffix of their names; none for SGD."""
        state = self._rule.state[parameter]
        return {suffix: state[name] for suffix, name in MOMENTS.items() if name in state}

    def set_updates(self, updates: int) -> None:
        """Say how many updates came before: AdamW's bias correction counts them, SGD has none."""
        for state in self._rule.state.values():
            if "step" in state:
                state["step"].fill_(updates)


def _rule(spec: OptimizerSpec, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    if spec.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, fused=True)
    betas = (spec.beta1, spec.beta2)
    rule = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=spec.epsilon, fused=True)
    for group in rule.param_groups:
        for parameter in group["params"]:
            # As torch would at the first update; here they can be exported and imported before it.
            rule.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                **{name: torch.zeros_like(parameter, requires_grad=False) for name in MOMENTS.values()},
            }
    return rule
