"""gptbridge as a model of lm-evaluation-harness: `--model gptbridge --model_args checkpoint=FOLDER`.

lm-eval looks for no plugins: importing this module registers the model. `gptbridge-lm-eval` is lm-eval's own
command with that done.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401  (a model that is registered before lm-eval's own would hide these)
import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from gptbridge.evaluation.encoding import Encoder
from gptbridge.evaluation.scoring import Row
from gptbridge.evaluation.subject import open_subject
from gptbridge.weights.opening import hints_of

_GENERATED = 256  # tokens, where a task does not say how many


@register_model("gptbridge")
class GptbridgeLM(TemplateLM):  # type: ignore[misc]
    """A run's newest checkpoint, or a checkpoint of any dialect, on any backend.

    `checkpoint` is its path; `tokenizer` a folder or "byte", by default what lies beside the weights;
    `max_length` the tokens that the model sees, by default as many as it was trained at; `dtype` fp32, bf16
    or fp16. Other words are hints for a checkpoint that says too little, such as num_attention_heads=12.
    """

    def __init__(
        self,
        checkpoint: str,
        backend: str = "torch",
        tokenizer: str | None = None,
        max_length: int | None = None,
        dtype: str = "fp32",
        batch_size: int | str = 8,
        device: str | None = None,
        max_batch_size: int | None = None,
        **hints: Any,
    ) -> None:
        super().__init__()
        self._open = ExitStack()
        subject = self._open.enter_context(
            open_subject(Path(checkpoint), hints_of(**hints), tokenizer, warnings.warn)
        )
        self.max_length = int(max_length or subject.trained_length)
        overrides = [f"precision.compute={dtype}"]
        if device is not None:
            overrides.append(f"training.device={'gpu' if device.startswith('cuda') else device}")
        self._batch_size = 8 if batch_size == "auto" else int(batch_size)
        self._scorer = self._open.enter_context(
            subject.scorer(backend, window=self.max_length, rows=self._batch_size, overrides=overrides)
        )
        self._encoder = Encoder(subject.tokenizer, subject.model.vocab_size, special_tokens=True)
        self._identity = subject.tokenizer.identity

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text, and stands before one that has no context."""
        return self._encoder.end_of_text("lm-eval puts before texts")

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's cache of requests goes by."""
        return self._identity

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of `string`; nothing is added to them."""
        return [int(token) for token in self._encoder.encode(string, "a request")]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        """Return the log likelihood of each continuation, and whether it is what greedy would write."""
        rows = [self._row(context, continuation) for _, context, continuation in requests]
        found: list[tuple[float, bool]] = []
        for (request, *__), scored in zip(requests, self._scorer.score(rows, hits=True), strict=True):
            found.append((-float(scored.losses.sum()), bool(scored.hits.all())))
            if request is not None:
                self.cache_hook.add_partial("loglikelihood", request, found[-1])
        return found

    def _row(self, context: Sequence[int], continuation: Sequence[int]) -> Row:
        if len(continuation) > self.max_length:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens: {self.max_length} is the longest"
            )
        tokens = np.array([*context, *continuation][-(self.max_length + 1) :], np.int32)
        at = np.arange(len(tokens) - 1 - len(continuation), len(tokens) - 1, dtype=np.int32)
        return Row(tokens[:-1], tokens[at + 1], at)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log likelihood of each whole text, in windows that do not overlap."""
        rows, owners = [], []
        for owner, request in enumerate(requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, windows):
                rows.append(self._row(context, continuation))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, scored in zip(owners, self._scorer.score(rows, hits=False), strict=True):
            totals[owner] -= float(scored.losses.sum())
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what greedy writes after each context, up to one of its stops."""
        found = [""] * len(requests)

        def kind(number: int) -> str:
            return repr(requests[number].args[1])

        for _, group in groupby(sorted(range(len(requests)), key=kind), kind):
            numbers = list(group)
            for start in range(0, len(numbers), self._batch_size):
                part = numbers[start : start + self._batch_size]
                texts = self._continued([requests[n].args[0] for n in part], requests[part[0]].args[1])
                for number, text in zip(part, texts, strict=True):
                    found[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return found

    def _continued(self, contexts: Sequence[str], options: dict[str, Any]) -> Iterator[str]:
        """Yield the texts that follow the contexts, which lose their beginnings where there is no room."""
        if options.get("do_sample") or options.get("temperature", 0) > 0:
            raise NotImplementedError("gptbridge's model of lm-eval is greedy: do_sample has to be false")
        count = options.get("max_gen_toks", _GENERATED)
        if count >= self.max_length:
            raise ValueError(f"max_gen_toks={count}: the model has {self.max_length} positions for all")
        until = options.get("until") or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        rows = [
            self.tok_encode(text)[-(self.max_length - count) :] or [self.eot_token_id] for text in contexts
        ]
        for tokens in self._greedy(rows, count, stops):
            text = self._encoder.tokenizer.decode(tokens)
            for stop in stops:
                text = text.split(stop)[0]
            yield text

    def _greedy(self, rows: Sequence[Sequence[int]], count: int, stops: Sequence[str]) -> list[list[int]]:
        written: list[list[int]] = [[] for _ in rows]
        going, new = list(range(len(rows))), [list(row) for row in rows]
        decoder = self._scorer.model.decoder(len(rows), max(map(len, rows)) + count)
        for _ in range(count):
            lengths = np.array([len(row) for row in new], np.int32)
            tokens = np.zeros((len(new), lengths.max()), np.int32)
            for place, row in enumerate(new):
                tokens[place, : len(row)] = row
            chosen = decoder.feed(tokens, lengths).argmax(-1).tolist()
            kept = [place for place, token in enumerate(chosen) if token != self.eot_token_id]
            for place in kept:
                written[going[place]].append(chosen[place])
            kept = [p for p in kept if not self._stopped(written[going[p]], stops)]
            going, new = [going[p] for p in kept], [[chosen[p]] for p in kept]
            if not going:
                break
            decoder.keep(np.array(kept, np.int32))
        return written

    def _stopped(self, tokens: list[int], stops: Sequence[str]) -> bool:
        text = self._encoder.tokenizer.decode(tokens)
        return any(stop in text for stop in stops)


def main() -> None:
    """Run lm-eval's own command, which now knows `--model gptbridge`."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
