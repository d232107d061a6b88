"""MindSpore on Ascend as far as a machine without one can tell: what is chosen, its types, its arguments.

A graph of Ascend's operators compiles here to the point where a kernel is looked for: by then MindSpore has
checked what it checks of types and shapes, and derived the gradients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptbridge.hookspecs import Problem
from gptbridge.plugins.backend import load_backend
from gptbridge.process.place import Place
from gptbridge.session import Device
from gptbridge_mindspore import hardware
from gptbridge_specs import RunSpec
from tests.backends import sessions
from tests.backends.sessions import DROPOUT, GRANULARITIES, make_batch, make_spec

ms = hardware.import_mindspore()

from mindspore import Tensor, ops  # noqa: E402

from gptbridge_mindspore import dropout, parts  # noqa: E402
from gptbridge_mindspore.parallel import Groups, cut_of  # noqa: E402
from gptbridge_mindspore.session import MindSporeTrainer  # noqa: E402

ASCEND = Device("ascend", "no Ascend", None)
NO_KERNEL = r"Unsupported op \[{}\] on CPU"
HALF = {"compute": "fp16"}
WIDE = {"hidden_size": 64, "num_attention_heads": 4}


def step(spec: RunSpec) -> None:
    hardware.setup("cpu")
    sessions.opened(MindSporeTrainer, spec, ASCEND).step(make_batch(), 0.0)


@pytest.mark.parametrize(
    ("device", "compute", "width", "chosen"),
    [
        ("cpu", ms.float16, 64, parts.Core),
        ("ascend", ms.float16, 64, parts.FlashCore),
        ("ascend", ms.bfloat16, 64, parts.FlashCore),
        ("ascend", ms.float32, 64, parts.Core),  # the kernel knows no fp32
        ("ascend", ms.float16, 96, parts.Core),  # nor heads of 24
    ],
)
def test_the_device_chooses_the_core_of_attention(
    device: Any, compute: Any, width: int, chosen: type
) -> None:
    model = make_spec(model={**DROPOUT, "hidden_size": width, "num_attention_heads": 4}).model
    core: Any = parts.KERNELS[device].core(model, compute, 4)
    if chosen is parts.Core:
        assert type(core.drop) is parts.KERNELS[device].drop
    assert type(core) is chosen


@pytest.mark.parametrize("recompute", GRANULARITIES)
def test_the_training_graph_lacks_nothing_but_ascends_kernels(recompute: str) -> None:
    spec = make_spec(model=DROPOUT | WIDE, training={"recompute": recompute}, precision=HALF)
    with pytest.raises(RuntimeError, match=NO_KERNEL.format("DropoutGenMaskExt")):
        step(spec)
    with pytest.raises(RuntimeError, match=NO_KERNEL.format("FlashAttentionScore")):
        step(make_spec(model=WIDE, training={"recompute": recompute}, precision=HALF))


def small(kind: int, heads: int, width: int, b: int, t: int) -> tuple[int, int, int]:
    return (b, t, t)


def test_a_graph_of_wrong_shapes_does_not_get_that_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "_shape", small)
    with pytest.raises(Exception, match="the input 'mask' must be") as caught:
        step(make_spec(model=DROPOUT | WIDE, precision=HALF))
    assert "Unsupported op" not in str(caught.value)


def test_seeds_of_the_device_depend_on_seed_and_place_alone() -> None:
    model = make_spec(model=DROPOUT).model
    device = dropout.DeviceDropout(model, cut_of(model, Place(), Groups()), dropout.all_sites(model))
    first, again, other = ([int(seed) for seed in device.arguments(n, (4, 16))] for n in (1, 1, 2))
    assert first == again
    assert len({*first, *other}) == 2 * 7  # the embeddings, and three places in each of two blocks


def fused(mistake: str = "") -> Any:
    """Return what the documentation of flash_attention_score says, in NumPy."""

    def attend(q: Tensor, k: Tensor, v: Tensor, head_num: int, **rest: Any) -> Tensor:
        assert (q.shape[1], rest["input_layout"], rest["sparse_mode"]) == (head_num, "BNSD", 2)
        assert rest["attn_mask"].shape == (2048, 2048)
        t = q.shape[2]
        discarded = rest["attn_mask"].asnumpy()[:t, :t]
        if mistake == "the mask keeps":
            discarded = ~discarded
        scores = rest["scalar_value"] * (q.asnumpy() @ k.asnumpy().swapaxes(2, 3))
        weights = softmax(np.where(discarded, -np.inf, scores))
        if rest["drop_mask"] is not None:
            assert rest["drop_mask"].shape == (*scores.shape[:3], t // 8)
            kept = np.unpackbits(rest["drop_mask"].asnumpy(), axis=-1, bitorder="little")
            weights = weights * kept / (1.0 if mistake == "no scale" else rest["keep_prob"])
        return Tensor((weights @ v.asnumpy()).astype(np.float32))

    return attend


def softmax(x: NDArray[Any]) -> NDArray[Any]:
    powers = np.exp(x - np.maximum(x.max(-1, keepdims=True), -1e30))
    weights: NDArray[Any] = powers / np.maximum(powers.sum(-1, keepdims=True), 1e-30)
    return weights


@pytest.mark.parametrize("drops", [False, True])
def test_the_fused_kernel_is_asked_for_what_the_plain_core_computes(
    drops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_spec(model=DROPOUT | WIDE).model
    b, t, n, d = 2, 16, model.num_attention_heads, model.head_size
    draw = np.random.default_rng(0)
    q, k, v = (Tensor(draw.standard_normal((b * n, t, d)).astype(np.float32)) for _ in range(3))
    bias = Tensor(
        np.broadcast_to(np.triu(np.full((t, t), parts.HIDDEN, np.float32), 1), (b * n, t, t)).copy()
    )
    kept = draw.random((b * n, t, t)) >= 0.2
    bits = np.packbits(kept, axis=-1, bitorder="little").ravel()
    plain = parts.Core(model, ms.float32, 4)(q, k, v, bias, *([Tensor(kept)] if drops else [])).asnumpy()
    mistakes = {"": True, "the mask keeps": False} | ({"no scale": False} if drops else {})
    for mistake, right in mistakes.items():
        monkeypatch.setattr(ops, "flash_attention_score", fused(mistake))
        core = parts.FlashCore(model, ms.float32, 4)
        found = core(q, k, v, bias, *([Tensor(bits)] if drops else [])).asnumpy()
        assert np.allclose(found, plain, rtol=0, atol=1e-4) == right, mistake


def test_a_length_that_bytes_cannot_drop_is_refused() -> None:
    backend = load_backend("mindspore")
    odd = {"training": {"seq_length": 12, "device": "ascend"}}

    def found(**parts: Any) -> list[Problem]:
        problems = backend.problems(make_spec(**odd, **parts))
        return [problem for problem in problems if problem.field == "training.seq_length"]

    assert found(model=DROPOUT, precision=HALF)
    assert not found(precision=HALF)
    assert not found(model=DROPOUT)
