"""Several datasets by their weights, an evaluation set of its own, and its batch size."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from gptbridge.data.batches import open_data
from gptbridge.data.prepare import TextOptions, prepare
from gptbridge.data.sampling import Mixture, Samples
from gptbridge.errors import BadInput, UsageError
from gptbridge.session import Batch
from gptbridge_specs import RunSpec, SpecError, load_run
from gptbridge_specs.loading import build

T = 8


def mixture(*weights: float, tokens: int = 1001) -> Mixture:
    """Return a mixture of datasets of equal size, of 10 tokens a sample."""
    parts = [Samples(i * tokens, tokens, 10, seed=3, shuffle=True) for i in range(len(weights))]
    return Mixture(tuple(parts), weights)


def owners(mixed: Mixture, numbers: NDArray[np.int64], tokens: int = 1001) -> NDArray[np.int64]:
    owned: NDArray[np.int64] = mixed.starts(numbers) // tokens
    return owned


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1, 1, 1), (5, 1e-9), (0.01, 2.5, 0.49)])
def test_every_stretch_has_of_each_what_its_weight_says(weights: tuple[float, ...]) -> None:
    mixed, shares = mixture(*weights), np.array(weights) / sum(weights)
    owned = owners(mixed, np.arange(200_000))
    for first, last in ((0, 100), (7, 1007), (65_000, 66_000), (0, 200_000)):
        counts = np.bincount(owned[first:last], minlength=len(weights))
        assert np.abs(counts - shares * (last - first)).max() <= 2 + 5e-5 * (last - first)
    wrong = np.bincount(owners(mixture(*weights[::-1]), np.arange(1000)), minlength=len(weights))
    assert weights == weights[::-1] or np.abs(wrong - shares * 1000).max() > 10


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), st.integers(0, 10**12))
@settings(deadline=None, max_examples=30)
def test_a_stretch_is_a_pure_function_of_its_numbers(weights: list[float], first: int) -> None:
    numbers = first + np.arange(300)
    whole = mixture(*weights).starts(numbers)
    assert np.array_equal(mixture(*weights).starts(numbers[117:]), whole[117:])


def test_each_dataset_comes_in_its_own_order() -> None:
    """As if it were alone: whatever the others are, each of its samples once before any comes twice."""
    mixed = mixture(0.6, 0.3, 0.1)
    numbers = np.arange(66_500)
    starts = mixed.starts(numbers)
    for i, part in enumerate(mixed.parts):
        own = starts[starts // 1001 == i]
        assert np.array_equal(own, part.starts(np.arange(len(own))))
        assert sorted(own[: part.per_epoch].tolist()) == [i * 1001 + 10 * k for k in range(100)]


def test_once_marks_the_first_pass_of_each() -> None:
    mixed = mixture(3, 1)
    once = mixed.once(np.arange(2 * mixed.per_epoch))
    starts = mixed.starts(np.arange(2 * mixed.per_epoch))
    assert sorted(starts[once].tolist()) == sorted({int(s) for s in starts})
    assert once[: mixed.per_epoch].sum() == once.sum() == 200
    assert once[mixed.per_epoch - 1]


def write(folder: Path, name: str, letter: str, documents: int = 40) -> str:
    """Write a dataset of one letter."""
    source = folder / f"{name}.jsonl"
    source.write_text("".join(f'{{"text": "{letter * 40}"}}\n' for _ in range(documents)))
    prepare([str(source)], "byte", folder / name, TextOptions(append_end_of_text=True))
    return str(folder / name)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("letters")
    return {letter: write(folder, letter, letter) for letter in "abc"}


def spec_of(data: dict[str, object], **sections: dict[str, object]) -> RunSpec:
    training = {"seq_length": T, "global_batch_size": 10, **sections.pop("training", {})}
    content = {"training": training, "data": {"split": (0.5, 0.5, 0), **data}, **sections}
    return build(RunSpec, content)


def seen(batch: Batch) -> Counter[str]:
    tokens = batch.inputs[batch.loss_mask]
    return Counter(chr(token) for token in tokens.tolist() if token != 256)


def test_a_batch_mixes_its_datasets(letters: dict[str, str]) -> None:
    mixed = [{"path": letters["a"], "weight": 0.8}, {"path": letters["b"], "weight": 0.2}]
    with open_data(spec_of({"mixture": mixed})) as data:
        batches = list(islice(data.training(1), 5))
        later = next(data.training(4))
        whole = data.digest
    assert np.array_equal(later.inputs, batches[3].inputs)
    counts = sum((seen(batch) for batch in batches), Counter())
    assert counts["a"] / counts.total() == pytest.approx(0.8, abs=0.05)
    halves = [np.concatenate([half.inputs.reshape(-1, T) for half in each]) for each in
              (_of_ranks(spec_of({"mixture": mixed}), 2), [batches[0]])]  # fmt: skip
    assert sorted(map(tuple, halves[0])) == sorted(map(tuple, halves[1]))
    with open_data(spec_of({"mixture": mixed[::-1]})) as data:
        assert data.digest != whole


def _of_ranks(spec: RunSpec, ranks: int) -> list[Batch]:
    found = []
    for rank in range(ranks):
        with open_data(spec) as data:
            found.append(next(data.of_rank(rank, ranks).training(1)))
    return found


def test_a_mixture_is_evaluated_each_sample_once(letters: dict[str, str]) -> None:
    mixed = f"0.8 {letters['a']} 0.2 {letters['b']}"
    spec = spec_of({"mixture": mixed}, evaluation={"batches": 10_000})
    with open_data(spec) as data:
        counts = sum((seen(batch) for batch in data.validation()), Counter())
        samples = [part.per_epoch for part in data.samples("validation").parts]  # type: ignore[union-attr]
    assert abs(counts["a"] - counts["b"]) <= T
    assert sum(counts.values()) <= sum(samples) * T < sum(counts.values()) * 1.2


def test_an_evaluation_set_of_its_own(letters: dict[str, str]) -> None:
    spec = spec_of({"path": letters["a"], "validation_path": letters["c"]}, evaluation={"batches": 1000})
    with open_data(spec) as data:
        assert set(seen(next(data.training(1)))) == {"a"}
        whole = sum((seen(batch) for batch in data.validation()), Counter())
        digest = data.digest
    assert set(whole) == {"c"}
    assert whole["c"] > 40 * 40 - 2 * T  # all of it: no split
    with open_data(spec_of({"path": letters["a"]})) as data:
        assert set(seen(next(data.validation()))) == {"a"}
        assert data.digest == digest


@pytest.mark.parametrize(("size", "shape"), [(4, (1, 4, T)), (6, (3, 2, T)), (None, (5, 2, T))])
def test_an_evaluation_has_a_batch_of_its_own(
    letters: dict[str, str], size: int | None, shape: tuple[int, ...]
) -> None:
    """Micro-batches as in training, where they divide it."""
    micro = 3 if size == 4 else 2
    spec = spec_of(
        {"path": letters["a"]},
        evaluation={"global_batch_size": size, "batches": 1000},
        training={"micro_batch_size": micro, "global_batch_size": 30 if micro == 3 else 10},
    )
    with open_data(spec) as data:
        batches = list(data.validation())
        assert batches[0].inputs.shape == shape
        assert next(data.training(1)).inputs.shape[1] == micro
        assert sum(batch.loss_tokens for batch in batches) == data.samples("validation").per_epoch * T
    if size == 4:
        with open_data(spec) as data, pytest.raises(UsageError, match=r"evaluation\.global_batch_size"):
            data.of_rank(0, 10)


def test_a_mixture_as_text_and_as_a_list() -> None:
    for text in ("0.7 a/x 0.3 b/y", '[{"weight": 0.7, "path": "a/x"}, {"weight": 0.3, "path": "b/y"}]'):
        spec = load_run("gpt2-tiny", [f"data.mixture={text}"])
        assert spec.data.paths == ("a/x", "b/y")
        assert [part.weight for part in spec.data.mixture] == [0.7, 0.3]
    assert load_run("gpt2-tiny").data.paths == ()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.mixture=0.7 a 0.3"], "a weight before each path"),
        (["data.mixture=x a"], "data.mixture.0.weight: 'x' is not a number"),
        (["data.mixture=0 a"], "data.mixture.0.weight"),
        (["data.mixture=1 a", "data.path=b"], "leave data.path out"),
        (["data.mixture=1 a", "training.epochs=2"], "counts passes over one dataset"),
    ],
)
def test_a_mixture_that_cannot_be(overrides: list[str], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        load_run("gpt2-tiny", overrides)


def test_what_a_mixture_needs_is_named(letters: dict[str, str], tmp_path: Path) -> None:
    short = write(tmp_path, "short", "d", documents=1)
    with (
        pytest.raises(UsageError, match=f"the validation split of {short} holds 0 of 1 documents"),
        open_data(spec_of({"mixture": f"1 {letters['a']} 1 {short}"})),
    ):
        pytest.fail("opened")
    with (
        pytest.raises(BadInput, match="no such token dataset"),
        open_data(spec_of({"mixture": f"1 {letters['a']} 1 {tmp_path / 'gone'}"})),
    ):
        pytest.fail("opened")


@pytest.mark.parametrize("value", [3, 0.5, {"a": 1}, [["x"]]])
def test_what_is_no_mixture_names_its_field(value: object) -> None:
    with pytest.raises(ValidationError, match=r"data\.mixture"):
        RunSpec.model_validate({"data": {"mixture": value}})
