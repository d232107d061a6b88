"""What the conformance kit leaves open: recompute, dropout, shapes, the loss by pieces, AdamW, refusals."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptbridge import reference
from gptbridge.errors import UsageError
from gptbridge.plugins.backend import load_backend
from gptbridge.process.place import Place
from gptbridge.rules.dropout import dropout_seed
from gptbridge.weights import shards
from gptbridge.weights.initial import InitialWeights
from gptbridge_mindspore import hardware
from gptbridge_specs import RunSpec
from tests.backends import sessions
from tests.backends.sessions import DROPOUT, LENGTH, VOCAB, SessionTests, gradients, make_batch, make_spec

ms = hardware.import_mindspore()

from mindspore import Parameter, Tensor  # noqa: E402

from gptbridge_mindspore import loss  # noqa: E402
from gptbridge_mindspore.dropout import HostDropout, all_sites, keep_scale  # noqa: E402
from gptbridge_mindspore.optimizer import Optimizer  # noqa: E402
from gptbridge_mindspore.parallel import Groups, cut_of  # noqa: E402
from gptbridge_mindspore.session import MindSporeModel, MindSporeTrainer  # noqa: E402
from gptbridge_mindspore.shapes import pad, usual_size  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def _errors_name_their_operator() -> None:
    ms.runtime.launch_blocking()


def open_trainer(spec: RunSpec) -> MindSporeTrainer:
    return sessions.opened(MindSporeTrainer, spec, hardware.setup("cpu"))


PEAK = """
import sys
import numpy as np
from gptbridge.plugins.backend import load_backend
from gptbridge.session import Batch
from gptbridge_specs import load_run
fields = ("model.vocab_size=64", "model.hidden_size=128", "model.num_layers=4", "training.device=cpu",
          "training.seq_length=256", "training.global_batch_size=64", "training.recompute=" + sys.argv[1])
trainer, _, _ = load_backend("mindspore").open_trainer(load_run("gpt2-tiny", fields))
tokens = np.zeros((1, 64, 256), np.int32)
trainer.step(Batch(tokens, tokens, np.ones(tokens.shape, bool), tokens.size, (1,)), 0.0)
# not ru_maxrss, which starts at what the forking parent held
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_mebibytes(recompute: str) -> int:
    """Return the memory of a process that does one step."""
    command = [sys.executable, "-c", PEAK, recompute]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    return int(done.stdout) >> 10


class TestMindSpore(SessionTests):
    open_trainer = staticmethod(open_trainer)

    def test_recompute_keeps_less_at_each_granularity(self) -> None:
        peaks = {recompute: peak_mebibytes(recompute) for recompute in sessions.GRANULARITIES}
        assert peaks["none"] > peaks["core_attn"] + 80
        assert peaks["core_attn"] > peaks["full_attn"] > peaks["full"] + 50


def test_masks_drop_the_share_that_the_spec_says() -> None:
    spec = make_spec(model={"hidden_size": 512, **DROPOUT})
    dropout = HostDropout(spec.model, cut_of(spec.model, Place(), Groups()), all_sites(spec.model))
    draw = [list(dropout.arguments(dropout_seed(7, step, 0), (64, LENGTH))) for step in (1, 1, 2)]
    first, again, other = (masks[0].asnumpy() for masks in draw)
    attention, mlp = (mask.asnumpy() for mask in draw[0][2:4])
    np.testing.assert_array_equal(first, again)
    assert first.mean() == pytest.approx(0.8, abs=0.005)  # 9 standard deviations
    for unlike in (other, attention, mlp):  # independent masks agree on 0.8 x 0.8 + 0.2 x 0.2
        assert (first == unlike).mean() == pytest.approx(0.68, abs=0.005)
    assert keep_scale(0.2) == pytest.approx(1.25, rel=1e-4)


@pytest.mark.parametrize("beta2", [0.0, 0.95, 0.9999, 1 - 1e-7])
def test_second_moments_are_right_for_any_beta2(beta2: float) -> None:
    draw = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    optimizer = optimizer_of(Parameter(Tensor(np.ones_like(draw)), name="w"), beta2=beta2)
    v = np.zeros(draw.shape)
    for count in (1, 2, 3):
        optimizer.update([Tensor(draw)], Tensor(1.0, ms.float32), 1e-3, count)
        v = beta2 * v + (1 - beta2) * draw.astype(np.float64) ** 2
    kept = optimizer.moments("exp_avg_sq")["w"].asnumpy()
    np.testing.assert_allclose(kept / optimizer.kept["exp_avg_sq"], v, rtol=2e-6)


@given(size=st.integers(1, 5000), usual=st.integers(1, 5000))
def test_few_shapes_hold_all_sizes(size: int, usual: int) -> None:
    chosen = usual_size(size, usual)
    assert size <= chosen <= max(16, 2 * size - 1)
    assert chosen == usual or chosen & (chosen - 1) == 0


def test_padding_keeps_what_is_there() -> None:
    array = np.arange(1, 7, dtype=np.int32).reshape(2, 3)
    padded = pad(array, (4, 16))
    np.testing.assert_array_equal(padded[:2, :3], array)
    assert padded.sum() == array.sum()


@pytest.mark.parametrize("shape", [(1, 3), (5, 7), (9, LENGTH)])
def test_odd_shapes_evaluate_like_the_reference(shape: tuple[int, int]) -> None:
    spec = make_spec()
    weights = dict(InitialWeights(spec.model, seed=7))
    stream = np.random.default_rng(2)
    tokens, labels = (stream.integers(0, VOCAB, shape, dtype=np.int32) for _ in range(2))
    at = stream.integers(0, shape[1], (shape[0], 2), dtype=np.int32)
    session = open_trainer(spec)
    logits = reference.logits(spec.model, weights, tokens)
    np.testing.assert_allclose(session.logits(tokens), logits, atol=1e-4)
    chosen = np.take_along_axis(logits, at[..., None], 1)
    np.testing.assert_allclose(session.logits(tokens, at), chosen, atol=1e-4)
    losses = reference.token_losses(spec.model, weights, tokens, labels)
    np.testing.assert_allclose(session.token_losses(tokens, labels), losses, atol=1e-4)


def test_the_head_by_pieces_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gradients(open_trainer(make_spec()))
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 20 * VOCAB)  # 64 rows by 16
    for name, gradient in gradients(open_trainer(make_spec())).items():
        np.testing.assert_allclose(gradient, whole[name], atol=2e-7, err_msg=name)


def test_labels_that_do_not_count_may_be_anything() -> None:
    batch = make_batch()
    batch.loss_mask[:, :, ::2] = False
    count = int(batch.loss_mask.sum())
    spoilt = np.where(batch.loss_mask, batch.labels, np.int32(-100))
    clean = replace(batch, loss_tokens=count)
    dirty = replace(batch, labels=spoilt, loss_tokens=count)
    assert open_trainer(make_spec()).step(clean, 1e-3) == open_trainer(make_spec()).step(dirty, 1e-3)


def test_loss_of_a_label_without_any_probability_is_finite() -> None:
    spec = make_spec(model={"tie_word_embeddings": False})
    session = open_trainer(spec)
    weights = shards.arrays(session.shards())
    weights["lm_head.weight"] *= 2000
    shards.load(session.shards(), shards.from_arrays(spec.model, weights))
    tokens = make_batch().inputs[0]
    worst = session.logits(tokens).argmin(-1).astype(np.int32)
    expected = reference.token_losses(spec.model, weights, tokens, worst)
    assert expected.min() > 200  # e^-200 is 0 in fp32
    np.testing.assert_allclose(session.token_losses(tokens, worst), expected, rtol=1e-5)


def optimizer_of(weight: Parameter, **fields: Any) -> Optimizer:
    spec = make_spec(optimizer=fields).optimizer
    return Optimizer(spec, {"w": weight}, {"w": spec.weight_decay}, [True], Groups())


@pytest.mark.parametrize("size", [1.0, 1e-8, 1e-10])
def test_adamw_places_epsilon_outside_the_corrected_root(size: float) -> None:
    beta1, beta2, epsilon, rate, decay = 0.9, 0.999, 1e-8, 1e-2, 0.1
    draw = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32) * np.float32(size)
    weight = Parameter(Tensor(np.ones_like(draw)), name="w")
    optimizer = optimizer_of(weight, beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=decay)
    g = draw.astype(np.float64)
    expected, inside = np.ones_like(g), np.ones_like(g)
    m, v = np.zeros_like(g), np.zeros_like(g)
    for count in range(1, 6):
        optimizer.update([Tensor(draw)], Tensor(1.0, ms.float32), rate, count)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - beta1**count), v / (1 - beta2**count)
        expected = expected * (1 - rate * decay) - rate * m_hat / (np.sqrt(v_hat) + epsilon)
        inside = inside * (1 - rate * decay) - rate * m_hat / np.sqrt(v_hat + epsilon)
    assert np.abs(weight.asnumpy() - expected).max() < 1e-6
    assert size == 1.0 or np.abs(weight.asnumpy() - inside).max() > 1e-5
    found = optimizer.moments("exp_avg")["w"].asnumpy() / optimizer.kept["exp_avg"]
    np.testing.assert_allclose(found, m, rtol=1e-5)


def test_clipping_sees_the_norm_of_millions_of_gradients() -> None:
    draw = np.random.default_rng(0).standard_normal((1500, 2000)).astype(np.float32)
    norm = math.sqrt(np.square(draw, dtype=np.float64).sum())
    optimizer = optimizer_of(Parameter(Tensor(np.zeros_like(draw)), name="w"), clip_grad_norm=1.0)
    found, factor = optimizer.norm([Tensor(draw)])
    assert float(found) == pytest.approx(norm, rel=1e-6)
    assert float(factor) == pytest.approx(1 / norm, rel=1e-5)


def fp16_session(**precision: Any) -> MindSporeTrainer:
    """Return a session in fp16, which the plugin refuses on CPU for its speed; the kernels are there."""
    return open_trainer(make_spec(precision={"compute": "fp16", **precision}))


def test_fp16_products_are_close_to_fp32_but_others() -> None:
    exact = open_trainer(make_spec()).logits(make_batch().inputs[0])
    error = np.abs(fp16_session().logits(make_batch().inputs[0]) - exact).max()
    assert 1e-5 < error < 0.05


def test_a_model_that_is_read_holds_matrices_as_it_computes_with_them() -> None:
    spec = make_spec(precision={"compute": "fp16"})
    model = sessions.opened(MindSporeModel, spec, hardware.setup("cpu"))
    found = shards.arrays(model.shards())
    for name, array in dict(InitialWeights(spec.model, seed=7)).items():
        expected = array.astype(np.float16).astype(np.float32) if array.ndim > 1 else array
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
    assert {str(weight.dtype) for weight in model._weights.values() if weight.ndim > 1} == {"Float16"}
    assert {str(weight.dtype) for weight in fp16_session()._weights.values()} == {"Float32"}
    tokens = make_batch().inputs[0]
    np.testing.assert_allclose(model.logits(tokens), fp16_session().logits(tokens), atol=0.05)


def test_an_overflowed_step_changes_nothing_and_halves_the_scale() -> None:
    session = fp16_session(initial_loss_scale=2.0**60)
    before = sessions.everything(session)
    result = session.step(make_batch(), 1e-2)
    assert result.skipped
    assert result.loss_scale == 2.0**60
    assert (session.state.loss_scale, session.state.updates) == (2.0**59, 0)
    for name, array in sessions.everything(session).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_the_loss_scale_leaves_loss_and_norm_alone() -> None:
    results = [fp16_session(loss_scale=scale).step(make_batch(), 0.0) for scale in (256.0, 1024.0)]
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-6)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-3)


@pytest.mark.parametrize(("compute", "reason"), [("bf16", "no bf16 kernels"), ("fp16", "slower")])
def test_lower_precision_on_cpu_is_refused(compute: str, reason: str) -> None:
    spec = make_spec(precision={"compute": compute}, training={"device": "auto"})
    with pytest.raises(UsageError, match=rf"precision\.compute={compute}: .*{reason}"):
        load_backend("mindspore").open_trainer(spec)


def test_an_absent_ascend_is_refused() -> None:
    with pytest.raises(UsageError, match=r"training\.device: mindspore sees no Ascend"):
        hardware.setup("ascend")


PROGRAM = """
from gptbridge_mindspore import hardware
print(hardware.probe()["devices"], hardware.setup("auto").kind)
from mindspore import Tensor, jit
from mindspore.ops import MatMul
def mismatched(x):
    return MatMul()(x, x.reshape(1, -1))
try:
    jit(mismatched)(Tensor([[1.0, 2.0], [3.0, 4.0]]))
except ValueError:
    print("refused")
"""


def test_the_process_is_silent_and_leaves_no_files(tmp_path: Path) -> None:
    program, folder = tmp_path / "program.py", tmp_path / "run"  # a graph's source must be in a file
    program.write_text(PROGRAM)
    folder.mkdir()
    run = subprocess.run(
        [sys.executable, str(program)], cwd=folder, capture_output=True, text=True, timeout=100
    )
    assert run.stdout.splitlines() == ["['cpu'] cpu", "refused"]
    assert run.stderr == ""
    assert list(folder.iterdir()) == []
