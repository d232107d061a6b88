"""What strangers send, kind by kind: small files as they should be, and what opens them.

An input of the fuzzer is one file, a byte before it says which; its neighbours are whole.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptbridge.checkpoint.manifest import verify, write_manifest
from gptbridge.checkpoint.state import read_state, write_state
from gptbridge.data.inspection import inspect_dataset
from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.data.tokenizers.bpe_files import BpeDefinition, byte_symbols, write_bpe
from gptbridge.errors import BadInput
from gptbridge.weights.formats import open_weights
from gptbridge.weights.formats.dcp_metadata import Place, Saved
from gptbridge.weights.formats.dcp_writer import encode_metadata
from tests.checkpoint.conftest import spec_of, state_of
from tests.data.test_mindrecord import WRITER
from tests.data.test_readers import llm_c
from tests.data.test_tokenizers_chinese import train_model
from tests.data.token_files import write_megatron, write_paddlenlp
from tests.weights.formats.conftest import ONE_FILE, read_all
from tests.weights.formats.containers import legacy, tensor_pickle, torch_zip
from tests.weights.formats.test_fuzz import valid_file

TEXT = "def f(a):\n    return 'abc' # \u4eca\u5929 <|endoftext|>"


def lay_weights(root: Path) -> None:
    for kind in ONE_FILE:
        write(root / kind / kind, valid_file(kind))
    part = Place((0, 0), (2, 3), "__0_0.distcp", 0, 9)
    write(root / "dcp/.metadata", encode_metadata({("w",): Saved("float32", (2, 3), (part,))}))
    write(root / "torch-view/view", torch_zip(tensor_pickle(strides=(1, 3)), {"0": bytes(48)}))
    write(root / "legacy-view/view", legacy(tensor_pickle(strides=(1, 3)), {"0": (12, bytes(48))}))


def open_weight_file(folder: Path) -> None:
    (file,) = folder.iterdir()
    with open_weights(str(file)) as weights:
        read_all(weights)


def lay_tokenizers(root: Path) -> None:
    vocabulary = {token: i for i, token in enumerate([*byte_symbols(), "ab", "abc"])}
    merges = (("a", "b"), ("ab", "c"))
    write_bpe(BpeDefinition(vocabulary, merges, {"<|endoftext|>": 258}, end="<|endoftext|>"), root / "bpe")
    write_bpe(BpeDefinition(vocabulary, merges, {}, end=None), root / "pair")
    (root / "pair/tokenizer.json").unlink()
    write(root / "pair/added_tokens.json", b'{"<pad>": 258}')
    (root / "sentencepiece").mkdir()
    train_model(root / "sentencepiece/spiece.model", "unigram", [])


def use_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    ids = tokenizer.encode(TEXT)
    assert int(ids.max(initial=0)) < tokenizer.vocab_size
    tokenizer.decode(ids)


def lay_tokens(root: Path) -> None:
    documents = [[1, 2, 3], [], [4, 5], [255]]
    for name in ("megatron", "ids", "npz", "nanogpt", "llm.c", "mindrecord"):
        (root / name).mkdir(parents=True)
    write_megatron(root / "megatron/a", documents)
    described = {"version": 1, "vocab_size": 256, "tokenizer": "byte"}
    write(root / "megatron/a.json", json.dumps(described).encode())
    write_paddlenlp(root / "ids/a", documents)
    np.savez_compressed(
        root / "npz/a_ids.npz", ids=np.arange(90, dtype=np.uint16), lens=np.array([40, 50], np.int32)
    )
    write(root / "nanogpt/a.bin", np.arange(2000, dtype="<u2").tobytes())
    write(root / "llm.c/a.bin", llm_c(np.arange(300, dtype="<u2")))
    rows = [{"input_ids": list(range(i, i + 9))} for i in range(3)]
    job = {"path": str(root / "mindrecord/a.mindrecord"), "rows": rows, "small": True}
    job |= {"type": "int32", "shards": 1, "extra": {}, "call": 9}
    subprocess.run([sys.executable, "-c", WRITER], input=json.dumps([job]), text=True, check=True)


def lay_state(root: Path) -> None:
    (root / "run").mkdir(parents=True)
    write_state(root / "run", state_of(spec_of(), 3))


def lay_manifest(root: Path) -> None:
    write(root / "checkpoint/state.json", b"{}")
    write(root / "checkpoint/model.safetensors", bytes(9))
    write_manifest(root / "checkpoint")


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@dataclass(frozen=True)
class Target:
    """`lay` fills an empty folder with folders of good files; `use` opens one of them, or raises BadInput."""

    lay: Callable[[Path], None]
    use: Callable[[Path], object]


TARGETS = {
    "weights": Target(lay_weights, open_weight_file),
    "tokenizers": Target(lay_tokenizers, use_tokenizer),
    "tokens": Target(lay_tokens, lambda folder: inspect_dataset(str(folder))),
    "state": Target(lay_state, read_state),
    "manifest": Target(lay_manifest, verify),
}


class Room:
    """The good files of a target in a folder; one after the other is replaced by an input and put back."""

    def __init__(self, name: str, root: Path) -> None:
        self.target = TARGETS[name]
        self.target.lay(root)
        self.files = sorted(path for path in root.rglob("*") if path.is_file())
        self.good = [path.read_bytes() for path in self.files]

    def seeds(self) -> dict[str, bytes]:
        """Return the good files as inputs, by a name for each."""
        return {
            f"{path.parent.name}-{path.name}": bytes([i]) + self.good[i] for i, path in enumerate(self.files)
        }

    def opens(self, content: bytes) -> bool:
        """Return whether an input opens; whatever is neither that nor a refusal of one line is raised."""
        which = content[0] % len(self.files) if content else 0
        path = self.files[which]
        path.write_bytes(content[1:])
        try:
            self.target.use(path.parent)
        except BadInput as refusal:
            problem = str(refusal)
        else:
            return True
        finally:
            path.write_bytes(self.good[which])
        assert problem.isprintable(), problem
        assert str(path.parent) in problem, problem
        return False
