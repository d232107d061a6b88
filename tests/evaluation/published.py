"""The published procedures, written anew and naively, on transformers: `python published.py FOLDER JOBS`.

Every window is padded to its full length, every logit is made, and loops go over batches as the systems'
do. JOBS is a file with a list of {"function": name, ...arguments}; the results are printed as JSON.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

logging.set_verbosity_error()
logging.disable_progress_bar()

Ids = list[int]


class Published:
    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.end: int = self.tokenizer.eos_token_id

    def ids(self, text: str, *, special: bool = True) -> Ids:
        split = {} if special else {"split_special_tokens": True}
        return list(self.tokenizer(text, add_special_tokens=False, **split)["input_ids"])

    @torch.no_grad()
    def log_probs(self, inputs: Iterable[Ids]) -> Any:
        """(B, T, V) in double precision."""
        return self.model(torch.tensor(list(inputs))).logits.double().log_softmax(-1)

    def losses(self, inputs: list[Ids], labels: list[Ids]) -> Any:
        """(B, T) negative log likelihoods."""
        wanted = torch.tensor(labels)[..., None]
        return -self.log_probs(inputs).gather(-1, wanted)[..., 0]

    def direct(self, path: str, window: int, stride: int, detokenized: bool = False) -> dict[str, float]:
        """Every token after the first once, in the first window that reaches it."""
        text = Path(path).read_text()
        ids = self.ids(wikitext(text) if detokenized else text, special=False)
        total, done, begin = 0.0, 1, 0
        while done < len(ids):
            end = min(begin + window + 1, len(ids))
            losses = self.losses([ids[begin : end - 1]], [ids[begin + 1 : end]])[0]
            total += float(losses[done - begin - 1 :].sum())
            done, begin = end, begin + stride
        return scores(total, text, len(ids), 1e9)

    def windows(self, path: str, window: int, stride: int, *, masked: bool, **log: int) -> dict[str, float]:
        """PaddleNLP (masked) and FleetX; with batch_size and interval as develop's GPTEvalModule adds up."""
        text = Path(path).read_text()
        ids = self.ids(wikitext(text))
        count = max(math.ceil(max(len(ids) - 1 - stride, 0) / stride) + 1, 1)
        sums = []
        for number in range(count):
            piece = ids[number * stride : number * stride + window + 1]
            piece = piece + [self.end] * (window + 1 - len(piece))
            mask = torch.ones(window, dtype=torch.float64)
            if masked:
                mask[torch.tensor(piece[:-1]) == self.end] = 0
            if number and stride != window:
                mask[:-stride] = 0
            sums.append(float((self.losses([piece[:-1]], [piece[1:]])[0] * mask).sum()))
        return scores(logged(sums, **log) if log else sum(sums), text, len(ids), 20)

    def mindformers(self, path: str, window: int, batch_size: int) -> dict[str, float]:
        ids = self.ids(mindformers_text(Path(path).read_text()))
        blocks = [ids[n : n + window] for n in range(0, len(ids) // window * window, window)]
        means = []
        for batch in batches(blocks, batch_size):
            losses = self.losses([b[:-1] for b in batch], [b[1:] for b in batch])
            mask = torch.tensor([[float(i != self.end) + 1 for i in b[1:]] for b in batch])
            means.append(float((losses * mask).sum() / mask.sum()))
        loss = sum(means) / len(means)
        return {"loss": loss, "perplexity": math.exp(loss)}

    def modelscope(self, path: str, window: int, batch_size: int) -> dict[str, float]:
        rows = []
        for line in Path(path).read_text().splitlines():
            record = json.loads(line)
            ids = self.ids(record["src_txt"], special=False) + self.ids(
                record.get("tgt_txt", ""), special=False
            )
            rows.append(([*ids, self.end] + [0] * window)[:window])
        mean, seen = 0.0, 0
        for batch in batches(rows, batch_size):
            loss = float(self.losses([r[:-1] for r in batch], [r[1:] for r in batch]).mean())
            mean, seen = (mean * seen + loss * len(batch)) / (seen + len(batch)), seen + len(batch)
        return {"loss": mean, "perplexity": math.exp(mean)}

    def lambada(self, path: str, window: int, *, strict: bool, **log: int) -> dict[str, float]:
        right, losses = [], []
        for line in Path(path).read_text().splitlines():
            text = json.loads(line)["text"]
            last = text.split()[-1]
            context = self.ids(text[: text.rfind(last)].strip(), special=not strict)
            target = self.ids(" " + last, special=not strict)
            if strict:
                context = context[max(0, len(context) + len(target) - window - 1) :] or [self.end]
            tokens = context[:window] + target
            mask = [False] * window
            begin = len(tokens) - len(target) - 1
            for place in range(window)[begin : len(tokens) - 1]:
                mask[place] = True
            tokens = tokens + [self.end] * (window + 1 - len(tokens))
            log_probs = self.log_probs([tokens[:-1]])[0]
            found = log_probs.argmax(-1).tolist()
            right.append(float(all(f == t for f, t, m in zip(found, tokens[1:], mask, strict=True) if m)))
            losses.append(-sum(float(log_probs[p, tokens[p + 1]]) for p in range(window) if mask[p]))
        loss = sum(losses) / len(losses)
        correct = logged(right, **log) if log else sum(right)
        return {"accuracy": correct / len(right), "word_loss": loss}

    def choices(self, path: str, window: int) -> dict[str, float]:
        plain = normalised = total = 0
        for line in Path(path).read_text().splitlines():
            record = json.loads(line)
            sums = []
            for choice in record["choices"]:
                context = self.ids(record["context"])
                whole = self.ids(record["context"] + " " + choice)[-window - 1 :]
                count = len(self.ids(record["context"] + " " + choice)) - len(context)
                sums.append(-float(self.losses([whole[:-1]], [whole[1:]])[0][-count:].sum()))
            by_length = [s / len(c) for s, c in zip(sums, record["choices"], strict=True)]
            plain += sums.index(max(sums)) == record["label"]
            normalised += by_length.index(max(by_length)) == record["label"]
            total += 1
        return {"accuracy": plain / total, "normalised_accuracy": normalised / total}


def scores(total: float, text: str, tokens: int, cap: float) -> dict[str, float]:
    loss, ratio = total / (tokens - 1), (tokens - 1) / (len(text.strip().split(" ")) - 1)
    return {
        "loss": loss,
        "perplexity": math.exp(min(cap, loss)),
        "token_ratio": ratio,
        "adjusted_perplexity": math.exp(min(cap, loss * ratio)),
    }


def batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[n : n + size] for n in range(0, len(items), size))


def logged(rows: list[float], batch_size: int, interval: int) -> float:
    """What develop's engine and module add up: the mean since the last line of the log x its interval."""
    score, since = 0.0, []
    for step, batch in enumerate(batches(rows, batch_size)):
        since.append(sum(batch))
        if step % interval == 0:
            score += sum(since) / len(since) * interval
            since = []
    return score


def wikitext(text: str, full_stop: bool = False) -> str:
    text = text.replace("s '", "s'")
    text = re.sub(r"/' [0-9]/", r"/'[0-9]/", text)
    for mark, plain in (
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (" @.@ ", "."),
        (" : ", ": "),
        (" ; ", "; "),
        (" . ", ". "),
    ):
        text = text.replace(mark, plain)
    if full_stop:
        text = text.replace(" .", ".")
    for mark in "!?,":
        text = text.replace(f" {mark} ", f"{mark} ")
    text = re.sub(r"\(\s*([^\)]*?)\s*\)", r"(\1)", text)
    text = re.sub(r"\[\s*([^\]]*?)\s*\]", r"[\1]", text)
    text = re.sub(r"{\s*([^}]*?)\s*}", r"{\1}", text)
    text = re.sub(r"\"\s*([^\"]*?)\s*\"", r'"\1"', text)
    text = re.sub(r"'\s*([^']*?)\s*'", r"'\1'", text)
    for mark, plain in (("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°")):
        text = text.replace(mark, plain)
    return text.replace(" \n", "\n").replace("\n ", "\n").replace(" N ", " 1 ").replace(" 's", "'s")


def mindformers_text(text: str) -> str:
    articles: list[list[str]] = []
    article: list[str] = []
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("=") and line.endswith("=") and line:
            if article:
                articles.append(article)
            article = []
        elif line:
            article.append(line)
    cleaned = (" ".join(wikitext(line, full_stop=True) for line in each).strip() for each in articles)
    return "\n".join(cleaned).strip().split("\t")[0]


def main() -> None:
    published = Published(sys.argv[1])
    jobs = json.loads(Path(sys.argv[2]).read_text())
    results = []
    for job in jobs:
        function: Callable[..., dict[str, float]] = getattr(published, job.pop("function"))
        results.append(function(**job))
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
