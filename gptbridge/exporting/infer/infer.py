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


def continued(model: Model, tokens: Sequence[int], limit: int, end: int | None) -> Iterator[int]:
    """Yield the likeliest next token, again and again: up to `limit`, the end of text, or the last place."""
    places = json.loads((FOLDER / "config.json").read_text())["n_positions"]
    past, new = None, list(tokens)
    for _ in range(min(limit, places - len(tokens))):
        logits, past = model.feed(np.array([new], np.int64), past)
        token = int(logits[0, -1].argmax())
        if token == end:
            return
        yield token
        new = [token]


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
    end = json.loads((FOLDER / "config.json").read_text()).get("eos_token_id")
    model = Model(FOLDER)
    if words.ids:
        print(*continued(model, words.ids, words.new, end))
        return
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokens = tokenizer.encode(words.prompt, add_special_tokens=False).ids
    print(tokenizer.decode([*tokens, *continued(model, tokens, words.new, end)]))


if __name__ == "__main__":
    main()
