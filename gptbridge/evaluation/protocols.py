"""How a model is measured: the right way, and the ways of four systems whose numbers are published.

Each system's procedure differs from `strict` in quirks that change the number. A row of `PROTOCOLS` has a
field for each; `quirks` says the same for a reader.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from gptbridge.errors import UsageError

T = TypeVar("T")
Cleaning = Literal["none", "wikitext", "articles"]

BOTH = ("perplexity", "cloze")
_TEXT = "WikiText's spaces are taken out before the text is encoded (--no-detokenize)"
_SPECIAL = "<|endoftext|> spelt out in a text is that token"
_CAP = "exp(min(20, loss)): no perplexity beyond 4.85e8"
_LEFT = "a cloze context keeps its first tokens, not its last, where it is too long"
_ALONE = "a cloze text of one word counts as right"


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
    tasks: tuple[str, ...]
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
    quirks: tuple[str, ...] = ()


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "strict",
            "every token scored once, no padding counted",
            ("perplexity", "cloze", "multiple-choice"),
            window=None,
            stride=None,
            special_tokens=False,
            right_cut=False,
        ),
        Protocol(
            "paddlenlp",
            "PaddleNLP 2.5, model_zoo/gpt/run_eval.py",
            BOTH,
            cleaning="wikitext",
            padding="masked",
            cap=20.0,
            quirks=(
                _TEXT,
                _SPECIAL,
                "what follows an end-of-text token is not scored, but is in the denominator",
                "the last token's prediction of the padding is scored",
                _CAP,
                _LEFT,
                _ALONE,
            ),
        ),
        Protocol(
            "fleetx",
            "PaddleFleetX of 2022-08, single card",
            BOTH,
            cleaning="wikitext",
            padding="counted",
            cap=20.0,
            quirks=(
                _TEXT,
                _SPECIAL,
                "the padding of the last windows is scored like text (its mask does nothing)",
                _CAP,
                _LEFT,
                _ALONE,
            ),
        ),
        Protocol(
            "fleetx-develop",
            "PaddleFleetX of 2023-08, GPTEvalModule",
            BOTH,
            batch_size=16,
            cleaning="wikitext",
            padding="counted",
            mean="log",
            cap=20.0,
            quirks=(
                _TEXT,
                _SPECIAL,
                "the padding of the last windows is scored like text (its mask does nothing)",
                "what is logged is summed, as mean x interval: the first batch counts interval times,",
                "batches after the last line of the log do not count (--logging-interval, 10)",
                _CAP,
                _LEFT,
                _ALONE,
            ),
        ),
        Protocol(
            "mindformers",
            "MindFormers 1.3, wikitext2_data_process.py and PerplexityMetric",
            ("perplexity",),
            stride=None,
            cut="blocks",
            cleaning="articles",
            mean="batches",
            quirks=(
                "headings and the last article are dropped, articles are joined by a newline",
                "WikiText's spaces are taken out line by line, lines are joined by a space",
                _SPECIAL,
                "disjoint blocks: the first token of each is no target, the remainder is dropped",
                "an end-of-text label weighs half of another",
                "a mean of the batches' means: a last small batch weighs as much as a full one",
            ),
        ),
        Protocol(
            "modelscope",
            "ModelScope GPT-3, TextGenerationJiebaPreprocessor and PplMetric",
            ("perplexity",),
            window=128,
            stride=None,
            cut="records",
            special_tokens=False,
            quirks=(
                "each line is a record, with <sep> after it, cut or padded with 0 to the window",
                "the padding is scored like text",
            ),
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
    logging_interval: int | None
    cleaning: Cleaning

    def total(self, sums: Sequence[float]) -> float:
        """Return the sum over rows as the protocol adds up."""
        if self.protocol.mean != "log":
            return math.fsum(sums)
        assert self.logging_interval is not None
        return logged_sum([math.fsum(part) for part in batched(sums, self.batch_size)], self.logging_interval)


def find_protocol(name: str, task: str) -> Protocol:
    """Return the protocol called `name`; UsageError where there is none, or where it has no such task."""
    if name not in PROTOCOLS:
        raise UsageError(f"no protocol {name!r}", where="--protocol", allowed=", ".join(PROTOCOLS))
    if task not in PROTOCOLS[name].tasks:
        fitting = [each.name for each in PROTOCOLS.values() if task in each.tasks]
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
