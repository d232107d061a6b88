from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptbridge.data.batches import open_data
from gptbridge.data.dataset import open_dataset
from gptbridge.data.prepare import TextOptions, prepare
from gptbridge.errors import BadInput, UsageError
from gptbridge.session import Batch
from gptbridge.training.start import resolve
from gptbridge_specs import RunSpec

T, G = 16, 8  # tokens of a sample, samples of a global batch


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """200 documents of about 40 bytes, each with end-of-text."""
    folder = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    lines = [
        '{"text": "' + "".join(rng.choice(list("abcdef "), rng.integers(20, 60))) + '"}' for _ in range(200)
    ]
    (folder / "text.jsonl").write_text("\n".join(lines))
    prepare([str(folder / "text.jsonl")], "byte", folder / "set", TextOptions(append_end_of_text=True))
    return str(folder / "set")


def make_spec(path: str | None, **parts: dict[str, Any]) -> RunSpec:
    training = {"global_batch_size": G, "seq_length": T} | parts.pop("training", {})
    data = {"path": path, "split": (0.8, 0.2, 0)} | parts.pop("data", {})
    parallel = {"data": parts.pop("ranks", {"data": 1})["data"]}
    return RunSpec.model_validate({"training": training, "data": data, "parallel": parallel, **parts})


def take(spec: RunSpec, count: int, *, first: int = 1, rank: int = 0, ranks: int = 1) -> list[Batch]:
    with open_data(spec) as data:
        return list(islice(data.of_rank(rank, ranks).training(first), count))


def flat_tokens(path: str, split: str) -> NDArray[np.int64]:
    opened = open_dataset(path)
    begin, end = {"training": (0, 160), "validation": (160, 200)}[split]
    tokens = opened.source.read(int(opened.offsets[begin]), int(opened.offsets[end]))
    return tokens.astype(np.int64)


def test_a_sample_is_a_piece_of_the_concatenated_documents(dataset: str) -> None:
    flat = flat_tokens(dataset, "training")
    spec = make_spec(dataset, data={"shuffle": False})
    for step, batch in enumerate(take(spec, 3), start=1):
        numbers = (step - 1) * G + np.arange(G)
        wanted = np.stack([flat[k * T : k * T + T + 1] for k in numbers])
        assert np.array_equal(batch.inputs[0], wanted[:, :-1])
        assert np.array_equal(batch.labels[0], wanted[:, 1:])


def test_batches_have_the_types_that_a_session_expects(dataset: str) -> None:
    (batch,) = take(make_spec(dataset, training={"micro_batch_size": 2}), 1)
    assert batch.inputs.shape == batch.labels.shape == batch.loss_mask.shape == (4, 2, T)
    assert [a.dtype.name for a in (batch.inputs, batch.labels, batch.loss_mask)] == ["int32", "int32", "bool"]
    assert batch.inputs.flags.c_contiguous
    assert batch.labels.flags.c_contiguous
    assert batch.loss_mask.all()
    assert batch.loss_tokens == G * T


def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own(dataset: str) -> None:
    flat = flat_tokens(dataset, "training")
    count = (len(flat) - 1) // T
    rows = np.concatenate([batch.inputs[0] for batch in take(make_spec(dataset), -(-2 * count // G))])
    wanted = {tuple(flat[k * T : k * T + T]) for k in range(count)}
    first, second = (list(map(tuple, rows[at : at + count].tolist())) for at in (0, count))
    assert set(first) == set(second) == wanted
    assert first != second
    assert first != [tuple(flat[k * T : k * T + T]) for k in range(count)]


@pytest.mark.parametrize(("epochs", "ranks", "done"), [(1, 1, 0), (1, 2, 3), (2, 4, 40), (0.3, 1, 2)])
def test_epochs_are_each_sample_once_also_over_a_resume_on_other_ranks(
    dataset: str, epochs: float, ranks: int, done: int
) -> None:
    flat = flat_tokens(dataset, "training")
    count = (len(flat) - 1) // T
    size = 12
    assert count % size  # so that the last batch of an epoch is not whole
    training = {"epochs": epochs, "global_batch_size": size}
    plan = resolve(make_spec(dataset, training=training), (), None, None)
    last = plan.spec.training.max_steps
    assert last == -(-round(epochs * count) // size)
    batches = take(plan.spec, done)
    for rank in range(ranks):
        batches += take(plan.spec, last - done, first=done + 1, rank=rank, ranks=ranks)
    seen = [
        tuple(row)
        for b in batches
        for row, mask in zip(b.inputs[0], b.loss_mask[0], strict=True)
        if mask.all()
    ]
    assert len(seen) == round(epochs * count)
    if epochs >= 1:
        assert Counter(seen) == {tuple(flat[k * T : k * T + T]): epochs for k in range(count)}
    assert batches[-1].loss_tokens == (len(seen) % size or size) * T


def test_epochs_and_steps_are_not_both_given(dataset: str) -> None:
    spec = make_spec(dataset, training={"epochs": 1})
    with pytest.raises(UsageError, match=r"training.max_steps: training.epochs=1 decides it"):
        resolve(spec, ["training.max_steps=5"], None, None)


def test_a_resumed_run_sees_the_batches_of_the_uninterrupted_one(dataset: str) -> None:
    spec = make_spec(dataset)
    for whole, resumed in zip(take(spec, 60)[37:], take(spec, 23, first=38), strict=True):
        assert whole.dropout_seeds == resumed.dropout_seeds
        assert np.array_equal(whole.inputs, resumed.inputs)


def test_replicas_draw_the_dropout_of_one_process(dataset: str) -> None:
    """Micro-batches of 2 samples see the same dropout on 1, 2 and 4 replicas, and each another."""
    spec = make_spec(dataset, training={"micro_batch_size": 2})
    (whole,) = take(spec, 1, first=5)
    assert len(set(whole.dropout_seeds)) == len(whole.dropout_seeds) == 4
    for ranks in (2, 4):
        parts = [take(spec, 1, first=5, rank=rank, ranks=ranks)[0] for rank in range(ranks)]
        together = [
            seed for seeds in zip(*(part.dropout_seeds for part in parts), strict=True) for seed in seeds
        ]
        assert tuple(together) == whole.dropout_seeds
    (other,) = take(spec, 1, first=6)
    assert not set(other.dropout_seeds) & set(whole.dropout_seeds)


@pytest.mark.parametrize(
    ("ranks", "micro"),
    [(ranks, micro) for ranks in (1, 2, 4, 8) for micro in (None, 1, 2, 4, 8) if ranks * (micro or 1) <= G],
)
@pytest.mark.parametrize("mask", [False, True])
def test_the_global_batch_is_the_same_for_any_ranks_and_micro_batches(
    dataset: str, ranks: int, micro: int | None, mask: bool
) -> None:
    data = {"mask_end_of_text": mask}
    (whole,) = take(make_spec(dataset, data=data), 1, first=5)
    spec = make_spec(dataset, data=data, training={"micro_batch_size": micro}, ranks={"data": ranks})
    parts = [take(spec, 1, first=5, rank=rank, ranks=ranks)[0] for rank in range(ranks)]
    # micro-batch a of rank r is part a * ranks + r of the global batch
    together = np.stack([part.inputs for part in parts], axis=1).reshape(G, T)
    assert np.array_equal(together, whole.inputs[0])
    assert {part.loss_tokens for part in parts} == {whole.loss_tokens}
    assert sum(int(part.loss_mask.sum()) for part in parts) == whole.loss_tokens


def test_positions_that_follow_end_of_text_can_be_masked(dataset: str) -> None:
    (plain,) = take(make_spec(dataset), 1)
    (masked,) = take(make_spec(dataset, data={"mask_end_of_text": True}), 1)
    assert np.array_equal(plain.inputs, masked.inputs)
    assert (plain.inputs == 256).any()
    assert np.array_equal(masked.loss_mask, masked.inputs != 256)
    assert masked.loss_tokens == int(masked.loss_mask.sum()) < plain.loss_tokens


def test_validation_is_in_order_and_its_last_batch_is_padded_by_the_mask(dataset: str) -> None:
    flat = flat_tokens(dataset, "validation")
    count = (len(flat) - 1) // T
    assert count % G
    with open_data(make_spec(dataset, evaluation={"batches": 1000})) as data:
        batches, again = list(data.validation()), list(data.validation())
    assert len(batches) == -(-count // G)
    assert sum(batch.loss_tokens for batch in batches) == count * T
    kept = np.concatenate([batch.inputs[batch.loss_mask[..., 0]] for batch in batches])
    assert np.array_equal(kept, flat[: count * T].reshape(count, T))
    assert all(batch.inputs.shape == (1, G, T) for batch in batches)
    assert all(np.array_equal(a.inputs, b.inputs) for a, b in zip(batches, again, strict=True))


def test_evaluation_takes_no_more_batches_than_asked_for(dataset: str) -> None:
    with open_data(make_spec(dataset, evaluation={"batches": 2})) as data:
        assert len(list(data.validation())) == 2


def test_validation_counts_the_tokens_of_all_ranks(dataset: str) -> None:
    spec = make_spec(dataset, ranks={"data": 4}, evaluation={"batches": 1000})
    losses = []
    for rank in range(4):
        with open_data(spec) as data:
            batches = data.of_rank(rank, 4).validation()
            losses.append([(batch.loss_tokens, int(batch.loss_mask.sum())) for batch in batches])
    for batch in zip(*losses, strict=True):
        assert {tokens for tokens, _ in batch} == {sum(kept for _, kept in batch)}


def test_the_next_batch_is_made_while_the_last_one_is_in_use(dataset: str) -> None:
    with open_data(make_spec(dataset)) as data:
        batches = data.training(1)
        next(batches)
        waits = []
        for _ in range(10):
            time.sleep(0.03)
            started = time.perf_counter()
            next(batches)
            waits.append(time.perf_counter() - started)
    assert np.median(waits) < 0.003  # 1 % of a step of 0.3 s


def test_nothing_is_left_running(dataset: str) -> None:
    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("gptbridge-data")]

    with open_data(make_spec(dataset)) as data:
        next(data.training(1))
        assert threads()
    assert not threads()


def test_a_token_beyond_the_vocabulary_is_named_with_its_document(dataset: str, tmp_path: Path) -> None:
    spoilt = spoil(dataset, tmp_path, document=33, token=300)
    with pytest.raises(BadInput) as caught:
        take(make_spec(spoilt, data={"shuffle": False, "tokenizer": "byte"}), 100)
    for word in ("token 300", "document 33", "model.vocab_size", "256", spoilt):
        assert word in str(caught.value)
    assert caught.value.exit_code == 5


def test_a_batch_names_the_document_of_its_bad_token(dataset: str, tmp_path: Path) -> None:
    """What the look before a run has missed: the row that holds it is not the first of its batch."""
    spoilt = spoil(dataset, tmp_path, document=33, token=300)
    spec = make_spec(dataset, data={"shuffle": False})
    with open_data(spec) as data, pytest.raises(BadInput, match="token 300 in document 33 is beyond"):
        for _ in islice(replace(data, dataset=open_dataset(spoilt)).training(1), 100):
            pass


def test_a_small_dataset_is_checked_whole_before_a_run_begins(dataset: str, tmp_path: Path) -> None:
    spoilt = spoil(dataset, tmp_path, document=199, token=300)
    spec = make_spec(spoilt, data={"split": (0.5, 0, 0.5), "tokenizer": "byte"}, evaluation={"interval": 0})
    with pytest.raises(BadInput, match="token 300 in document 199"), open_data(spec):
        pytest.fail("opened")


def test_the_token_is_fine_where_the_vocabulary_holds_it(dataset: str, tmp_path: Path) -> None:
    spoilt = spoil(dataset, tmp_path, document=33, token=300)
    data = {"shuffle": False, "tokenizer": "byte"}
    assert take(make_spec(spoilt, data=data, model={"vocab_size": 301}), 100)


def spoil(dataset: str, folder: Path, *, document: int, token: int) -> str:
    """Write `dataset` anew as PaddleNLP does, with one token replaced."""
    opened = open_dataset(dataset)
    ids = opened.source.read(0, opened.tokens).copy()
    ids[opened.offsets[document] + 3] = token
    np.save(folder / "spoilt_ids.npy", ids)
    np.savez(folder / "spoilt_idx.npz", lens=opened.lengths.astype(np.int32))
    return str(folder / "spoilt")


def refusal(spec: RunSpec) -> str:
    with pytest.raises(UsageError) as caught, open_data(spec):
        pass
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_an_empty_split_is_refused_naming_the_documents(dataset: str) -> None:
    line = refusal(make_spec(dataset, data={"split": (1, 0, 0)}))
    for word in ("data.split", "validation", "0 of 200 documents", "evaluation.interval=0"):
        assert word in line
    assert "training" in refusal(make_spec(dataset, data={"split": (0, 1, 0)}))


def test_a_split_that_nobody_asks_for_may_be_empty(dataset: str) -> None:
    assert take(make_spec(dataset, data={"split": (1, 0, 0)}, evaluation={"interval": 0}), 1)


def test_a_split_shorter_than_one_sample_is_refused(dataset: str) -> None:
    long = {"seq_length": 4096}
    line = refusal(make_spec(dataset, training=long, model={"max_position_embeddings": 4096}))
    assert "4097" in line
    assert "data.split" in line


def test_another_tokenizer_than_the_datasets_is_refused_naming_both(dataset: str, tmp_path: Path) -> None:
    write_bpe_tokenizer(tmp_path)
    line = refusal(make_spec(dataset, data={"tokenizer": str(tmp_path)}, model={"vocab_size": 512}))
    made_by = open_dataset(dataset).tokenizer_identity
    assert made_by is not None
    for word in ("data.tokenizer", str(tmp_path), dataset, made_by[:12]):
        assert word in line


def test_no_tokenizer_is_assumed_for_a_dataset_that_names_none(tmp_path: Path) -> None:
    (np.arange(4000, dtype="<u2") % 200).tofile(tmp_path / "nano.bin")
    parts: dict[str, Any] = {"evaluation": {"interval": 0}}
    path, split = str(tmp_path / "nano"), {"split": (1, 0, 0)}
    line = refusal(make_spec(path, data=split, **parts))
    for word in ("data.tokenizer", path, "does not say", "-o data.tokenizer=FOLDER"):
        assert word in line
    assert take(make_spec(path, data={**split, "tokenizer": "byte"}, **parts), 1)


def write_bpe_tokenizer(folder: Path) -> None:
    from gptbridge.data.tokenizers.bpe_files import BpeDefinition, byte_symbols, write_bpe

    vocabulary = {symbol: i for i, symbol in enumerate(byte_symbols())} | {"ab": 256}
    write_bpe(BpeDefinition(vocabulary, (("a", "b"),), {"<|endoftext|>": 257}, end="<|endoftext|>"), folder)


def test_the_tokenizer_beside_the_dataset_is_taken_when_none_is_named(tmp_path: Path) -> None:
    write_bpe_tokenizer(tmp_path / "bpe")
    (tmp_path / "text.txt").write_text("abababab " * 400)
    prepare([str(tmp_path / "text.txt")], str(tmp_path / "bpe"), tmp_path / "set")
    spec = make_spec(
        str(tmp_path / "set"),
        data={"split": (1, 0, 0)},
        model={"vocab_size": 258},
        evaluation={"interval": 0},
    )
    with open_data(spec) as data:
        assert data.tokenizer.identity == data.dataset.tokenizer_identity
        assert data.tokenizer.vocab_size == 258
        (row,) = next(data.training(1)).inputs[:, 0]
        assert set(data.tokenizer.decode(row.tolist())) == set("ab ")
    assert "byte is tokenizer" in refusal(
        spec.model_copy(update={"data": make_spec(str(tmp_path / "set"), data={"tokenizer": "byte"}).data})
    )


def test_a_vocabulary_smaller_than_the_datasets_is_refused(dataset: str) -> None:
    line = refusal(make_spec(dataset, model={"vocab_size": 256}))
    assert "model.vocab_size" in line
    assert "257 or more" in line


def test_ranks_that_do_not_divide_the_batch_are_refused(dataset: str) -> None:
    with open_data(make_spec(dataset)) as data, pytest.raises(UsageError, match="global_batch_size"):
        data.of_rank(0, 3)


def test_data_for_another_task_is_refused(dataset: str) -> None:
    spec = make_spec(dataset, task={"name": "classification", "num_labels": 2})
    assert "task.name" in refusal(spec)
