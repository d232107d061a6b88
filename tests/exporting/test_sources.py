"""Any checkpoint is exported; the card says what was trained on what, and no folder of anybody's."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gptbridge import api
from gptbridge.checkpoint.state import Origin
from gptbridge.errors import BadInput
from gptbridge.exporting.card import model_card
from gptbridge.exporting.draft import draft
from gptbridge.exporting.formats import FORMATS
from gptbridge.exporting.selftest import self_test
from gptbridge.weights.opening import Hints, open_checkpoint
from tests.exporting.sources import PLAIN, write_source
from tests.weights.conversion.checkpoints import converted
from tests.weights.conversion.test_lora import HIDDEN, write_peft

RUN = Path(__file__).parents[1] / "weights/conversion/vectors/run"


def test_a_run_is_exported_with_what_is_known_of_it(tmp_path: Path) -> None:
    shutil.copytree(RUN, tmp_path / "run")
    api.export(tmp_path / "run", tmp_path / "out", format="huggingface", verify=False)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "3 steps, 372 tokens, on the Python standard library's source" in card
    assert "computed in fp32 by torch" in card
    assert api.inspect(RUN).as_dict()["digest"] in card
    other = write_source(tmp_path / "other", PLAIN)
    words = json.loads((other / "tokenizer.json").read_text()) | {"normalizer": {"type": "NFC"}}
    (other / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(BadInput, match="is not the tokenizer that the run was trained with"):
        api.export(tmp_path / "run", tmp_path / "more", format="gguf", tokenizer=other)


def test_the_card_names_no_folder() -> None:
    with open_checkpoint(RUN / "checkpoints/step-00000003") as opened:
        made, _ = draft(opened, "float32", Hints())
        assert made.state is not None
        data = made.state.spec.data.model_copy(update={"path": "/home/eva/texts/poems"})
        spec = made.state.spec.model_copy(update={"data": data})
        origin = Origin(path="/home/eva/models/gpt2", dialect="torch", digest="sha256:0")
        state = made.state.model_copy(update={"spec": spec, "origin": origin})
        card = model_card("onnx", FORMATS["onnx"], replace(made, state=state), None)
    assert "on poems" in card
    assert "from weights of gpt2 (torch), digest sha256:0" in card
    assert "/home" not in card


def test_another_dialect_in_half_precision(tmp_path: Path) -> None:
    """Numbers that are stored in a type, and written in it, are not rounded: 1e-5 holds."""
    source = write_source(tmp_path / "in", PLAIN)
    paddle = converted(source, tmp_path / "paddle", "paddle", dtype="float16")
    done = api.export(paddle, tmp_path / "out", format="gguf")
    assert done.dtype == "float16"
    assert done.verdict is not None
    assert done.verdict.tolerance == 1e-5
    rounded = api.export(source, tmp_path / "rounded", format="gguf", dtype="f16")
    assert rounded.verdict is not None
    assert rounded.verdict.max_difference > 1e-4


def test_types_that_differ_are_written_in_the_widest(tmp_path: Path) -> None:
    """Also a number that float16 cannot hold is refused, by the name of its weight."""
    source = write_source(tmp_path / "in", PLAIN)
    arrays = load_file(source / "model.safetensors")
    arrays["wte.weight"] = arrays["wte.weight"].astype(np.float16)
    arrays["h.1.mlp.c_fc.weight"][3, 5] = 1e5
    save_file(arrays, source / "model.safetensors", {"format": "pt"})
    assert api.export(source, tmp_path / "out", format="gguf", verify=False).dtype == "float32"
    with pytest.raises(BadInput, match=r"h\.1\.mlp\.c_fc\.weight holds 100000, which is beyond float16"):
        api.export(source, tmp_path / "half", format="gguf", dtype="f16")
    assert not (tmp_path / "half").exists()


def test_a_folder_for_transformers_says_the_type_and_the_end(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in", PLAIN)
    api.export(source, tmp_path / "out", format="huggingface", dtype="bfloat16", verify=False)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["torch_dtype"], config["bos_token_id"], config["eos_token_id"]) == ("bfloat16", 256, 256)
    words = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert words["model_max_length"] == PLAIN.max_position_embeddings


def test_an_adapter_is_added(tmp_path: Path) -> None:
    model = PLAIN.model_copy(update={"hidden_size": HIDDEN})
    source = write_source(tmp_path / "in", model)
    api.export(source, tmp_path / "without", format="gguf")
    write_peft(source / "adapter")
    done = api.export(source, tmp_path / "with", format="gguf")
    assert "adapter" in done.notes[0]
    assert "float32's own rounding" in done.notes[-1]  # the adapter's factors are large
    with open_checkpoint(source) as opened:
        found = self_test(tmp_path / "without", model, opened.merged().arrays, 1e-5)
    assert found.max_difference > 0.1
    assert "a LoRA adapter was added" in (tmp_path / "with" / "README.md").read_text()
