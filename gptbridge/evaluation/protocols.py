"""How a model is measured: the right way, and the ways of four systems whose numbers are published.

Each system's procedure differs from `strict` in quirks that change the number. A row of `PROTOCOLS` has a
field for each; `quirks` says the same for a reader.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from gptbridge.errors import UsageError

T = TypeVar("T")
Cleaning = Literal["none", "wikitext", "articles"]

_TEXT = "WikiText's spaces are taken out before encoding; --no-detokenize"
_SPECIAL = "<|endoftext|> spelt out in a text is that token"
_CAP = "a perplexity is exp(min(20, loss)), 4.85e8 at the most"
_NO_MASK = "the padding of the last windows is scored like text"
_LEFT = "a context that is too long keeps its first tokens, not its last"
_ALONE = "a text of one word counts as right"
_FIRST = "the first batch counts as often as the log has batches a line: 10"
_LAST = "batches after the last line of the log do not count"


@dataclass(frozen=True, slots=True)
class Protocol:
    """One way to measure; a quirk that a system does not have is at its default, which is right.

    `cut`: overlapping windows; disjoint blocks whose first token is no target and whose remainder is
    dropped; records, one a line, each padded with zeros to the window. `padding` of the last windows:
    none; to the window's length with end-of-text, where inputs that are end-of-text do not count
    (masked) or do (counted). `mean`: over tokens; of each batch, then over batches; or of what is
    logged, see `logged_sum`.
    """

    name: str
    system: str
    quirks: Mapping[str, tuple[str, ...]]  # of each task that it has
    window: int | None = 1024  # None: as many tokens as the model was trained at
    stride: int | None = 32  # None: half the window
    batch_size: int = 8
    cut: Literal["windows", "blocks", "records"] = "windows"
    cleaning: Cleaning = "none"
    padding: Literal["none", "masked", "counted"] = "none"
    mean: Literal["tokens", "batches", "log"] = "tokens"
    special_tokens: bool = True  # found in a text
    cap: float | None = None  # largest exponent of a perplexity
    right_cut: bool = True  # a context that is too long loses its end, not its beginning


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "strict",
            "every token scored once, no padding counted",
            quirks={"perplexity": (), "cloze": (), "multiple-choice": ()},
            window=None,
            stride=None,
            special_tokens=False,
            right_cut=False,
        ),
        Protocol(
            "paddlenlp",
            "PaddleNLP 2.5, model_zoo/gpt/run_eval.py",
            cleaning="wikitext",
            padding="masked",
            cap=20.0,
            quirks={
                "perplexity": (
                    _TEXT,
                    _SPECIAL,
                    "what follows end-of-text is not scored, but is in the denominator",
                    "what follows the last token, padding, is scored",
                    _CAP,
                ),
                "cloze": (_SPECIAL, _LEFT, _ALONE),
            },
        ),
        Protocol(
            "fleetx",
            "PaddleFleetX of 2022-08, single card",
            cleaning="wikitext",
            padding="counted",
            cap=20.0,
            quirks={
                "perplexity": (_TEXT, _SPECIAL, _NO_MASK, _CAP),
                "cloze": (_SPECIAL, _LEFT, _ALONE),
            },
        ),
        Protocol(
            "fleetx-develop",
            "PaddleFleetX of 2023-08, GPTEvalModule",
            batch_size=16,
            cleaning="wikitext",
            padding="counted",
            mean="log",
            cap=20.0,
            quirks={
                "perplexity": (_TEXT, _SPECIAL, _NO_MASK, _FIRST, _LAST, _CAP),
                "cloze": (_SPECIAL, _LEFT, _ALONE, _FIRST, _LAST),
            },
        ),
        Protocol(
            "mindformers",
            "MindFormers 1.3, wikitext2_data_process.py and PerplexityMetric",
            stride=None,
            cut="blocks",
            cleaning="articles",
            mean="batches",
            quirks={
                "perplexity": (
                    "headings, and what follows the last one or a tab, are dropped",
                    "WikiText's spaces are taken out by line, lines joined by a space",
                    _SPECIAL,
                    "disjoint blocks; their first tokens and the remainder do not count",
                    "an end-of-text label weighs half of another",
                    "the mean over batches of their means, the last one however small",
                ),
            },
        ),
        Protocol(
            "modelscope",
            "ModelScope GPT-3, TextGenerationJiebaPreprocessor and PplMetric",
            window=128,
            stride=None,
            cut="records",
            special_tokens=False,
            quirks={
                "perplexity": (
                    "a line is a record, ends with <sep>, is cut or padded with 0",
                    "the padding is scored like text",
                ),
            },
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A protocol with the numbers that it is run with; `stride` is None where nothing overlaps."""

    protocol: Protocol
    window: int
    stride: int | None
    batch_size: int
    logging_interval: int | None  # of a protocol whose mean is that of a log
    cleaning: Cleaning

    def total(self, sums: Sequence[float]) -> float:
        """Return the sum over rows as the protocol adds up."""
        if self.logging_interval is None:
            return math.fsum(sums)
        return logged_sum([math.fsum(part) for part in batched(sums, self.batch_size)], self.logging_interval)


def find_protocol(name: str, task: str) -> Protocol:
    """Return the protocol called `name`; UsageError where there is none, or where it has no such task."""
    if name not in PROTOCOLS:
        raise UsageError(f"no protocol {name!r}", where="--protocol", allowed=", ".join(PROTOCOLS))
    if task not in PROTOCOLS[name].quirks:
        fitting = [each.name for each in PROTOCOLS.values() if task in each.quirks]
        raise UsageError(f"{name} has no {task}", where="--protocol", allowed=", ".join(fitting))
    return PROTOCOLS[name]


def logged_sum(batches: Sequence[float], interval: int) -> float:
    """Return what a log adds up to whose lines hold mean x `interval` of the batches since the last line.

    Its first line comes after the first batch, each other one after `interval` more.
    """
    logged = 1 + (len(batches) - 1) // interval * interval
    return batches[0] * interval + sum(batches[1:logged])


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items, `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
