"""Runs of adapters beside frozen weights: checkpoints of deltas alone, that move and that PEFT opens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptbridge import convert, open_checkpoint, reference
from gptbridge.errors import BadInput, UsageError
from gptbridge.training.beginning import Beginning, advise_beginning
from gptbridge.training.launch import train
from gptbridge.training.start import resolve
from gptbridge.weights.dialects.peft import base_of
from gptbridge.weights.opening import Hints
from tests.training.conftest import NO_DROPOUT, gptbridge, options, run_jobs, steps_of

HF = Path(__file__).parents[1] / "weights/conversion/vectors/hf"
RUN = (
    *NO_DROPOUT,
    "data.tokenizer=byte",
    "data.split=[1,0,0]",
    "training.seq_length=24",
    "training.global_batch_size=4",
    "training.max_steps=6",
    "evaluation.interval=0",
    "training.device=cpu",
    "schedule.max_lr=0.01",
    "task.lora.rank=4",
    'task.lora.targets=["q","v","fc"]',
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of 6 steps: `torch`, and `moved`, which goes on with another framework after 2 and 4."""
    folder = tmp_path_factory.mktemp("adapters")
    np.random.default_rng(7).integers(0, 67, 2000).astype("<u2").tofile(folder / "tokens.bin")
    overrides = [*RUN, f"data.path={folder / 'tokens.bin'}"]
    moved, begin = str(folder / "moved"), {"init_from": str(HF)}
    stops = [f"training.stop_after_steps={step}" for step in (2, 4)]
    run_jobs(
        folder,
        "torch",
        [
            {"run": str(folder / "torch"), "overrides": overrides, **begin},
            {"run": moved, "overrides": [*overrides, stops[0]], **begin},
        ],
    )
    run_jobs(folder, "paddle", [{"run": moved, "resume": moved, "overrides": stops[1:]}])
    run_jobs(folder, "mindspore", [{"run": moved, "resume": moved}])
    return folder


def last_of(run: Path) -> Path:
    return run / "checkpoints/step-00000006"


def merged_logits(checkpoint: Path, tokens: NDArray[np.int32]) -> NDArray[Any]:
    with open_checkpoint(checkpoint) as opened:
        merged = opened.merged()
        return reference.logits(merged.model, dict(merged.arrays), tokens)


def test_a_run_of_adapters_moves_between_the_backends(runs: Path) -> None:
    straight, moved = (
        [step["loss"] for step in steps_of(runs / name).values()] for name in ("torch", "moved")
    )
    np.testing.assert_allclose(moved, straight, rtol=1e-5)
    assert abs(straight[0] - straight[-1]) > 0.05
    names = {path.name for path in last_of(runs / "moved").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors"} < names
    assert not names & {"config.json", "model.safetensors"}
    state = json.loads((last_of(runs / "moved") / "state.json").read_text())
    assert state["origin"]["path"] == str(HF)


def test_peft_opens_a_checkpoint_and_computes_the_same(runs: Path) -> None:
    pytest.importorskip("peft")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokens = np.random.default_rng(1).integers(0, 67, (2, 24)).astype(np.int32)
    model = transformers.AutoModelForCausalLM.from_pretrained(last_of(runs / "moved")).eval()
    with torch.no_grad():
        found = model(torch.from_numpy(tokens).long()).logits.numpy()
    np.testing.assert_allclose(found, merged_logits(last_of(runs / "moved"), tokens), atol=1e-5)
    assert np.abs(found - merged_logits(HF, tokens)).max() > 0.01


def test_a_checkpoint_of_deltas_is_merged_moved_and_named(runs: Path, tmp_path: Path) -> None:
    tokens = np.random.default_rng(1).integers(0, 67, (2, 24)).astype(np.int32)
    right = merged_logits(last_of(runs / "torch"), tokens)
    convert(last_of(runs / "torch"), tmp_path / "merged", to="torch", merge_lora=True)
    np.testing.assert_allclose(merged_logits(tmp_path / "merged", tokens), right, atol=1e-6)
    told = gptbridge("inspect", runs / "torch", "--json")
    facts = json.loads(told.stdout)
    assert (facts["lora"]["rank"], facts["lora"]["parts"]) == (4, ["q", "v", "fc"])
    lone = shutil.copytree(last_of(runs / "torch"), tmp_path / "lone")
    config = json.loads((lone / "adapter_config.json").read_text())
    for base, hub in (("gone", ""), ("openai-community/gpt2", "hf:openai-community/gpt2"), ("gpt2", "gpt2")):
        named = {**config, "base_model_name_or_path": base}
        (lone / "adapter_config.json").write_text(json.dumps(named))
        with pytest.raises(BadInput) as refused:
            base_of(lone)
        assert f"base model {base} is not here" in str(refused.value)
        assert (f"(--base {hub}, if that is its name on Hugging Face)" in str(refused.value)) == bool(hub)
    for name in ("manifest.json", "state.json"):
        (lone / name).unlink()
    with pytest.raises(BadInput, match=r"base model gpt2 is not here.*--base"):
        open_checkpoint(lone)
    with open_checkpoint(lone, base=HF) as opened:
        assert opened.adapter is not None
    with pytest.raises(BadInput, match="is an adapter"):
        open_checkpoint(lone, base=runs / "torch")  # of a run, the newest checkpoint


def test_what_a_run_of_adapters_cannot_be_is_refused(runs: Path, tmp_path: Path) -> None:
    overrides = [*RUN, f"data.path={runs / 'tokens.bin'}"]
    plan = resolve(None, [*overrides, "model.vocab_size=67"], tmp_path / "nothing", None)
    with pytest.raises(UsageError, match=r"task\.lora: .*--init-from"):
        train(plan, backend="torch")
    with pytest.raises(UsageError, match=r"model\.vocab_size: 70 in the spec"):
        Beginning(HF, Hints()).spec(None, [*overrides, "model.vocab_size=70"])
    with pytest.raises(UsageError, match="has adapters already"):
        Beginning(last_of(runs / "torch"), Hints()).spec(None, overrides)
    other = shutil.copytree(HF, tmp_path / "other")
    content = bytearray((other / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (other / "model.safetensors").write_bytes(content)
    words = ("train", "-b", "torch", "--init-from", other, "--run", runs / "torch", "--resume", "auto")
    done = gptbridge(*words, *options(overrides))
    assert done.returncode == 5
    assert "not the base model that the adapters were trained beside" in done.stderr
    for verb, *more in (("generate", "-p", "!"), ("evaluate", "--task", "perplexity", "--data", __file__)):
        done = gptbridge(verb, runs / "torch", *more, "--base", other)
        assert (done.returncode, done.stdout) == (5, "")
        assert f"{other}: is not the base model that the adapters were trained beside" in done.stderr
    done = gptbridge(
        "generate", runs / "torch", "-p", "!", "--base", shutil.copytree(HF, tmp_path / "same"), timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_run_says_that_an_adapter_is_added_to_what_it_begins_with(runs: Path) -> None:
    for checkpoint, count in ((last_of(runs / "torch"), 1), (HF, 0)):
        beginning = Beginning(checkpoint, Hints())
        with beginning.open(pytest.fail) as opened:
            advice = advise_beginning(opened, beginning.spec(None, ["training.seq_length=24"]), "")
        assert sum("adapters are added" in line for line in advice) == count


def test_a_longer_run_finds_a_base_model_that_has_moved(runs: Path, tmp_path: Path) -> None:
    moved = Beginning(shutil.copytree(HF, tmp_path / "moved"), Hints())
    plan = resolve(None, ["training.max_steps=7"], tmp_path / "longer", str(runs / "torch"), moved)
    assert plan.spec.task.lora is not None
    assert train(plan, backend="torch").step == 7
    other = tmp_path / "weights"
    other.mkdir()
    (other / "spec.yaml").write_text("training: {max_steps: 3}")
    with pytest.raises(UsageError, match=r"--resume .*weights: .*--init-from"):
        resolve(None, [], tmp_path / "none", str(other), moved)
