"""`gptbridge generate` on torch, against the NumPy reference."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptbridge import reference
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.generation.advice import advise
from gptbridge.rules.decoding import Past, next_token
from gptbridge.testing.cases import weights
from gptbridge_specs.generation import GenerationSpec
from tests.checkpoint.conftest import spec_of, writer
from tests.training.conftest import ENVIRONMENT, command, gptbridge
from tests.weights.conversion.checkpoints import random_weights, write_hugging_face

SPEC = spec_of()
PROMPTS = ["a", "def f(x):\n", "a prompt that is longer than the sixteen positions of the model"]
NEW = 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    CheckpointStore(folder / "checkpoints").save(7, writer(SPEC, 7))
    return folder


def generate(source: Path, *words: str) -> list[dict[str, Any]]:
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    result = gptbridge(
        "generate",
        source,
        "-b",
        "torch",
        "--json",
        *prompts,
        "-o",
        f"generation.max_new_tokens={NEW}",
        *words,
    )
    assert result.returncode == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: prompt")]
    assert warnings == [f"warning: prompt 3 has {len(PROMPTS[2])} tokens: the model sees the last 16 of them"]
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def expected(prompt: str, spec: GenerationSpec, length: int = 16) -> list[int]:
    """Continue a prompt alone, without padding, with the reference's logits; it sees `length` tokens."""
    context = list(prompt.encode())
    written: list[int] = []
    for position in range(NEW):
        window = np.array([[*context, *written][-length:]], np.int32)
        logits = reference.logits(SPEC.model, weights(SPEC.model, 7), window)[0, -1]
        token = next_token(logits, spec, Past((*context, *written), position))
        if token == 256:
            break
        written.append(token)
    return written


def test_drawn_tokens_are_those_of_the_reference(run: Path) -> None:
    options = {"strategy": "sample", "top_k": 40, "top_p": 0.9, "temperature": 0.8, "seed": 3}
    words = [word for name, value in options.items() for word in ("-o", f"generation.{name}={value}")]
    found = generate(run, *words)
    spec = GenerationSpec.model_validate(options)
    for prompt, result in zip(PROMPTS, found, strict=True):
        assert result["prompt"] == prompt
        assert result["tokens"] == expected(prompt, spec)
        assert result["reason"] == ("length" if len(result["tokens"]) == NEW else "end_of_text")
        assert result["text"] == bytes(result["tokens"]).decode(errors="replace")


def test_only_positions_that_were_trained_are_used(tmp_path: Path) -> None:
    """A run at 8 tokens in a model of 16 positions is continued in windows of 8, unless another is given."""
    short = SPEC.model_copy(update={"training": SPEC.training.model_copy(update={"seq_length": 8})})
    CheckpointStore(tmp_path / "checkpoints").save(7, writer(short, 7))
    words = (
        "generate",
        tmp_path,
        "-b",
        "torch",
        "--json",
        "-p",
        "def f",
        "-o",
        f"generation.max_new_tokens={NEW}",
    )
    texts = {}
    for window, option in ((8, ()), (16, ("-o", "generation.window=16")), (5, ("-o", "generation.window=5"))):
        result = gptbridge(*words, *option)
        assert result.returncode == 0, result.stderr
        texts[window] = json.loads(result.stdout)[0]["tokens"]
        assert texts[window] == expected("def f", GenerationSpec(), window)
    assert len({tuple(tokens) for tokens in texts.values()}) == 3
    refused = gptbridge(*words, "-o", "generation.window=17")
    assert refused.returncode == 2
    assert "generation.window: 17 is more than the model's 16 positions" in refused.stderr


def test_what_greedy_does_not_heed_is_told(run: Path) -> None:
    words = ("generate", run, "-b", "torch", "-p", "a", "-o", "generation.top_k=5")
    told = gptbridge(*words, "-o", "training.seed=5").stderr.splitlines()
    assert told == [
        "warning: -o generation.top_k=5 changes nothing: greedy takes the likeliest; "
        "-o generation.strategy=sample heeds it",
        "warning: -o training.seed=5 changes nothing: it is for training",
    ]
    assert gptbridge(*words, "-o", "generation.strategy=sample").stderr == ""


def test_what_is_for_training_alone_is_told() -> None:
    for override in ("training.max_steps=5", "optimizer.beta1=0.8", "schedule.max_lr=1", "data.path=x"):
        assert list(advise(SPEC, [override])) == [f"-o {override} changes nothing: it is for training"]
    heeded = ["training.device=cpu", "training.compile=true", "precision.compute=bf16", "parallel.tensor=2"]
    assert list(advise(SPEC, [*heeded, "generation.max_new_tokens=3"])) == []


def test_a_hugging_face_folder_is_enough(run: Path, tmp_path: Path) -> None:
    source = run / "checkpoints/step-00000007"
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(source / name, tmp_path)
    found = generate(tmp_path)
    assert [result["tokens"] for result in found] == [
        expected(prompt, GenerationSpec()) for prompt in PROMPTS
    ]


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (("nowhere", "-p", "x"), 5, "nowhere: no such file or folder"),
        (("{run}", "-p", "x", "-o", "model.num_layers=3"), 2, "model"),
        (("{run}", "-p", "x", "-o", "generation.top_k=-1"), 2, "generation.top_k"),
        (("{run}", "-p", "x", "-b", "torhc"), 3, "Did you mean 'torch'"),
        (("{run}", "-p", "x", "-b", "ms"), 3, "Did you mean 'mindspore'"),
        (("{run}",), 2, "--prompt"),
        (("{run}", "-p", "x", "--interactive"), 2, "--interactive and a prompt exclude each other"),
        (("{run}", "--json", "--interactive"), 2, "--json and --interactive exclude each other"),
        (("{run}", "-p", "x", "--json", "--stream"), 2, "--json and --stream exclude each other"),
        (("{run}", "--prompt-file", "no.txt"), 5, "no.txt: no such file or directory"),
        (("{run}", "--prompt-file", "{run}"), 5, "is a directory"),
        (("{run}", "--prompt-file", "{run}/fifo"), 5, "fifo: is a FIFO"),
        (("{run}", "--prompt-file", "{run}/latin.txt"), 5, "latin.txt: is not UTF-8 at byte 1"),
        (("{run}", "-p", "x", "--preset", "gpt"), 2, "no preset 'gpt'; allowed: paddlenlp, fleetx"),
        (("{run}", "-p", "x" * 17, "-o", "generation.long_prompts=refuse"), 2, "prompt 1 has 17 tokens"),
        (("{run}", "-p", "xx", "-o", "generation.max_length=2"), 2, "2 are allowed with its continuation"),
        (("{run}", "-p", "x", "-o", "generation.stop_tokens=[257]"), 2, "257 is no token of the model"),
        (("{run}", "-p", "x", "-o", "generation.min_new_tokens=101"), 2, "is above max_new_tokens=100"),
        (("{run}", "-p", "x", "-o", "generation.num_return_sequences=2"), 2, "greedy has one text"),
        (("{run}", "-p", "x", "--stop", ""), 2, "an empty string would end every text"),
        (("{run}", "-p", "x", "--stop", "\udcff"), 2, "generation.stop: is not valid Unicode text"),
        (("{run}", "-p", "x\udcff"), 2, "prompt: is not valid Unicode text"),
        (("{run}", "-p", "x", "-o", "generation.stop_tokens=5"), 2, "'5' is not a list, such as [A, B]"),
    ],
)
def test_mistakes_are_one_line(run: Path, words: tuple[str, ...], code: int, named: str) -> None:
    (run / "latin.txt").write_bytes(b"a\xe4")
    (run / "fifo").unlink(missing_ok=True)
    os.mkfifo(run / "fifo")
    result = gptbridge("generate", *(word.format(run=run) for word in words))
    assert result.returncode == code, result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error")]) == 1
    assert named in result.stderr
    assert "Traceback" not in result.stderr


def test_a_tokenizer_is_the_runs_or_what_it_lacks_is_told(run: Path, tmp_path: Path) -> None:
    source = run / "checkpoints/step-00000007"
    other = json.loads((source / "tokenizer.json").read_text()) | {"normalizer": {"type": "NFC"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    result = gptbridge("generate", run, "-p", "a", "--tokenizer", tmp_path)
    assert (result.returncode, result.stdout) == (5, "")
    assert f"{tmp_path}: is not the tokenizer that the run was trained with" in result.stderr
    model = SPEC.model.model_copy(update={"vocab_size": 260})
    folder = write_hugging_face(tmp_path / "larger", model, random_weights(model))
    result = gptbridge("generate", folder, "-p", "a", "--tokenizer", "byte")
    assert (result.returncode, result.stderr) == (
        0,
        "note: 3 of the model's 260 tokens are none of the tokenizer's, and never chosen\n",
    )


def test_a_full_disk_is_said_to_be_one(run: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command("generate", run, "-p", "a", "-b", "torch"),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=120,
            env=ENVIRONMENT,
        )
    said = done.stderr.decode()
    assert (done.returncode, said) == (1, "error: the output cannot be written: No space left on device\n")


def told(run: Path, *words: str, stdin: str = "") -> str:
    """Return what is printed, with `stdin` typed."""
    done = subprocess.run(
        command("generate", run, "-b", "torch", "-o", f"generation.max_new_tokens={NEW}", *words),
        input=stdin.encode(),
        capture_output=True,
        timeout=120,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def test_prompts_from_everywhere_and_texts_as_they_grow(run: Path, tmp_path: Path) -> None:
    plain = told(run, "-p", "a", "-p", "def f(x):\n")
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "b.txt").write_text("def f(x):\n\n")
    files = ("--prompt-file", str(tmp_path / "a.txt"), "--prompt-file", str(tmp_path / "b.txt"))
    assert told(run, *files) == plain
    assert told(run, *files, "--stream", "--rows", "1") == plain
    assert told(run, "-p", "a", "--prompt-file", "-", stdin="def f(x):\n\n") == plain
    one = told(run, stdin="a\n")
    assert one == told(run, "-p", "a")
    assert plain.startswith(one)
    assert told(run, "--interactive", stdin="a\na\n") == one * 2


def test_a_stop_string_cuts_the_text(run: Path) -> None:
    whole = json.loads(told(run, "-p", "a", "--json"))[0]
    letters = [c for c in whole["text"] if c.isascii() and c.isprintable()]
    stop = letters[-1]
    found = json.loads(told(run, "-p", "a", "--json", "--stop", stop))[0]
    assert found["text"] == whole["text"].partition(stop)[0]
    assert (found["reason"], found["score"]) == ("stop", None)
    assert found["tokens"] == whole["tokens"][: len(found["tokens"])]
    assert len(found["log_probs"]) == len(found["tokens"])


def test_a_preset_is_a_systems_way(run: Path) -> None:
    ours = told(run, "-p", "a", "--json", "--preset", "fleetx")
    fields = {
        "strategy": "sample",
        "top_k": 50,
        "top_p": 0.75,
        "top_p_rule": "paddlenlp",
        "min_new_tokens": 1,
    }
    words = [word for name, value in fields.items() for word in ("-o", f"generation.{name}={value}")]
    assert ours == told(run, "-p", "a", "--json", *words)
    assert ours != told(run, "-p", "a", "--json")
