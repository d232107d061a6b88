"""The NumPy reference against PyTorch's autograd and AdamW in float64, on a model written from scratch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gptbridge import reference
from gptbridge.session import Batch
from gptbridge.testing import cases
from gptbridge.weights.architecture import parameters
from gptbridge_specs import ModelSpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_erf": functional.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def torch_logits(model: ModelSpec, w: dict[str, Tensor], tokens: Tensor) -> Tensor:
    length = tokens.shape[1]
    x = w["wte.weight"][tokens] + w["wpe.weight"][:length]

    def norm(name: str, x: Tensor) -> Tensor:
        shape, epsilon = (model.hidden_size,), model.layernorm_epsilon
        return functional.layer_norm(x, shape, w[f"{name}.weight"], w[f"{name}.bias"], epsilon)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    for n in range(model.num_layers):
        normed = norm(f"h.{n}.ln_1", x)
        q, k, v = (
            linear(f"h.{n}.attn.{part}", normed)
            .reshape(*tokens.shape, model.num_attention_heads, -1)
            .transpose(1, 2)
            for part in "qkv"
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(model.head_size)
        mask = torch.ones(length, length).triu(1).bool()
        mixed = scores.masked_fill(mask, -math.inf).softmax(-1) @ v
        x = x + linear(f"h.{n}.attn.c_proj", mixed.transpose(1, 2).flatten(-2))
        inner = ACTIVATIONS[model.activation](linear(f"h.{n}.mlp.c_fc", norm(f"h.{n}.ln_2", x)))
        x = x + linear(f"h.{n}.mlp.c_proj", inner)
    return norm("ln_f", x) @ w["wte.weight" if model.tie_word_embeddings else "lm_head.weight"].T


def torch_loss(model: ModelSpec, w: dict[str, Tensor], batch: Batch) -> Tensor:
    inputs, labels, mask = (
        torch.from_numpy(array).flatten(0, 1) for array in (batch.inputs, batch.labels, batch.loss_mask)
    )
    logits = torch_logits(model, w, inputs.long())
    losses = functional.cross_entropy(logits.flatten(0, 1), labels.long().flatten(), reduction="none")
    return (losses * mask.flatten()).sum() / batch.loss_tokens


def leaves(arrays: cases.Arrays) -> dict[str, Tensor]:
    return {name: torch.tensor(a, dtype=torch.float64, requires_grad=True) for name, a in arrays.items()}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_logits_loss_and_gradients_equal_autograd(activation: str, tied: bool) -> None:
    model = cases.run_spec("cpu", {"activation": activation, "tie_word_embeddings": tied}).model
    weights, batch = cases.weights(model), cases.batch(model)
    w = leaves(weights)
    loss = torch_loss(model, w, batch)
    slopes = torch.autograd.grad(loss, list(w.values()))
    found, gradients = reference.loss_and_gradients(model, weights, batch)
    assert found == pytest.approx(loss.item(), rel=1e-13)
    logits = torch_logits(model, w, torch.from_numpy(batch.inputs[0]).long()).detach().numpy()
    np.testing.assert_allclose(
        reference.logits(model, weights, batch.inputs[0]), logits, rtol=1e-11, atol=1e-12
    )
    for name, slope in zip(w, slopes, strict=True):
        np.testing.assert_allclose(gradients[name], slope.numpy(), rtol=1e-10, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_adamw_equals_torch_over_three_updates(decay: str) -> None:
    fields = {"name": "adamw", "weight_decay": 0.3, "clip_grad_norm": 0.5, "decay": decay, "epsilon": 1e-3}
    spec = cases.run_spec("cpu", optimizer=fields)
    model, optimizer = spec.model, spec.optimizer
    weights = cases.weights(model)
    w = leaves(weights)
    decays = {p.name: p.decay or decay == "all" for p in parameters(model)}
    groups = [
        {"params": [w[name] for name in w if decays[name]], "weight_decay": optimizer.weight_decay},
        {"params": [w[name] for name in w if not decays[name]], "weight_decay": 0.0},
    ]
    betas = (optimizer.beta1, optimizer.beta2)
    adamw = torch.optim.AdamW(groups, lr=0.1, betas=betas, eps=optimizer.epsilon)
    moments: dict[str, reference.Array] = {}
    current: dict[str, reference.Array] = {name: a.astype(np.float64) for name, a in weights.items()}
    for update in (1, 2, 3):
        batch = cases.batch(model, kept=0.2 * update)
        slopes = torch.autograd.grad(torch_loss(model, w, batch), list(w.values()))
        norm = math.sqrt(sum(float(slope.square().sum()) for slope in slopes))
        for tensor, slope in zip(w.values(), slopes, strict=True):
            tensor.grad = slope * min(1.0, 0.5 / norm)
        adamw.step()
        _, gradients = reference.loss_and_gradients(model, current, batch)
        current, moments = reference.adamw_step(model, optimizer, current, moments, gradients, 0.1, update)
    for name, tensor in w.items():
        state = adamw.state[tensor]
        np.testing.assert_allclose(
            current[name], tensor.detach().numpy(), rtol=1e-8, atol=1e-10, err_msg=name
        )
        np.testing.assert_allclose(
            moments[f"{name}.exp_avg"], state["exp_avg"].numpy(), rtol=1e-7, atol=1e-12
        )
        np.testing.assert_allclose(
            moments[f"{name}.exp_avg_sq"], state["exp_avg_sq"].numpy(), rtol=1e-7, atol=1e-15
        )
