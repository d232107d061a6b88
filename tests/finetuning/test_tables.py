"""The tables of GLUE and of MindFormers' scripts: which columns are texts and class."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.errors import BadInput, UsageError
from gptbridge.finetuning.batches import open_records
from gptbridge.finetuning.lines import LABELS
from gptbridge.finetuning.table import read_table
from gptbridge_specs import RunSpec

# format: a file's lines; the texts that are read, and the numbers of their classes
FILES = {
    "sst2": (["sentence\tlabel", 'an "odd\t1', "dull \t0"], ['an "odd', "dull "], [1, 0]),
    "sst2 without a header": (["a good one\t1", "x\t0"], ["a good one", "x"], [1, 0]),
    "cola": (["gj04\t1\t\tIt fits.", "gj04\t0\t*\tFits it."], ["It fits.", "Fits it."], [1, 0]),
    "mrpc": (["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t7\t8\ta b\tc d"], ["a bc d"], [1]),
    "qqp": (["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t2\t3\tx?\ty?\t0"], ["x?y?"], [0]),
    "mnli": (
        [
            "\t".join(["index"] + [f"c{n}" for n in range(10)] + ["gold_label"]),
            "\t".join(["0"] * 8 + ["p", "h", "neutral", "entailment"]),
            "\t".join(["0"] * 8 + ["p", "q"] + ["neutral"] * 5 + ["contradiction"]),  # dev: 16 columns
        ],
        ["ph", "pq"],
        [1, 0],
    ),
    "qnli": (["index\tquestion\tsentence\tlabel", "0\tq\ts\tnot_entailment"], ["qs"], [1]),
    "rte": (["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tentailment"], ["ab"], [0]),
    "wnli": (["index\tsentence1\tsentence2\tlabel", "0\ta\tb\t1"], ["ab"], [1]),
    "sts-b": (
        [
            "index\tgenre\tfile\tyear\told\ts1\ts2\tsentence1\tsentence2\tscore",
            "0\t" * 7 + "a\tb\t3.25",
            "1\t" * 7 + 'c"\td\t0',
        ],
        ["ab", 'c"d'],
        [3.25, 0],
    ),
    "imdb": (
        ["review,sentiment", '"So ""good"", really",positive', "bad,negative"],
        ['So "good", really', "bad"],
        [1, 0],
    ),
    "ag-news": (['"3","Oil up","It ""rose"", they say."'], ['Oil up. It "rose", they say.'], [2]),
    "ag-news with bare cells": (
        ["Class Index,Title,Description", '3,"Oil, up","It ""rose"""', "1,War,Ends"],
        ['Oil, up. It "rose"', "War. Ends"],
        [2, 0],
    ),
    "jsonl": (
        ['{"text": "a", "text_pair": "b", "label": 1}', '{"text": "c", "label": "0"}'],
        ["ab", "c"],
        [1, 0],
    ),
}


def spec_of(format_name: str, **records: object) -> RunSpec:
    count = len(LABELS.get(format_name, ("0", "1"))) or 1
    task = {
        "name": "classification",
        "num_labels": count,
        "records": {"format": format_name, **records},
    }
    model = {"vocab_size": 257, "max_position_embeddings": 64}
    return RunSpec.model_validate({"model": model, "task": task, "training": {"seq_length": 40}})


@pytest.mark.parametrize("format_name", FILES)
def test_texts_and_classes_are_found(format_name: str, tmp_path: Path) -> None:
    lines, texts, classes = FILES[format_name]
    format_name = format_name.partition(" ")[0]
    file = tmp_path / "file"
    file.write_text("\n".join(lines) + "\n")
    byte = load_tokenizer("byte")
    table = read_table(file, spec_of(format_name), byte, pytest.fail)
    pieces = [slice(*table.offsets[row : row + 2]) for row in range(len(table))]
    assert [byte.decode(table.inputs[piece]) for piece in pieces] == texts
    assert [table.labels[piece][-1].item() for piece in pieces] == classes
    assert (table.starts == table.lengths - 1).all()
    assert (table.stops == table.lengths).all()


@pytest.mark.parametrize(
    ("format_name", "line", "problem"),
    [
        ("cola", "gj04\t1", "2 columns, not 4 or more"),
        ("cola", "gj04\t2\t\tx", "its class is '2', none of 0, 1"),
        ("sst2", "a good one\t2", "its class is '2', none of 0, 1"),
        ("imdb", "fine,neutral!", "not in ,positive or ,negative"),
        ("sts-b", "0\t" * 7 + "a\tb\tnan", "its value is 'nan', none of numbers"),
        ("ag-news", '"5","a","b"', "its class is '5'"),
        ("ag-news", '1,"a,b', "not a row of CSV"),
        ("ag-news", "1,a,b,c", "4 columns"),
        ("jsonl", '{"text": "a", "label": -1}', "its class is '-1'"),
        ("jsonl", '{"text": "a", "label": true}', "label is 'True', not a text"),
        ("jsonl", '{"text": "a"}', "no field 'label'"),
        ("jsonl", '{"text": "%s", "label": 1}' % ("a" * 41), "41 tokens, more than training.seq_length = 40"),
    ],
)
def test_a_bad_row_is_named(format_name: str, line: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text(line + "\n")
    with pytest.raises(BadInput) as refused:
        read_table(file, spec_of(format_name), load_tokenizer("byte"), pytest.fail)
    assert str(refused.value).startswith(f"{file}, record 1: ")
    assert problem in str(refused.value)


def test_a_table_that_is_read_as_jsonl_is_said_to_be_one(tmp_path: Path) -> None:
    for name, hint in (("train.tsv", "-o task.records.format=FORMAT"), ("train.jsonl", "--skip-bad")):
        (tmp_path / name).write_text("sentence\tlabel\nfine\t1\n")
        with pytest.raises(BadInput) as refused:
            read_table(tmp_path / name, spec_of("jsonl"), load_tokenizer("byte"), pytest.fail)
        assert hint in str(refused.value)


def test_classes_may_have_names_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "file.jsonl"
    file.write_text('{"words": "a", "kind": "no"}\n')
    names = {"labels": ("yes", "no"), "source": "{words}", "target": "{kind}"}
    table = read_table(file, spec_of("jsonl", **names), load_tokenizer("byte"), pytest.fail)
    assert table.labels[-1] == 1
    with pytest.raises(UsageError, match=r"task\.num_labels: 2, but there are 3 classes"):
        read_table(file, spec_of("jsonl", labels=("a", "b", "c")), load_tokenizer("byte"), pytest.fail)


def test_a_run_says_how_many_records_of_each_class_it_trains_on(tmp_path: Path) -> None:
    file = tmp_path / "file.tsv"
    file.write_text("".join(f"text {n}\t{int(n > 2)}\n" for n in range(8)))
    given = spec_of("sst2").model_dump(exclude_unset=True)
    given["data"] = {"path": str(file), "split": [6, 2, 0]}
    with open_records(RunSpec.model_validate(given), pytest.fail) as data:
        assert data.facts()["classes"] == {"0": 3, "1": 3}
