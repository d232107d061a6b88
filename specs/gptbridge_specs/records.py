"""How the lines of a file become what a model is fine-tuned on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gptbridge_specs.base import Part

RecordFormat = Literal[
    "jsonl",
    "alpaca",
    "sst2",
    "cola",
    "imdb",
    "ag-news",
    "mrpc",
    "qqp",
    "mnli",
    "qnli",
    "rte",
    "wnli",
    "sts-b",
    "mindrecord",
]


class RecordsSpec(Part):
    """Records of a fine-tuning task: one JSON object, or one row of a table, a line."""

    format: RecordFormat = Field(
        "jsonl",
        description="jsonl, alpaca (instruction, input, output), the table of a known task, or MindRecord.",
    )
    source: str | None = Field(
        None,
        description="Text to begin with: a template of a record's fields, such as {text1}; absent: "
        "{src_txt}, for classes {text}.",
    )
    target: str | None = Field(
        None,
        description="Text to answer with, of records that have its fields, absent: {tgt_txt}; for classes "
        "the class, absent: {label}.",
    )
    labels: tuple[str, ...] = Field(
        (), description="Names of the classes, in the order of their numbers; absent: records have numbers."
    )
    separator: int | None = Field(
        None, ge=0, description="Token that ends a record; absent: the tokenizer's <sep>, else end-of-text."
    )
    prompt_loss: bool = Field(False, description="Count the loss on the source of a pair too.")
    too_long: Literal["refuse", "cut"] = Field(
        "refuse", description="What becomes of a record of more than seq_length + 1 tokens."
    )
    packed: bool = Field(
        False,
        description="Fill rows of seq_length with several records, none of which sees another, instead of "
        "padding records of like length.",
    )
    skip_bad: bool = Field(False, description="Leave bad records out and count them (--skip-bad).")
