"""What cannot be exported is refused in one line, before a framework is entered, and nothing is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptbridge import api
from gptbridge.errors import BackendMissing, BridgeError, RunFailed, UsageError
from gptbridge.exporting import formats
from gptbridge.plugins.backend import Backend
from gptbridge.weights.layouts.arrays import stored_array
from gptbridge_specs import ModelSpec
from tests.exporting.sources import PLAIN, write_source

Change = Callable[[Path], object]


def tokenizer_json(change: Callable[[dict[str, Any]], object]) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def without_tokenizer(folder: Path) -> None:
    for path in (*folder.glob("tokenizer*"), folder / "vocab.json", folder / "merges.txt"):
        path.unlink()


def without_end(folder: Path) -> None:
    tokenizer_json(lambda content: (content["added_tokens"].clear(), content["model"]["vocab"].popitem()))(
        folder
    )
    (folder / "tokenizer_config.json").write_text('{"eos_token": null}')


def by_words(folder: Path) -> None:
    """Make the tokenizer one that splits with jieba first."""

    def change(content: dict[str, Any]) -> None:
        content["added_tokens"].append({**content["added_tokens"][0], "id": 258, "content": "<sep>"})
        content["model"]["vocab"].update({"\n": 257, "<sep>": 258})

    tokenizer_json(change)(folder)
    (folder / "tokenizer_config.json").write_text('{"gptbridge_tokenizer": "jieba-bpe"}')


# Why: the format, the model, what is done to its folder, the words of the refusal.
REFUSED: dict[str, tuple[str, dict[str, Any], Change, str]] = {
    "erf": ("gguf", {"activation": "gelu_erf"}, id, "model.activation=gelu_erf: llama.cpp computes"),
    "quick": ("gguf", {"activation": "quick_gelu"}, id, "model.activation=quick_gelu: llama.cpp computes"),
    "heads of one": (
        "gguf",
        {"num_attention_heads": 24},
        id,
        "model.num_attention_heads=24: llama.cpp aborts",
    ),
    "no tokenizer": ("gguf", {}, without_tokenizer, "no tokenizer here"),
    "a tokenizer that is not understood": (
        "gguf",
        {},
        tokenizer_json(lambda content: content.update(normalizer={"type": "Lowercase"})),
        "is not supported): llama.cpp aborts without a vocabulary",
    ),
    "no end": ("gguf", {}, without_end, "tokenizer.end_of_text=none: llama.cpp would take token 11"),
    "words first": ("gguf", {"vocab_size": 260}, by_words, "tokenizer=JiebaBpeTokenizer: a GPT-2 in GGUF"),
    "another split": (
        "gguf",
        {},
        tokenizer_json(lambda content: content.update(normalizer={"type": "NFC"})),
        "tokenizer=another rule of splitting: llama.cpp would split",
    ),
    "a larger tokenizer": ("onnx", {"vocab_size": 250}, id, "the tokenizer has 257 tokens, the model 250"),
    "epsilon": (
        "paddle-inference",
        {"layernorm_epsilon": 0.01},
        id,
        "model.layernorm_epsilon=0.01: Paddle's kernel takes at most 0.001",
    ),
    "no such format": ("ggml", {}, id, "there is no format 'ggml' (allowed: huggingface, gguf, onnx,"),
}


@pytest.fixture(autouse=True)
def no_framework(monkeypatch: pytest.MonkeyPatch) -> None:
    def enter(self: Backend, spec: object) -> None:
        raise AssertionError("a framework was entered")

    monkeypatch.setattr(Backend, "_enter", enter)


@pytest.mark.parametrize("why", REFUSED)
def test_it_is_refused(why: str, tmp_path: Path) -> None:
    format, fields, change, words = REFUSED[why]
    model = ModelSpec.model_validate({**PLAIN.model_dump(), **fields})
    source = write_source(tmp_path / "in", model)
    change(source)
    with pytest.raises(UsageError) as refused:
        api.export(source, tmp_path / "out", format=format)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_framework_would_have_been_entered(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="entered"):
        api.export(write_source(tmp_path / "in", PLAIN), tmp_path / "out", format="onnx")


def test_every_reason_is_given_at_once(tmp_path: Path) -> None:
    model = PLAIN.model_copy(update={"activation": "gelu_erf", "num_attention_heads": 24})
    source = write_source(tmp_path / "in", model)
    without_tokenizer(source)
    with pytest.raises(UsageError) as refused:
        api.export(source, tmp_path / "out", format="gguf")
    assert len(str(refused.value).splitlines()) == 3


def test_an_element_type_that_a_format_has_not(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in", PLAIN)
    with pytest.raises(UsageError, match=r"onnx has no element type 'f16' \(allowed: float32\)"):
        api.export(source, tmp_path / "out", format="onnx", dtype="f16")


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(tmp_path / "in", PLAIN)
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(BackendMissing, match=r"onnx and onnxscript, which are not.*'\.\[export\]'"):
        api.export(source, tmp_path / "out", format="onnx")
    with pytest.raises(BackendMissing, match=r"torch and transformers, which are not"):
        api.export(source, tmp_path / "out", format="huggingface", verify=True)
    done = api.export(source, tmp_path / "out", format="huggingface")
    assert done.verdict is None
    assert done.notes[-1] == "the artefact was not tested: it needs torch and transformers"
    assert "not tested" in (tmp_path / "out" / "README.md").read_text()


def test_an_artefact_with_other_logits_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(tmp_path / "in", PLAIN)

    def wrong(native: Any, whole: Any, read: Any) -> Any:
        array = stored_array(native, whole, read)
        return -array if native.name == "blk.1.attn_qkv.bias" else array

    monkeypatch.setattr("gptbridge.exporting.gguf.stored_array", wrong)
    with pytest.raises(RunFailed, match=r"DIFFERENT LOGITS: .*: nothing is exported") as failed:
        api.export(source, tmp_path / "out", format="gguf")
    assert failed.value.where == tmp_path / "out"
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_only_an_export_is_overwritten(tmp_path: Path) -> None:
    source, output = write_source(tmp_path / "in", PLAIN), tmp_path / "out"
    api.export(source, output, format="gguf", verify=False)
    with pytest.raises(UsageError, match="exists already"):
        api.export(source, output, format="gguf", verify=False)
    (output / "__pycache__").mkdir()
    (output / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"")
    api.export(source, output, format="gguf", dtype="q8_0", verify=False, overwrite=True)
    assert not (output / "__pycache__").exists()
    (output / "thesis.tex").write_text("")
    with pytest.raises(BridgeError, match=r"thesis\.tex, which is no part"):
        api.export(source, output, format="gguf", verify=False, overwrite=True)
