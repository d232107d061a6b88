"""What the conformance kit leaves open: recompute, the fused loss, lower precision, compile, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptbridge.errors import UsageError
from gptbridge.plugins.backend import load_backend
from gptbridge_specs import RunSpec
from gptbridge_torch import ascend, hardware, loss
from gptbridge_torch.session import TorchSession
from tests.backends import sessions
from tests.backends.sessions import LENGTH, VOCAB, SessionTests, gradients, make_batch, make_spec


def open_session(spec: RunSpec) -> TorchSession:
    return sessions.open_session(TorchSession, spec, hardware.setup("cpu"))


def kept_bytes(session: TorchSession) -> int:
    """Return the bytes that the forward pass keeps for the backward pass, parameters aside."""
    model = session._model
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


class TestTorch(SessionTests):
    open_session = staticmethod(open_session)
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
    fused = loss.linear_cross_entropy(hidden, weight, labels, mask)
    fused_gradients = torch.autograd.grad(3 * fused, (hidden, weight))
    plain = F.cross_entropy(hidden @ weight.t(), labels, reduction="none")
    torch.testing.assert_close(fused, (plain * mask).sum())
    for ours, theirs in zip(
        fused_gradients, torch.autograd.grad(3 * (plain * mask).sum(), (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(loss.token_losses(hidden, weight, labels), plain.detach())


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_lower_precision_is_close_to_fp32_but_another(compute: str) -> None:
    exact = gradients(open_session(make_spec()))
    lower = gradients(open_session(make_spec(precision={"compute": compute})))
    for name, gradient in exact.items():
        distance = np.abs(gradient - lower[name]).max() / np.abs(gradient).max()
        assert 0 < distance < 0.05, name


def test_weights_stay_fp32_when_compute_is_lower() -> None:
    session = open_session(make_spec(precision={"compute": "bf16"}))
    before = dict(session.export_weights())
    session.step(make_batch(), 1e-5)
    after = dict(session.export_weights())
    # A step of 1e-5 on a weight near 0.3 is far below what bf16 could hold.
    changed = np.mean(before["h.0.mlp.c_fc.weight"] != after["h.0.mlp.c_fc.weight"])
    assert changed > 0.99


def test_an_overflowed_step_changes_nothing_and_halves_the_scale() -> None:
    session = open_session(make_spec(precision={"compute": "fp16", "initial_loss_scale": 2.0**40}))
    before = {**dict(session.export_weights()), **dict(session.export_optimizer())}
    result = session.step(make_batch(), 1e-2)
    assert result.skipped
    assert result.loss_scale == 2.0**40
    assert (session.export_state().loss_scale, session.export_state().updates) == (2.0**39, 0)
    for name, array in [*session.export_weights(), *session.export_optimizer()]:
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_the_loss_scale_leaves_loss_and_norm_alone() -> None:
    results = [
        open_session(make_spec(precision={"compute": "fp16", "loss_scale": scale})).step(make_batch(), 0.0)
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
    state = {name.removeprefix("transformer."): p.detach().numpy() for name, p in theirs.named_parameters()}
    session = open_session(spec)
    session.import_weights(state)
    tokens = make_batch().inputs[0]
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens).long()).logits.numpy()
    assert np.abs(session.logits(tokens) - expected).max() < 1e-4
    state["h.0.attn.c_proj.weight"] = state["h.0.attn.c_proj.weight"].T  # square: no shape check sees it
    session.import_weights(state)
    assert np.abs(session.logits(tokens) - expected).max() > 1e-2


@pytest.mark.timeout(200)
def test_compile_trains_the_same_model() -> None:
    small = {"num_layers": 1}
    plain = open_session(make_spec(model=small))
    compiled = open_session(make_spec(model=small, training={"compile": True}))
    for step in (1, 2):
        expected, result = plain.step(make_batch(step), 1e-2), compiled.step(make_batch(step), 1e-2)
        assert result.loss == pytest.approx(expected.loss, rel=1e-5)
        assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)


def test_compile_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"training\.compile=True: .*compiler"):
        load_backend("torch").open(make_spec(training={"compile": True}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_gpu_is_refused() -> None:
    with pytest.raises(UsageError, match=r"training\.device: torch sees no GPU"):
        hardware.setup("gpu")


def test_an_absent_ascend_is_refused_and_not_chosen() -> None:
    assert ascend.gptbridge_setup_hardware(make_spec(training={"device": "auto"})) is None
    assert ascend.gptbridge_setup_hardware(make_spec(training={"device": "cpu"})) is None
    with pytest.raises(UsageError, match="no Ascend device"):
        ascend.gptbridge_setup_hardware(make_spec(training={"device": "ascend"}))
