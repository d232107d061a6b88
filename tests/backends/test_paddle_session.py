"""What the conformance kit leaves open: process set-up, recompute, the loss by blocks, AdamW, refusals."""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptbridge.errors import UsageError
from gptbridge.plugins.backend import load_backend
from gptbridge.process.cores import usable_cores
from gptbridge.weights.architecture import count_parameters
from gptbridge.weights.initial import InitialWeights
from gptbridge_paddle import ascend, hardware
from gptbridge_specs import RunSpec
from tests.backends.sessions import LENGTH, WIDE, KeptBytesTests, everything, make_batch, make_spec, opened

paddle = hardware.import_paddle()

import paddle.nn.functional as F  # noqa: E402
from paddle import Tensor  # noqa: E402

from gptbridge_paddle import loss  # noqa: E402
from gptbridge_paddle.collectives import Cut  # noqa: E402
from gptbridge_paddle.model import GPT  # noqa: E402
from gptbridge_paddle.optimizer import Optimizer  # noqa: E402
from gptbridge_paddle.parts import Attention, Recompute  # noqa: E402
from gptbridge_paddle.session import PaddleModel, PaddleTrainer  # noqa: E402
from gptbridge_paddle.sharding import Sharding  # noqa: E402


def open_trainer(spec: RunSpec) -> PaddleTrainer:
    return opened(PaddleTrainer, spec, hardware.setup("cpu"))


def allocated() -> int:
    return int(paddle.base.core.host_memory_stat_current_value("Allocated", 0))


def peak_of(build: Callable[[], object]) -> int:
    """Return the most bytes that were allocated while `build` ran."""
    gc.collect()
    before = allocated()
    paddle.base.core.host_memory_stat_reset_peak_value("Allocated", 0)
    build()
    return int(paddle.base.core.host_memory_stat_peak_value("Allocated", 0)) - before


def kept_bytes(trainer: PaddleTrainer) -> int:
    """Return the bytes that a forward pass leaves allocated for the backward pass."""
    (model,) = trainer._runs
    model(tokens := paddle.zeros([4, LENGTH], "int32"))  # fills the cache of causal masks
    gc.collect()  # what earlier trainers held must not be freed in between
    before = allocated()
    hidden = model(tokens)
    kept = allocated() - before
    assert not hidden.stop_gradient
    return kept


class TestPaddle(KeptBytesTests):
    open_trainer = staticmethod(open_trainer)
    kept_bytes = staticmethod(kept_bytes)


def test_attention_on_cpu_is_the_fused_one() -> None:
    model = make_spec().model
    attention = Attention(model, 0, Recompute("none"), Cut())
    paddle.seed(1)
    qkv = paddle.randn([3, LENGTH, 72])
    qkv.stop_gradient = False
    ours, theirs = attention._attend(qkv, 1), attention._attend_fused(qkv, 1)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6)
    (gradient,), (expected,) = paddle.grad(ours.square().sum(), qkv), paddle.grad(theirs.square().sum(), qkv)
    np.testing.assert_allclose(gradient.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.fixture(params=[1, 100, 2**20], ids=["row", "blocks", "whole"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss.BLOCK_LOGITS, "cpu", request.param)


@pytest.mark.usefixtures("block_size")
def test_fused_loss_is_the_cross_entropy() -> None:
    paddle.seed(1)
    hidden, weight = paddle.randn([13, 8]), paddle.randn([29, 8])
    hidden.stop_gradient = weight.stop_gradient = False
    labels, mask = paddle.randint(0, 29, [13], "int32"), (paddle.rand([13]) < 0.7).astype("float32")
    words = loss.Words(0, 29, 29)
    fused = loss.linear_cross_entropy(hidden, weight, labels, mask, words)
    plain = F.cross_entropy(paddle.matmul(hidden, weight, transpose_y=True), labels, reduction="none")
    plain = plain.flatten()
    assert float(fused) == pytest.approx(float((plain * mask).sum()), rel=1e-6)
    ours = paddle.grad(3 * fused, [hidden, weight])
    theirs = paddle.grad(3 * (plain * mask).sum(), [hidden, weight])
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        loss.token_losses(hidden, weight, labels, words).numpy(), plain.numpy(), rtol=1e-5, atol=1e-6
    )


def test_loss_of_a_label_without_any_probability_is_finite() -> None:
    hidden, weight = paddle.to_tensor([[1.0]]), paddle.to_tensor([[200.0], [0.0]])
    labels, mask, words = paddle.to_tensor([1], "int32"), paddle.ones([1]), loss.Words(0, 2, 2)
    assert float(loss.linear_cross_entropy(hidden, weight, labels, mask, words)) == 200.0


def optimizer_with(gradient: NDArray[np.float32], **fields: Any) -> tuple[Tensor, Optimizer]:
    parameter = paddle.create_parameter(list(gradient.shape), "float32")
    parameter.set_value(np.ones_like(gradient))
    parameter.grad = paddle.to_tensor(gradient)
    spec = make_spec(optimizer=fields).optimizer
    return parameter, Optimizer(spec, {"weight": parameter}, {"weight": spec.weight_decay}, ["weight"], None)


@pytest.mark.parametrize("size", [1.0, 1e-8, 1e-10])
def test_adamw_places_epsilon_outside_the_corrected_root(size: float) -> None:
    beta1, beta2, epsilon, rate, decay = 0.9, 0.999, 1e-8, 1e-2, 0.1
    draw = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32) * np.float32(size)
    parameter, optimizer = optimizer_with(draw, beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=decay)
    g = draw.astype(np.float64)
    expected, inside = np.ones_like(g), np.ones_like(g)
    m, v = np.zeros_like(g), np.zeros_like(g)
    for step in range(1, 6):
        optimizer.update(rate, step)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        expected = expected * (1 - rate * decay) - rate * m_hat / (np.sqrt(v_hat) + epsilon)
        inside = inside * (1 - rate * decay) - rate * m_hat / np.sqrt(v_hat + epsilon)
    assert np.abs(parameter.numpy() - expected).max() < 1e-6
    assert size == 1.0 or np.abs(parameter.numpy() - inside).max() > 1e-5
    np.testing.assert_allclose(optimizer.moments("exp_avg")["weight"].numpy(), m, rtol=1e-5)


@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.95, 0.999, 1 - 1e-6, 1 - 1e-9, 1 - 1e-15])
def test_second_moments_are_right_for_any_beta2(beta2: float) -> None:
    stream, rate = np.random.default_rng(0), 1e-2
    parameter, optimizer = optimizer_with(np.zeros(40, np.float32), beta2=beta2, weight_decay=0.0)
    weight, m, v = np.ones(40), np.zeros(40), np.zeros(40)
    rounded = np.zeros(40)  # what the kernel makes of beta2
    for step in range(1, 31):
        g = stream.standard_normal(40).astype(np.float32)
        parameter.grad = paddle.to_tensor(g)
        optimizer.update(rate, step)
        m, v = 0.9 * m + 0.1 * g, beta2 * v + (1 - beta2) * np.square(g, dtype=np.float64)
        rounded = np.float32(beta2) * rounded + (1 - np.float32(beta2)) * g * g
        weight -= rate * m / (1 - 0.9**step) / (np.sqrt(v / (1 - beta2**step)) + 1e-8)
    np.testing.assert_allclose(optimizer.moments("exp_avg_sq")["weight"].numpy(), v, rtol=4e-6)
    np.testing.assert_allclose(parameter.numpy(), weight, rtol=0, atol=3e-6)
    assert beta2 < 0.99 or np.abs(rounded / v - 1).max() > 1e-5


def test_a_model_holds_its_weights_in_the_compute_type_alone() -> None:
    spec = make_spec(precision={"compute": "bf16"})
    model = opened(PaddleModel, spec, hardware.setup("cpu"))
    assert {p.dtype for p in model._runs[0].parameters()} == {paddle.bfloat16}
    assert {p.dtype for p in open_trainer(spec)._runs[0].parameters()} == {paddle.float32}
    exact = opened(PaddleModel, make_spec(), hardware.setup("cpu")).shards()
    for shard, other in zip(model.shards(), exact, strict=True):  # what was written is rounded, not lost
        np.testing.assert_allclose(shard.read(), other.read(), rtol=2**-8, err_msg=shard.name)


def test_clipping_sees_the_norm_of_millions_of_gradients() -> None:
    draw = np.random.default_rng(0).standard_normal((1500, 2000)).astype(np.float32)
    norm = math.sqrt(np.square(draw, dtype=np.float64).sum())
    parameter, optimizer = optimizer_with(draw, clip_grad_norm=1.0)
    assert float(optimizer.clip()) == pytest.approx(norm, rel=1e-6)
    np.testing.assert_allclose(parameter.grad.numpy(), draw / norm, rtol=1e-5)


def fp16_trainer(**precision: Any) -> PaddleTrainer:
    """Return a trainer that scales its loss. On CPU auto_cast leaves the arithmetic in fp32."""
    return open_trainer(make_spec(precision={"compute": "fp16", **precision}))


@pytest.mark.filterwarnings("ignore")
def test_an_overflowed_step_changes_nothing_and_halves_the_scale() -> None:
    trainer = fp16_trainer(initial_loss_scale=2.0**200)
    before = everything(trainer)
    result = trainer.step(make_batch(), 1e-2)
    assert result.skipped
    assert result.loss_scale == 2.0**200
    assert (trainer.state.loss_scale, trainer.state.updates) == (2.0**199, 0)
    for name, array in everything(trainer).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_the_loss_scale_leaves_loss_and_norm_alone() -> None:
    results = [fp16_trainer(loss_scale=scale).step(make_batch(), 0.0) for scale in (1.0, 1024.0)]
    assert results[0].loss == results[1].loss
    assert results[0].grad_norm == results[1].grad_norm


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_lower_precision_on_cpu_is_refused(compute: str) -> None:
    with pytest.raises(UsageError, match=rf"precision\.compute={compute}: .*silently compute in fp32"):
        load_backend("paddle").open_trainer(
            make_spec(precision={"compute": compute}, training={"device": "auto"})
        )


def test_an_epsilon_that_the_kernel_does_not_take_is_refused() -> None:
    problems = load_backend("paddle").problems(make_spec(model={"layernorm_epsilon": 0.0011}))
    assert [problem.field for problem in problems] == ["model.layernorm_epsilon"]
    trainer = open_trainer(make_spec(model={"layernorm_epsilon": 0.001}))
    assert trainer.step(make_batch(), 0.0).loss > 0


def test_compile_is_refused() -> None:
    with pytest.raises(UsageError, match=r"training\.compile=True: this backend runs eagerly"):
        load_backend("paddle").open_trainer(make_spec(training={"compile": True}))


@pytest.mark.skipif(paddle.device.is_compiled_with_cuda(), reason="there may be a GPU")
def test_an_absent_gpu_is_refused() -> None:
    with pytest.raises(UsageError, match=r"training\.device: paddle sees no GPU"):
        hardware.setup("gpu")


def test_an_absent_ascend_is_refused_and_not_chosen() -> None:
    assert ascend.gptbridge_setup_hardware(make_spec(training={"device": "auto"})) is None
    assert ascend.gptbridge_setup_hardware(make_spec(training={"device": "cpu"})) is None
    with pytest.raises(UsageError, match="no npu device"):
        ascend.gptbridge_setup_hardware(make_spec(training={"device": "ascend"}))


def test_a_model_that_is_read_takes_the_memory_of_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, device = make_spec(model=WIDE, precision={"compute": "bf16"}), hardware.setup("cpu")
    weights = 2 * count_parameters(spec.model)

    def built_and_cast() -> GPT:
        model = GPT(
            spec.model, range(4), first=True, last=True, recompute="none", cut=Cut(), sharding=Sharding()
        )
        model.to(dtype="bfloat16")
        return model

    monkeypatch.setattr("gptbridge_paddle.session.UPLOADED", 1 << 14)
    assert peak_of(lambda: opened(PaddleModel, spec, device)) <= 1.1 * weights
    assert paddle.get_default_dtype() == "float32"
    assert peak_of(built_and_cast) > 2 * weights
    monkeypatch.setattr("gptbridge_paddle.session.UPLOADED", 1 << 30)
    assert peak_of(lambda: opened(PaddleModel, spec, device)) > 1.3 * weights


def test_bf16_weights_are_read_and_written_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptbridge_paddle.session.UPLOADED", 100)
    spec, device = make_spec(precision={"compute": "bf16"}), hardware.setup("cpu")
    model = opened(PaddleModel, spec, device)
    initial = InitialWeights(spec.model, seed=7)
    for shard in model.shards():
        written, found = initial.read(shard.name, shard.box), shard.read()
        bits = written.view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000  # to the nearest, ties to even
        np.testing.assert_array_equal(found, rounded.astype(np.uint32).view(np.float32))
        assert (
            shard.name.endswith(("bias", "ln_1.weight", "ln_2.weight", "ln_f.weight"))
            or (found != written).any()
        )


SET_UP = """
import os, signal, sys
from gptbridge_paddle import hardware
device = hardware.setup("cpu")
print(os.environ["OMP_NUM_THREADS"], flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("threads", [None, "1"])
def test_the_process_keeps_its_threads_its_signals_and_its_silence(threads: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if threads:
        environment["OMP_NUM_THREADS"] = threads
    run = subprocess.run(
        [sys.executable, "-c", SET_UP], env=environment, capture_output=True, text=True, timeout=60
    )
    assert run.stdout.strip() == (threads or str(usable_cores()))
    assert run.stderr == ""  # no advice at import, no C++ stack at the signal
    assert run.returncode == -15
