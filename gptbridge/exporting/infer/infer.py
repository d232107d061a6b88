"""Continue a text, or tokens, with the model in this folder, greedily.

    python infer.py --prompt "def "
    python infer.py --ids 5 17 3

It needs NumPy, what model.py imports and, for texts, tokenizers; it does not need gptbridge.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from model import Model

FOLDER = Path(__file__).parent


def continued(model: Model, tokens: Sequence[int], limit: int, known: int, end: int | None) -> Iterator[int]:
    """Yield the likeliest next of `known` tokens, again and again: up to `limit`, or the end of text."""
    past, new = None, list(tokens)
    for _ in range(limit):
        logits, past = model.feed(np.array([new], np.int64), past)
        token = int(logits[0, -1, :known].argmax())
        if token == end:
            return
        yield token
        new = [token]


def _splits_alone() -> bool:
    """Tell whether tokenizer.json says all of the tokenizer."""
    path = FOLDER / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    return config.get("tokenizer_class") == "PreTrainedTokenizerFast"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--prompt")
    start.add_argument("--ids", type=int, nargs="+")
    parser.add_argument("--new", type=int, default=40, help="tokens to write, at the most")
    words = parser.parse_args()
    config = json.loads((FOLDER / "config.json").read_text())
    end, places = config.get("eos_token_id"), config["n_positions"]
    tokens, tokenizer, known = words.ids, None, config["vocab_size"]
    if words.prompt is not None:
        if not _splits_alone():
            parser.error("tokenizers alone does not split texts as this model's tokenizer: give --ids")
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
        tokens = tokenizer.encode(words.prompt, add_special_tokens=False).ids or [end]
        known = tokenizer.get_vocab_size()  # the model may have more rows
    if not all(0 <= token < config["vocab_size"] for token in tokens):
        parser.error(f"the model has the tokens 0 to {config['vocab_size'] - 1}")
    if len(tokens) > places:
        parser.error(f"{len(tokens)} tokens; the model has {places} positions")
    found = list(continued(Model(FOLDER), tokens, min(words.new, places - len(tokens)), known, end))
    print(*found) if tokenizer is None else print(tokenizer.decode([*tokens, *found]))


if __name__ == "__main__":
    main()
