"""Records become rows: what counts in the loss, what is refused, and in which batches they come."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptbridge import reference
from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.errors import BadInput, UsageError
from gptbridge.finetuning.batches import open_records
from gptbridge.finetuning.lines import BadRecord
from gptbridge.finetuning.rows import Rows
from gptbridge.finetuning.table import read_table
from gptbridge.testing import cases
from gptbridge_specs import RunSpec, load_run

SEPARATOR = 9


class Numbers:
    """A tokenizer of numbers that are written out."""

    vocab_size, end_of_text, identity, cuts_before_space = 20, SEPARATOR, "numbers", False

    def encode(self, text: str) -> Any:
        return np.array([int(word) for word in text.split()], np.uint32)


def spec_of(task: str = "instruction", seq_length: int = 7, **records: Any) -> RunSpec:
    content = {
        "model": {"vocab_size": 257, "max_position_embeddings": 512},
        "task": {"name": task, "records": records},
        "training": {"seq_length": seq_length, "global_batch_size": 4},
    }
    return RunSpec.model_validate(content)


def words(ids: list[int]) -> str:
    return " ".join(map(str, ids))


# ModelScope's own preprocessor and loss on rows of 8: source, target, the ids, the positions that count.
POSITIONS = {
    "continuation": ([3, 4, 5], None, [3, 4, 5, 9], [0, 1, 2]),
    "continuation that fills the row": ([3, 4, 5, 6, 7, 8, 2], None, [3, 4, 5, 6, 7, 8, 2, 9], range(7)),
    "continuation cut": ([3, 4, 5, 6, 7, 8, 2, 3, 4], None, [3, 4, 5, 6, 7, 8, 2, 3], range(7)),
    "pair": ([3, 4], [5, 6, 7], [3, 4, 5, 6, 7, 9], [1, 2, 3, 4]),
    "pair of an empty target": ([3, 4], [], [3, 4, 9], [1]),
    "pair that fills the row": ([3, 4, 5], [6, 7, 8, 2], [3, 4, 5, 6, 7, 8, 2, 9], [2, 3, 4, 5, 6]),
    "pair of a cut target": ([3, 4, 5], [6, 7, 8, 2, 3, 4], [3, 4, 5, 6, 7, 8, 2, 3], [2, 3, 4, 5, 6]),
}


@pytest.mark.parametrize("case", POSITIONS)
def test_what_counts_is_what_counts_in_modelscope(case: str) -> None:
    source, target, ids, kept = POSITIONS[case]
    fields = {"src_txt": words(source)} | ({} if target is None else {"tgt_txt": words(target)})
    row = Rows(spec_of(too_long="cut"), Numbers()).of(fields)  # type: ignore[arg-type]
    assert (row.inputs, row.labels) == (ids[:-1], ids[1:])
    assert list(range(row.start, row.stop)) == list(kept)
    if target is not None:
        all_of_it = Rows(spec_of(too_long="cut", prompt_loss=True), Numbers()).of(fields)  # type: ignore[arg-type]
        assert (all_of_it.start, all_of_it.stop) == (0, row.stop)


def test_templates_name_fields_and_alpaca_has_its_own() -> None:
    byte = load_tokenizer("byte")
    own = spec_of(seq_length=500, source="{text1}\n", target="{text2}")
    row = Rows(own, byte).of({"text1": "ask", "text2": "say"})
    assert byte.decode(list(row.inputs)) == "ask\nsay"
    alpaca = Rows(spec_of(seq_length=500, format="alpaca"), byte)
    fields = {"instruction": "Add.", "input": "1 and 1", "output": "2"}
    text = byte.decode(list(alpaca.of(fields).inputs))
    assert "### Instruction:\nAdd.\n\n### Input:\n1 and 1\n\n### Response:\n2" in text
    assert "### Input" not in byte.decode(list(alpaca.of({**fields, "input": ""}).inputs))


BAD: dict[str, tuple[str, str]] = {
    "missing": ('{"text": "x"}', "no field 'src_txt'"),
    "type": ('{"src_txt": 1.5, "tgt_txt": "b"}', "src_txt is '1.5', not a text"),
    "number": ('{"src_txt": 12, "tgt_txt": "b"}', "src_txt is '12', not a text"),
    "empty": ('{"src_txt": "", "tgt_txt": "b"}', "its source is empty"),
    "long": ('{"src_txt": "aaaaaaaa", "tgt_txt": "b"}', "10 tokens, more than training.seq_length + 1 = 8"),
    "kind": ('{"src_txt": "a"}', "has a source alone, those before it a source and a target"),
    "json": ("{", "not a JSON object"),
    "list": ("[1]", "not a JSON object"),
    "twice": ('{"src_txt": "a", "src_txt": "b"}', "not a JSON object"),
    "surrogate": ('{"src_txt": "\\ud800", "tgt_txt": "b"}', "lone surrogate"),
}
GOOD = '{"src_txt": "a", "tgt_txt": "b"}'


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_record_is_named_by_file_and_number_or_left_out_and_counted(bad: str, tmp_path: Path) -> None:
    line, problem = BAD[bad]
    file = tmp_path / "records.jsonl"
    file.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    byte, heard = load_tokenizer("byte"), list[str]()
    with pytest.raises(BadInput) as refused:
        read_table(file, spec_of(), byte, heard.append)
    assert str(refused.value).startswith(f"{file}, record 3: ")
    assert problem in str(refused.value)
    assert "--skip-bad" in str(refused.value)
    table = read_table(file, spec_of(skip_bad=True), byte, heard.append)
    assert len(table) == 2
    assert heard[0].startswith(f"{file}: 1 of 3 records are bad and left out, first record 3: ")
    file.write_text("[]\n")
    with pytest.raises(BadInput, match="holds no record"):
        read_table(file, spec_of(skip_bad=True), byte, heard.append)


def test_a_source_that_leaves_no_room_is_refused_even_where_rows_are_cut() -> None:
    rows = Rows(spec_of(too_long="cut"), load_tokenizer("byte"))
    with pytest.raises(BadRecord, match="nothing counts"):
        rows.of({"src_txt": "a" * 9, "tgt_txt": "b"})


def test_presets_of_modelscope_have_its_rows() -> None:
    spec = load_run("modelscope-gpt3-1.3b-dureader", ["data.path=x"])
    assert (spec.training.seq_length, spec.task.records.too_long) == (511, "cut")
    assert spec.task.records.source == "{src_txt}\n"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """37 continuations of other lengths."""
    lengths = np.random.default_rng(0).integers(1, 60, 37)
    lines = [json.dumps({"src_txt": f"-{n:02d}" + "x" * int(size)}) for n, size in enumerate(lengths)]
    (tmp_path / "records.jsonl").write_text("\n".join(lines))
    return tmp_path / "records.jsonl"


@pytest.fixture
def opened(records: Path) -> Callable[..., Any]:
    @contextmanager
    def open_them(*, packed: bool = False, **training: Any) -> Any:
        base = spec_of(seq_length=64).model_dump()
        base["training"] |= training
        base["task"]["records"]["packed"] = packed
        base["data"] |= {"path": str(records), "split": (1, 0, 0)}
        base["evaluation"] |= {"interval": 0}
        with open_records(RunSpec.model_validate(base), pytest.fail) as data:
            yield data

    return open_them


def taken(batches: list[Any]) -> list[tuple[int, ...]]:
    """Return the rows of batches that count, as their labels."""
    return [
        tuple(labels[mask])
        for batch in batches
        for labels, mask in zip(
            batch.labels.reshape(-1, batch.labels.shape[-1]),
            batch.loss_mask.reshape(-1, batch.labels.shape[-1]),
            strict=True,
        )
        if mask.any()
    ]


def steps(data: Any, first: int, last: int) -> list[Any]:
    return [batch for _, batch in zip(range(first, last + 1), data.training(first), strict=False)]


def test_an_epoch_has_each_record_once_with_any_ranks_and_over_a_resume(opened: Callable[..., Any]) -> None:
    with opened(epochs=2) as data:
        whole = steps(data, 1, 19)
        first, second = taken(whole[:10])[:37], taken(whole)[37:]
        assert len(taken(whole)) == 74
        assert sorted(first) == sorted(second) != first
        assert len(set(first)) == 37
        assert first != second
        for batch in whole:
            assert batch.loss_tokens == batch.loss_mask.sum()
        assert taken(steps(data, 7, 19)) == taken(whole[6:])
        halves = [steps(data.of_rank(rank, 2), 1, 19) for rank in range(2)]
        assert sorted(taken(halves[0]) + taken(halves[1])) == sorted(taken(whole))
        assert all(a.loss_tokens == b.loss_tokens for a, b in zip(halves[0], whole, strict=True))
        with pytest.raises(UsageError, match="global_batch_size"):
            data.of_rank(0, 3)


def test_what_is_held_out_is_no_training_record(records: Path) -> None:
    base = spec_of(seq_length=64).model_dump()
    base["data"] |= {"path": str(records), "split": (8, 2, 0)}
    with open_records(RunSpec.model_validate(base), pytest.fail) as data:
        assert data.facts().items() >= {"records": 37, "training_records": 30}.items()


def test_rows_of_like_length_come_together_in_few_lengths(opened: Callable[..., Any]) -> None:
    with opened() as data:
        batches = steps(data, 1, 9)
        widths = {batch.inputs.shape[-1] for batch in batches}
        assert widths <= {8 * n for n in range(1, 9)}
        used = sum(taken_row(data, batches)) / sum(batch.inputs.size for batch in batches)
        assert used > 0.8  # in the order of the file: 0.6


def test_packed_rows_have_each_record_once_an_epoch_apart_from_others(opened: Callable[..., Any]) -> None:
    with opened(packed=True, epochs=2, seq_length=128) as data:
        lengths, rows = data.table.lengths, len(data.rows)
        assert rows == -(-lengths.sum() // 128)  # none fewer could hold them
        last = -(-2 * rows // 4)
        whole = steps(data, 1, last)
        pieces = [
            tuple(labels[piece])
            for batch in whole
            for labels, mask, starts in zip(batch.labels[0], batch.loss_mask[0], batch.starts[0], strict=True)
            for start in np.unique(starts)
            if mask[(piece := starts == start)].any()
        ]
        first = sum(len(data.rows.row(n)) for n in range(rows))
        assert first == 37
        assert sorted(pieces[:37]) == sorted(pieces[37:]) != pieces[:37]
        assert len(set(pieces)) == 37
        halves = [steps(data.of_rank(rank, 2), 1, last) for rank in range(2)]
        assert [sum(int(half[n].loss_mask.sum()) for half in halves) for n in range(last)] == [
            batch.loss_tokens for batch in whole
        ]
        again = steps(data, 2, last)
        for batch, other in zip(again, whole[1:], strict=True):
            np.testing.assert_array_equal(batch.inputs, other.inputs)


def test_a_packed_batch_is_the_one_computed_by_hand(tmp_path: Path) -> None:
    lines = [{"src_txt": "abc"}, {"src_txt": "d"}, {"src_txt": "ef"}, {"src_txt": "g"}]
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, lines)))
    spec = spec_of(seq_length=5, packed=True).model_dump()
    spec["data"] |= {"path": str(tmp_path / "records.jsonl"), "split": (1, 0, 0), "shuffle": False}
    spec["training"] |= {"global_batch_size": 2}
    spec["evaluation"] |= {"interval": 0}
    with open_records(RunSpec.model_validate(spec), pytest.fail) as data:
        batch = steps(data, 1, 1)[0]
    a, b, c, d, e, f, g = b"abcdefg"
    end = 256
    assert batch.inputs.tolist() == [[[d, g, 0, 0, 0], [a, b, c, e, f]]]
    assert batch.labels.tolist() == [[[end, end, 0, 0, 0], [b, c, end, f, end]]]
    assert batch.loss_mask.tolist() == [[[True, True, False, False, False], [True] * 5]]
    assert batch.starts.tolist() == [[[0, 1, 2, 2, 2], [0, 0, 0, 3, 3]]]
    assert batch.loss_tokens == 7


def taken_row(data: Any, batches: list[Any]) -> list[int]:
    return [len(row) for row in taken(batches)]


def test_padding_changes_no_loss(opened: Callable[..., Any]) -> None:
    model = cases.run_spec("cpu", {"vocab_size": 257, "max_position_embeddings": 64}).model
    weights = cases.weights(model)
    with opened() as data:
        batch = steps(data, 1, 1)[0]
    inputs, labels, mask = batch.inputs[0], batch.labels[0], batch.loss_mask[0]
    padded = reference.token_losses(model, weights, inputs, labels)
    for row in range(len(inputs)):
        size = int(mask[row].sum())
        alone = reference.token_losses(
            model, weights, inputs[row : row + 1, :size], labels[row : row + 1, :size]
        )
        np.testing.assert_allclose(padded[row, :size], alone[0], atol=1e-5)
