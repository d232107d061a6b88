"""Every layout of the MindSpore backend trains as one process does. Each compiles graphs: few cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tests.parallel.layouts import CLOSE, PACKED, PLAIN, TASK
from tests.parallel.parity import PLAIN_SGD, LayoutTests

SHALLOW = {"num_layers": 2}
DROPPED = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


class TestMindSpore(LayoutTests):
    backend = "mindspore"
    VARIANTS: ClassVar[dict[str, tuple[dict[str, Any], Mapping[str, float]]]] = {
        "sgd": ({**PLAIN_SGD, "model": SHALLOW}, PLAIN),
        "dropped": ({"model": SHALLOW | DROPPED, "training": {"recompute": "full"}}, CLOSE),
        "deep": ({"model": DROPPED, "task": PACKED}, CLOSE),
        "adapted": ({"model": SHALLOW, "task": TASK}, CLOSE),
    }
    LAYOUTS: ClassVar[dict[str, tuple[dict[str, Any], tuple[str, ...]]]] = {
        "dp": ({"data": 2}, ("dropped", "adapted")),
        "tp": ({"tensor": 2}, ()),
        "tp-sequence": ({"tensor": 2, "sequence": True}, ("dropped",)),
        "pp": ({"pipeline": 2}, ()),
        "pp-virtual": ({"pipeline": 2, "virtual_pipeline": 2}, ("deep",)),
        "sharding-1": ({"sharding": 2, "sharding_stage": 1}, ("dropped",)),
        "sharding-2": ({"sharding": 2, "sharding_stage": 2}, ("sgd",)),
        "sharding-3": ({"sharding": 2, "sharding_stage": 3}, ("dropped",)),
        "tp-pp": ({"pipeline": 2, "tensor": 2, "sequence": True}, ("dropped",)),
    }
    BROKEN: ClassVar[dict[str, tuple[str, str]]] = {
        "gradients": ("dp", "gptbridge_mindspore.session:all_reduce_each"),
        "gradients of the stream": ("tp-sequence", "gptbridge_mindspore.session:summed"),
        "gradients of a tied embedding": ("pp", "gptbridge_mindspore.session:summed"),
        "gradients of columns": ("tp", "gptbridge_mindspore.parts:enter=tests.parallel.passed:Passed"),
    }
    READ: ClassVar[frozenset[str] | None] = frozenset(
        {"dp-dropped", "tp-sequence-dropped", "pp-virtual-deep", "sharding-3-dropped"}
        | {f"alone-{variant}" for variant in ("sgd", "dropped", "deep")}
    )
