"""Objects of plain classes that trainers leave beside weights are data; their state is never run."""

from __future__ import annotations

import io
import pickle
import signal
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gptbridge.errors import BadInput
from gptbridge.weights.formats import Namespace as Attributes
from gptbridge.weights.formats import Tree, open_weights
from tests.weights.formats.pickled import call, global_opcode, text


def tree_of(path: Path, content: bytes) -> Tree:
    path.write_bytes(content)
    with open_weights(path) as weights:
        return weights.tree


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", [Namespace, SimpleNamespace])
def test_namespaces_are_attributes(kind: type, protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps({"args": kind(num_layers=2, inner=kind(name="x")), "w": np.ones(2)}, protocol)
    tree = tree_of(tmp_path / "file", content)
    assert isinstance(tree, dict)
    assert isinstance(tree["args"], Attributes)
    assert tree["args"] == {"num_layers": 2, "inner": {"name": "x"}}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("length", [0, 3, 5000])
def test_extra_state_in_a_bytes_io_is_left_out(length: int, protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps({"_extra_state": io.BytesIO(b"\xff" * length), "n": 1}, protocol)
    assert tree_of(tmp_path / "file", content) == {"_extra_state": {}, "n": 1}


def test_signals_and_a_dtype_class_are_text(tmp_path: Path) -> None:
    content = pickle.dumps([signal.SIGTERM, np.dtypes.UInt32DType], 2)
    assert tree_of(tmp_path / "file", content) == ["Signals(15)", "numpy.dtypes.UInt32DType"]


@pytest.mark.parametrize(
    "name",
    [
        "megatron.core.optimizer.optimizer_config OptimizerConfig",
        "deepspeed.runtime.fp16.loss_scaler DynamicLossScaler",
        "deepspeed.utils.tensor_fragment fragment_address",
    ],
)
def test_settings_are_attributes(name: str, tmp_path: Path) -> None:
    made = b"\x80\x02" + global_opcode(*name.split()) + b")\x81"
    assert tree_of(tmp_path / "file", made + b"}" + text("lr") + b"K\x01sb.") == {"lr": 1}
    with pytest.raises(BadInput, match="sets the state"):  # a tuple is another class's own affair
        tree_of(tmp_path / "file", made + b")b.")


@pytest.mark.parametrize("name", ["types SimpleNamespace", "_io BytesIO"])
def test_they_are_made_without_arguments(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="with arguments"):
        tree_of(tmp_path / "file", call(*name.split(), "x"))


def test_a_random_generator_is_left_out(tmp_path: Path) -> None:
    made = b"\x80\x02" + global_opcode("torch._C", "Generator") + b"(" + text("cpu") + b"tR"
    assert tree_of(tmp_path / "file", made + b"(K\x07N" + text("state") + b"tb.") == {}
    with pytest.raises(BadInput, match="random generator"):
        tree_of(tmp_path / "file", b"\x80\x02" + global_opcode("torch._C", "Generator") + b"(K\x07tR.")
