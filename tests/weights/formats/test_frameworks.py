"""Files that gptbridge wrote open in the real frameworks, and theirs open here, with equal tensors."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptbridge.errors import BadInput
from gptbridge.weights.formats import WRITERS, Namespace, TensorRef, WeightFile, open_weights, write_ckpt
from tests.weights.formats.conftest import WRITABLE, entries_of, make_array, read_all

SCRIPTS = Path(__file__).parent / "frameworks"
ENVIRONMENT = {**os.environ, "GLOG_minloglevel": "2", "GLOG_v": "3"}
SECONDS = 240
# Which formats each framework opens, and the suffix that it asks for.
OPENED_BY: Mapping[str, Mapping[str, str]] = {
    "torch": {"torch": "given.torch", "torch-legacy": "given.legacy", "safetensors": "given.safetensors"},
    "paddle": {"pdparams": "given.pdparams"},
    "mindspore": {"ckpt": "given.ckpt", "safetensors": "given.safetensors"},
}
# What safetensors files hold and mindspore does not load from them.
UNKNOWN_TO_MINDSPORE = ("float8", "complex")


def describe(weights: WeightFile) -> dict[str, list[Any]]:
    content = read_all(weights)
    return {
        name: [info.dtype, list(info.shape), hashlib.sha256(content[name]).hexdigest()]
        for name, info in weights.tensors.items()
    }


def write_given(folder: Path, framework: str) -> None:
    """Write every format that the framework opens, and what the files hold."""
    given = {}
    for kind, file in OPENED_BY[framework].items():
        dtypes = WRITABLE[kind]
        if framework == "mindspore":
            dtypes = tuple(name for name in dtypes if not name.startswith(UNKNOWN_TO_MINDSPORE))
        arrays = {f"t.{dtype}": (dtype, make_array(dtype, (3, 50))) for dtype in dtypes}
        arrays |= {
            "scalar": ("float32", make_array("float32", ())),
            "one": ("int64", make_array("int64", (1,))),
        }
        arrays |= {"empty": ("float32", make_array("float32", (0, 4)))}
        WRITERS[kind](folder / file, entries_of(arrays))
        with open_weights(folder / file) as weights:
            given[file] = describe(weights)
    if framework == "mindspore":
        with open_weights(folder / "given.ckpt") as weights:
            entries = [(info, partial(weights.chunks, name)) for name, info in weights.tensors.items()]
            write_ckpt(folder / "given-crc.ckpt", entries, crc=True)
        given["given-crc.ckpt"] = given["given.ckpt"]
    (folder / "given.json").write_text(json.dumps(given))


def exchange(framework: str, folder: Path) -> Path:
    write_given(folder, framework)
    command = [sys.executable, str(SCRIPTS / f"with_{framework}.py"), str(folder)]
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """One process a framework for all tests."""
    folders: dict[str, Path] = {}

    def folder_of(framework: str) -> Path:
        if framework not in folders:
            folders[framework] = exchange(framework, tmp_path_factory.mktemp(framework))
        return folders[framework]

    return folder_of


@pytest.mark.parametrize("framework", sorted(OPENED_BY))
def test_files_pass_both_ways(framework: str, exchanged: Callable[[str], Path]) -> None:
    folder = exchanged(framework)
    written = json.loads((folder / "written.json").read_text())
    assert len(written) > 2
    for file, expected in written.items():
        with open_weights(folder / file) as weights:
            assert describe(weights) == expected, file


def test_extents_and_views_of_torch_files(exchanged: Callable[[str], Path]) -> None:
    with open_weights(exchanged("torch") / "torch-zip-2") as weights:
        assert weights.extents("transposed") is None
        assert weights.extents("tied") == weights.extents("base")
        assert not weights.read("transposed").flags.c_contiguous
        assert np.shares_memory(weights.read("transposed"), weights.read("base"))


def test_megatron_files_are_plain_data(exchanged: Callable[[str], Path]) -> None:
    with open_weights(exchanged("torch") / "megatron") as weights:
        tree: Any = weights.tree
        args = Namespace(hidden_size=48, params_dtype="torch.float16", data_path=["a"], seed=None)
        assert (tree["args"], tree["checkpoint_version"], tree["iteration"]) == (args, 3.0, 100)
        name = "model.language_model.embedding.word_embeddings.weight"
        assert tree["model"]["language_model"]["embedding"]["word_embeddings"]["weight"] == TensorRef(name)
        assert weights.tensors[name].shape == (12, 20)
        assert tree["opt_param_scheduler"] == {"lr": 1e-4}
        assert weights.tensors["rng_state.0.np_rng_state.1"].dtype == "uint32"


def test_paddle_names_are_kept(exchanged: Callable[[str], Path]) -> None:
    with open_weights(exchanged("paddle") / "state-4") as weights:
        tree: Any = weights.tree
        assert set(tree["StructuredToParameterName@@"]) <= set(weights.tensors)


def test_mindspore_texts_and_encryption(exchanged: Callable[[str], Path]) -> None:
    folder = exchanged("mindspore")
    with open_weights(folder / "plain.ckpt") as weights:
        assert weights.metadata == {"note": "h\u00e9"}
    with open_weights(folder / "sliced.ckpt") as weights:
        assert len(weights.extents("base") or ()) > 1
    for mode in ("AES-GCM", "AES-CBC", "SM4-CBC"):
        with pytest.raises(BadInput, match="encrypted MindSpore checkpoint: save it again without enc_key"):
            open_weights(folder / f"encrypted-{mode}.ckpt")
