"""What the conformance kit leaves open: recompute, the fused loss, lower precision, compile, refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from gptbridge.errors import UsageError
from gptbridge.plugins.backend import load_backend
from gptbridge.weights import shards
from gptbridge.weights.architecture import count_parameters
from gptbridge_specs import RunSpec
from gptbridge_torch import ascend, hardware, loss, stages
from gptbridge_torch.collectives import Cut
from gptbridge_torch.model import GPT
from gptbridge_torch.session import TorchModel, TorchTrainer
from tests.backends.sessions import (
    LENGTH,
    VOCAB,
    WIDE,
    KeptBytesTests,
    everything,
    gradients,
    make_batch,
    make_spec,
    opened,
)

START = """
import sys
import torch
from gptbridge.plugins.backend import load_backend
from tests.backends.sessions import make_batch, make_spec

for recompute in ("none", "full"):
    trainer, _, _ = load_backend("torch").open_trainer(make_spec(training={"recompute": recompute}))
    trainer.step(make_batch(), 0.0)
    trainer.logits(make_batch().inputs[0])
    print("torch._dynamo" in sys.modules, torch.are_deterministic_algorithms_enabled())
"""


def open_trainer(spec: RunSpec) -> TorchTrainer:
    return opened(TorchTrainer, spec, hardware.setup("cpu"))


def open_model(spec: RunSpec) -> TorchModel:
    return opened(TorchModel, spec, hardware.setup("cpu"))


def kept_bytes(trainer: TorchTrainer) -> int:
    """Return the bytes that the forward pass keeps for the backward pass, parameters aside."""
    model = trainer._model
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model(torch.zeros((4, LENGTH), dtype=torch.int64))
    assert hidden.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def test_a_run_starts_without_the_compiler() -> None:
    """Its import takes a second; torch's recomputation, the control, needs it."""
    run = subprocess.run(
        [sys.executable, "-c", START], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.split() == ["False", "True", "True", "True"]


class TestTorch(KeptBytesTests):
    open_trainer = staticmethod(open_trainer)
    kept_bytes = staticmethod(kept_bytes)


@pytest.fixture(params=[(1, 1), (100, 1), (2**20, 1), (100, 64)], ids=["row", "blocks", "whole", "padded"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, multiple = request.param
    monkeypatch.setitem(loss.BLOCK_LOGITS, "cpu", logits)
    monkeypatch.setitem(loss.ROW_MULTIPLE, "cpu", multiple)


@pytest.mark.usefixtures("block_size")
def test_fused_loss_is_the_cross_entropy() -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(13, 8, requires_grad=True), torch.randn(29, 8, requires_grad=True)
    labels, mask = torch.randint(0, 29, (13,)), (torch.rand(13) < 0.7).float()
    words = loss.Words.of(29, Cut())
    fused = loss.linear_cross_entropy(hidden, weight, labels, mask, words)
    fused_gradients = torch.autograd.grad(3 * fused, (hidden, weight))
    plain = F.cross_entropy(hidden @ weight.t(), labels, reduction="none")
    torch.testing.assert_close(fused, (plain * mask).sum())
    for ours, theirs in zip(
        fused_gradients, torch.autograd.grad(3 * (plain * mask).sum(), (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(loss.token_losses(hidden, weight, labels, words), plain.detach())


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_lower_precision_is_close_to_fp32_but_another(compute: str) -> None:
    exact = gradients(open_trainer(make_spec()))
    lower = gradients(open_trainer(make_spec(precision={"compute": compute})))
    for name, gradient in exact.items():
        distance = np.abs(gradient - lower[name]).max() / np.abs(gradient).max()
        assert 0 < distance < 0.05, name


def test_weights_stay_fp32_when_compute_is_lower() -> None:
    trainer = open_trainer(make_spec(precision={"compute": "bf16"}))
    before = shards.arrays(trainer.shards())
    trainer.step(make_batch(), 1e-5)
    after = shards.arrays(trainer.shards())
    # A step of 1e-5 on a weight near 0.3 is far below what bf16 could hold.
    changed = np.mean(before["h.0.mlp.c_fc.weight"] != after["h.0.mlp.c_fc.weight"])
    assert changed > 0.99


def test_an_overflowed_step_changes_nothing_and_halves_the_scale() -> None:
    trainer = open_trainer(make_spec(precision={"compute": "fp16", "initial_loss_scale": 2.0**40}))
    before = everything(trainer)
    result = trainer.step(make_batch(), 1e-2)
    assert result.skipped
    assert result.loss_scale == 2.0**40
    assert (trainer.state.loss_scale, trainer.state.updates) == (2.0**39, 0)
    for name, array in everything(trainer).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_the_loss_scale_leaves_loss_and_norm_alone() -> None:
    results = [
        open_trainer(make_spec(precision={"compute": "fp16", "loss_scale": scale})).step(make_batch(), 0.0)
        for scale in (1.0, 1024.0)
    ]
    assert results[0].loss == results[1].loss
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-2)


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu_erf", "quick_gelu"])
def test_logits_are_those_of_hugging_face(activation: str) -> None:
    transformers = pytest.importorskip("transformers")
    names = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu", "quick_gelu": "quick_gelu"}
    spec = make_spec(model={"activation": activation})
    torch.manual_seed(2)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB,
            n_embd=24,
            n_layer=2,
            n_head=4,
            n_positions=LENGTH,
            activation_function=names[activation],
            initializer_range=0.3,
        )
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    weights = canonical(theirs)
    model = open_model(spec)
    shards.load(model.shards(), shards.from_arrays(spec.model, weights))
    tokens = make_batch().inputs[0]
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens).long()).logits.numpy()
    assert np.abs(model.logits(tokens) - expected).max() < 1e-4
    weights["h.0.attn.c_proj.weight"] = weights["h.0.attn.c_proj.weight"].T  # square: no shape check sees it
    shards.load(model.shards(), shards.from_arrays(spec.model, weights))
    assert np.abs(model.logits(tokens) - expected).max() > 1e-2


def canonical(theirs: Any) -> dict[str, NDArray[np.float32]]:
    """Return the weights of a GPT2LMHeadModel, q, k and v apart."""
    weights: dict[str, NDArray[np.float32]] = {}
    for name, parameter in theirs.transformer.named_parameters():
        array = parameter.detach().numpy()
        names = [name.replace("c_attn", part) for part in "qkv"] if ".c_attn." in name else [name]
        weights |= zip(names, np.split(array, len(names), -1), strict=True)
    return weights


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_a_model_holds_its_weights_in_the_compute_type_alone(compute: str) -> None:
    exact, lower = open_model(make_spec()), open_model(make_spec(precision={"compute": compute}))
    assert {p.dtype for p in lower._model.parameters() if p.ndim > 1} == {stages.COMPUTE[compute]}
    assert {p.dtype for p in open_trainer(make_spec(precision={"compute": "bf16"}))._model.parameters()} == {
        torch.float32
    }
    tokens = make_batch().inputs[0]
    expected, found = exact.logits(tokens), lower.logits(tokens)
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    decoder = lower.decoder(len(tokens), LENGTH)
    decoder.feed(tokens[:, :-1], np.full(len(tokens), LENGTH - 1, np.int32))
    decoded = decoder.feed(tokens[:, -1:], np.ones(len(tokens), np.int32))
    assert np.abs(decoded - found[:, -1]).max() < 0.02 * np.abs(expected).max()
    losses = lower.token_losses(tokens, tokens)
    np.testing.assert_allclose(losses, exact.token_losses(tokens, tokens), rtol=0.05)


@pytest.mark.timeout(200)
def test_compile_trains_the_same_model() -> None:
    small = {"num_layers": 1}
    plain = open_trainer(make_spec(model=small))
    compiled = open_trainer(make_spec(model=small, training={"compile": True}))
    assert torch._inductor.config.deterministic
    for step in (1, 2):
        expected, result = plain.step(make_batch(step), 1e-2), compiled.step(make_batch(step), 1e-2)
        assert result.loss == pytest.approx(expected.loss, rel=1e-5)
        assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)


def test_compile_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"training\.compile=True: .*compiler"):
        load_backend("torch").open_trainer(make_spec(training={"compile": True}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_gpu_is_refused() -> None:
    with pytest.raises(UsageError, match=r"training\.device: torch sees no GPU"):
        hardware.setup("gpu")


def test_an_absent_ascend_is_refused_and_not_chosen() -> None:
    assert ascend.gptbridge_setup_hardware(make_spec(training={"device": "auto"})) is None
    assert ascend.gptbridge_setup_hardware(make_spec(training={"device": "cpu"})) is None
    with pytest.raises(UsageError, match="no Ascend device"):
        ascend.gptbridge_setup_hardware(make_spec(training={"device": "ascend"}))


def allocated_by(build: Callable[[], object]) -> int:
    """Return the bytes that were allocated while `build` ran, one after the other."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        build()
    return sum(max(0, event.self_cpu_memory_usage) for event in profile.events() or ())


def test_a_model_that_is_read_takes_the_memory_of_its_weights() -> None:
    spec, device = make_spec(model=WIDE, precision={"compute": "bf16"}), hardware.setup("cpu")
    assert device is not None
    weights = 2 * count_parameters(spec.model)

    def built_and_cast() -> GPT:
        kind = torch.bfloat16
        whole: dict[str, Any] = {"first": True, "last": True, "recompute": "none", "cut": Cut()}
        model = GPT(spec.model, range(4), dtype=kind, stream_dtype=kind, **whole)
        return model.to(torch.bfloat16)

    assert allocated_by(lambda: TorchModel(spec, device)) <= 1.1 * weights
    assert allocated_by(built_and_cast) > 2 * weights
