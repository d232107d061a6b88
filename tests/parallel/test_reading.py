"""A model that is read on several devices: what ranks write, what is refused, who is named once killed."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptbridge.api import open_writer
from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.errors import RunFailed
from gptbridge.generation.generate import Writer
from gptbridge.reading import Devices, reading_spec
from gptbridge.reading_ranks import RanksModel
from gptbridge_specs import ModelSpec, SpecError
from gptbridge_specs.generation import GenerationSpec
from tests.weights.conversion.checkpoints import random_weights, write_hugging_face

MODEL = ModelSpec(
    vocab_size=257, hidden_size=48, num_layers=4, num_attention_heads=6, max_position_embeddings=64
)
PROMPTS = ["a", "def f(x):", "The quick brown fox"]
JOBS: list[dict[str, Any]] = [
    {},
    {"strategy": "sample", "top_p": 0.95, "num_return_sequences": 2, "seed": 11},
    {"strategy": "beam", "beams": 3, "num_return_sequences": 2},
]
OTHER = {**JOBS[1], "seed": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("read") / "model"
    weights = {name: 4 * x if "wte" in name else x for name, x in random_weights(MODEL, 5).items()}
    write_hugging_face(path, MODEL, weights)
    load_tokenizer("byte").save(path)
    return path


def opened(folder: Path, **words: Any) -> Any:
    return open_writer(folder, backend="torch", overrides={"training.device": "cpu"}, **words)


def written(writer: Writer, job: dict[str, Any]) -> list[tuple[int, ...]]:
    decoding = GenerationSpec(**job, max_new_tokens=12)
    writer = replace(writer, spec=writer.spec.model_copy(update={"generation": decoding}))
    return [text.tokens for text in writer.write(PROMPTS)]


def losses(writer: Writer) -> Any:
    tokens = np.random.default_rng(1).integers(0, 257, (3, 33), dtype=np.int32)
    return writer.model.token_losses(tokens[:, :-1], tokens[:, 1:])


def test_ranks_write_what_one_process_does_and_one_that_is_killed_is_named(folder: Path) -> None:
    with opened(folder) as alone:
        expected, wanted, other = [written(alone, job) for job in JOBS], losses(alone), written(alone, OTHER)
    assert other != expected[1]
    with opened(folder, devices=2) as writer:
        assert isinstance(writer.model, RanksModel)
        assert writer.spec.parallel.tensor == 2
        assert [written(writer, job) for job in JOBS] == expected
        np.testing.assert_allclose(losses(writer), wanted, rtol=1e-5, atol=1e-5)
        ranks = [one.record.pid for one in writer.model.job.own()]

        os.kill(ranks[1], signal.SIGKILL)
        with pytest.raises(RunFailed) as failure:
            writer.write(PROMPTS)
    assert f"rank 1 (process {ranks[1]}) ended without a word" in str(failure.value)
    assert not any(map(runs, ranks))


def runs(process: int) -> bool:
    """Tell whether a process has not ended; one whose parent has not heard of it yet has no command line."""
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except OSError:
        return False


@pytest.mark.parametrize(
    ("heads", "devices", "overrides", "layout"),
    [
        (6, 2, [], (2, 1)),
        (6, 4, [], (2, 2)),
        (3, 4, [], (1, 4)),
        (6, 4, ["parallel.pipeline=4"], (1, 4)),
        (6, None, ["parallel.tensor=2", "parallel.pipeline=2"], (2, 2)),
        (6, 5, [], "parallel.pipeline: model.num_layers 4 / (pipeline 5"),
        (3, None, ["parallel.tensor=2"], "parallel.tensor: model.num_attention_heads 3 / tensor 2 is no"),
        (6, 4, ["parallel.tensor=3"], "parallel.tensor: 4 devices / tensor 3 is no whole number: 2 or 4"),
        (6, 2, ["parallel.tensor=1", "parallel.pipeline=1"], "parallel.pipeline: tensor 1 x pipeline 1 = 1"),
        (6, 2, ["parallel.data=2"], "parallel.data: a model that is read is cut by"),
        (6, 2, ["parallel.sharding_stage=2"], "parallel.pipeline alone: 0 would be"),
        (6, 2, ["parallel.tensor=0"], "parallel.tensor: 0"),
        (6, 2, ["parallel=no"], "parallel: 'no' is not a section"),
    ],
)
def test_a_model_is_cut_over_all_devices(
    heads: int, devices: int | None, overrides: list[str], layout: tuple[int, int] | str
) -> None:
    model = MODEL.model_copy(update={"num_attention_heads": heads})

    def found() -> tuple[int, int]:
        content = {"training": {"seq_length": 8}}
        parallel = reading_spec(model, content, overrides, Devices(devices)).parallel
        return parallel.tensor, parallel.pipeline

    if isinstance(layout, tuple):
        assert found() == layout
    else:
        with pytest.raises(SpecError) as refused:
            found()
        assert layout in str(refused.value)
