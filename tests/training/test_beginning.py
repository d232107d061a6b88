"""Runs that begin from the weights of a checkpoint, of any dialect and split, on any backend."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptbridge import convert, open_checkpoint
from gptbridge.checkpoint.state import read_state
from gptbridge.errors import BadInput, UsageError
from gptbridge.training.beginning import Beginning, BegunWeights, origin_of
from gptbridge.training.events import read_events
from gptbridge.training.start import resolve
from gptbridge.weights.architecture import parameters, sizes
from gptbridge.weights.opening import Hints
from gptbridge_specs.loading import load_run_of
from tests.training.conftest import ENVIRONMENT, NO_DROPOUT, gptbridge, options, run_jobs, steps_of

HF = Path(__file__).parents[1] / "weights/conversion/vectors/hf"
# Two ranks cut a vocabulary of 67 where it is padded; a run cuts the padding off again.
DIALECTS: Mapping[str, dict[str, Any]] = {
    "paddle": {},
    "fleetx": {"tensor_parallel": 2, "vocab_size": 68},
    "mindspore": {},
    "modelscope": {"tensor_parallel": 2, "vocab_size": 68},
    "megatron": {"tensor_parallel": 2, "pipeline_parallel": 3, "vocab_size": 68},
    "nanogpt": {},
}
STEPS = 20
RUN = (
    *NO_DROPOUT,
    "data.tokenizer=byte",
    "model.vocab_size=67",
    "data.split=[1,0,0]",
    "training.seq_length=24",
    "training.global_batch_size=4",
    f"training.max_steps={STEPS}",
    "evaluation.interval=0",
    "training.device=cpu",
)

# The same run by hand: transformers' model, torch's optimizer, the batches of the first argument.
BY_HAND = """
import json, sys
import numpy as np, torch
from transformers import GPT2LMHeadModel
batches, rates = np.load(sys.argv[1]), json.loads(sys.argv[2])
model = GPT2LMHeadModel.from_pretrained(sys.argv[3])
model.eval()
decayed = [p for p in model.parameters() if p.ndim == 2]
others = [p for p in model.parameters() if p.ndim == 1]
groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
losses = []
for inputs, labels, rate in zip(batches["inputs"], batches["labels"], rates, strict=True):
    logits = model(torch.from_numpy(inputs).long()).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(labels).long().flatten())
    adamw.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in adamw.param_groups:
        group["lr"] = rate
    adamw.step()
    losses.append(float(loss))
print(json.dumps(losses))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in each dialect, and tokens to train on."""
    folder = tmp_path_factory.mktemp("beginning")
    for dialect, split in DIALECTS.items():
        convert(HF, folder / dialect, to=dialect, **split)
    np.random.default_rng(7).integers(0, 67, 2000).astype("<u2").tofile(folder / "tokens.bin")
    return folder


def losses_of(run: Path) -> list[float]:
    return [event["loss"] for event in steps_of(run).values()]


def by_hand(folder: Path) -> list[float]:
    from gptbridge.data.batches import open_data
    from gptbridge.rules.schedule import learning_rate

    with Beginning(HF, Hints()).open(print) as opened:
        spec = load_run_of(opened.model, None, [*RUN, f"data.path={folder / 'tokens.bin'}"])
    with open_data(spec) as data:
        batches = [batch for _, batch in zip(range(STEPS), data.training(1), strict=False)]
    inputs = np.stack([batch.inputs[0] for batch in batches])
    np.savez(folder / "batches.npz", inputs=inputs, labels=np.stack([batch.labels[0] for batch in batches]))
    rates = [learning_rate(spec.schedule, STEPS, step) for step in range(1, STEPS + 1)]
    done = subprocess.run(
        [sys.executable, "-c", BY_HAND, str(folder / "batches.npz"), json.dumps(rates), str(HF)],
        capture_output=True,
        text=True,
        timeout=240,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses: list[float] = json.loads(done.stdout)
    return losses


def test_any_dialect_on_any_backend_follows_a_loop_written_by_hand(folder: Path) -> None:
    right = by_hand(folder)
    overrides = [*RUN, f"data.path={folder / 'tokens.bin'}"]
    jobs = {
        "torch": ["megatron", "modelscope"],
        "paddle": ["mindspore", "fleetx"],
        "mindspore": ["nanogpt", "paddle"],
    }
    for backend, dialects in jobs.items():
        runs = [
            {"run": str(folder / f"{d}-{backend}"), "init_from": str(folder / d), "overrides": overrides}
            for d in dialects
        ]
        run_jobs(folder, backend, runs)
        for dialect in dialects:
            losses = losses_of(folder / f"{dialect}-{backend}")
            assert losses[0] == pytest.approx(right[0], abs=1e-5)
            np.testing.assert_allclose(losses, right, rtol=1e-4)
    assert abs(right[0] - right[-1]) > 0.05  # it learns: a run that stands still would not be the same


@pytest.mark.parametrize("dialect", DIALECTS)
def test_weights_are_those_of_the_checkpoint_whatever_its_dialect(folder: Path, dialect: str) -> None:
    with open_checkpoint(HF) as expected, Beginning(folder / dialect, Hints()).open(print) as opened:
        spec = load_run_of(opened.model, None, ["training.seq_length=8", "model.vocab_size=67"])
        begun, whole = BegunWeights(opened, spec), sizes(spec.model)
        for parameter in parameters(spec.model):
            box = {x: (0, whole[x]) for x in parameter.axes.letters}
            np.testing.assert_array_equal(begun.read(parameter.name, box), expected.arrays[parameter.name])
        same = origin_of(opened).digest == origin_of(expected).digest
        assert same is ("vocab_size" not in DIALECTS[dialect])  # of the padded weights otherwise


def weights_of(rows: str, overrides: list[str], box: tuple[int, int] | None = None) -> np.ndarray[Any, Any]:
    """Return rows of the positions ("t") or of the vocabulary ("v") of a run that begins from HF."""
    with open_checkpoint(HF) as opened:
        spec = load_run_of(opened.model, None, ["training.seq_length=8", *overrides])
        whole = sizes(spec.model)
        name = {"t": "wpe.weight", "v": "wte.weight"}[rows]
        return BegunWeights(opened, spec).read(name, {rows: box or (0, whole[rows]), "i": (0, whole["i"])})


def test_positions_and_vocabulary_are_cut_or_grown_by_the_rule_that_the_spec_names() -> None:
    places, words = weights_of("t", []), weights_of("v", [])
    positions, count = "model.max_position_embeddings", len(places)
    np.testing.assert_array_equal(weights_of("t", [f"{positions}=11"]), places[:11])
    np.testing.assert_array_equal(weights_of("v", ["model.vocab_size=50"]), words[:50])
    grown = weights_of("t", [f"{positions}=100"])
    np.testing.assert_array_equal(grown[:count], places)
    assert 0.01 < grown[count:].std() < 0.03
    repeated = weights_of("t", [f"{positions}=100", "training.new_positions=repeated"])
    np.testing.assert_array_equal(repeated, np.resize(places, (100, places.shape[1])))
    longer = weights_of("t", [f"{positions}={2 * count - 1}", "training.new_positions=interpolated"])
    np.testing.assert_array_equal(longer[::2], places)
    np.testing.assert_allclose(longer[1::2], (places[1:] + places[:-1]) / 2, rtol=1e-6)
    more = weights_of("v", ["model.vocab_size=70"])
    np.testing.assert_array_equal(more[:67], words)
    assert more[67:].any(axis=1).all()


@settings(deadline=None, max_examples=40)
@given(
    start=st.integers(0, 99),
    rows=st.integers(1, 100),
    letter=st.sampled_from("tv"),
    rule=st.sampled_from(["drawn", "repeated", "interpolated"]),
)
def test_a_slice_is_a_slice_of_the_whole(start: int, rows: int, letter: str, rule: str) -> None:
    grown = ["model.max_position_embeddings=100", "model.vocab_size=100", f"training.new_positions={rule}"]
    stop = min(start + rows, 100)
    whole = weights_of(letter, grown)
    np.testing.assert_array_equal(weights_of(letter, grown, (start, stop)), whole[start:stop])


def test_the_checkpoint_decides_the_model() -> None:
    beginning = Beginning(HF, Hints())
    plan = resolve(None, ["training.seq_length=8", "model.hidden_dropout_prob=0.3"], None, None, beginning)
    assert (plan.spec.model.hidden_size, plan.spec.model.hidden_dropout_prob) == (48, 0.3)
    with pytest.raises(UsageError) as refused:
        resolve("gpt2-small", ["model.layernorm_epsilon=0.1"], None, None, beginning)
    lines = str(refused.value).splitlines()
    fields = ("hidden_size", "num_layers", "num_attention_heads", "layernorm_epsilon")
    assert [line.partition(":")[0] for line in lines] == [f"model.{field}" for field in fields]
    assert lines[0].startswith(f"model.hidden_size: 768 in the spec, 48 in {HF}")


def test_what_an_attempt_has_left_decides_nothing(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("model: {num_layers: 7}\n")
    beginning = Beginning(HF, Hints())
    assert resolve(None, ["training.seq_length=8"], tmp_path, None, beginning).spec.model.hidden_size == 48
    left = resolve(None, ["training.seq_length=8"], tmp_path, "auto", beginning).spec
    with (
        beginning.open(print) as opened,
        pytest.raises(UsageError, match=r"model\.num_layers: 7 in the spec"),
    ):
        BegunWeights(opened, left)


def test_where_a_run_began_is_kept_and_it_is_resumed(folder: Path) -> None:
    run, data = folder / "kept", f"data.path={folder / 'tokens.bin'}"
    words: list[str | Path] = [
        "train",
        "-b",
        "torch",
        "--init-from",
        HF,
        "--run",
        run,
        *options([*RUN, data]),
    ]
    done = gptbridge(*words, "--resume", "auto", "-o", "training.stop_after_steps=2")
    assert done.returncode == 0, done.stderr
    assert f"began    with the weights of {HF}, torch" in done.stdout
    again = gptbridge(*words, "--resume", "auto", "-o", "training.stop_after_steps=3")
    assert again.returncode == 0, again.stderr
    with open_checkpoint(HF) as opened:
        origin = origin_of(opened)
    for step in (2, 3):
        assert read_state(run / f"checkpoints/step-{step:08}").origin == origin
    began = [
        event["origin"]
        for event in read_events(run / "events.jsonl")
        if event["event"] in ("start", "resume")
    ]
    assert began == [origin.model_dump()] * 2


def test_a_classifier_is_no_beginning(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file or folder"):
        Beginning(tmp_path / "absent", Hints()).open(print)
