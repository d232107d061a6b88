"""Preparation as others write it: `python benchmarks/data_peers.py STYLE TEXT TOKENIZER OUT`.

Each reads JSON lines and writes the tokens of each document and end-of-text, uint16, back to back.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np


def texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def one_by_one(text: Path, tokenizer: Path, out: Path) -> None:
    """As Megatron-LM's preprocess_data.py: one document at a time through Python lists."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    encoder.encode_special_tokens = True
    end = encoder.token_to_id("<|endoftext|>")
    with out.open("wb") as file:
        for document in texts(text):
            ids = [*encoder.encode(document).ids, end]
            file.write(np.array(ids, dtype=np.uint16).tobytes(order="C"))


def batches(text: Path, tokenizer: Path, out: Path) -> None:
    """As nanoGPT's prepare.py through datasets.map: batches, which the library spreads over cores."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    encoder.encode_special_tokens = True
    end = encoder.token_to_id("<|endoftext|>")
    documents = texts(text)
    with out.open("wb") as file:
        while batch := list(islice(documents, 256)):
            for encoding in encoder.encode_batch_fast(batch):
                file.write(np.array([*encoding.ids, end], dtype=np.uint16).tobytes())


def tiktoken(text: Path, tokenizer: Path, out: Path) -> None:
    from tiktoken import Encoding

    vocabulary: dict[str, int] = json.loads((tokenizer / "vocab.json").read_text())
    end = vocabulary.pop("<|endoftext|>")
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    byte = {chr(b if b in printable else next(spare)): b for b in range(256)}
    encoding = Encoding(
        "trained",
        pat_str=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        mergeable_ranks={bytes(byte[symbol] for symbol in token): rank for token, rank in vocabulary.items()},
        special_tokens={"<|endoftext|>": end},
    )
    with out.open("wb") as file:
        for document in texts(text):
            ids = encoding.encode_ordinary(document)
            ids.append(end)
            file.write(np.array(ids, dtype=np.uint16).tobytes())


def gigatoken(text: Path, tokenizer: Path, out: Path) -> None:
    """The same encoder as gptbridge's, in the shortest loop: no index, no digest, no way to resume."""
    import gigatoken as library

    content = json.loads((tokenizer / "tokenizer.json").read_text())
    end = content["added_tokens"][0]["id"]
    content["added_tokens"] = []
    del content["model"]["vocab"]["<|endoftext|>"]
    encode = library.Tokenizer.from_json(json.dumps(content)).backend.encode
    with out.open("wb") as file:
        for document in texts(text):
            file.write(np.append(encode(document), end).astype(np.uint16).tobytes())


STYLES: dict[str, Callable[[Path, Path, Path], None]] = {
    "one-by-one": one_by_one,
    "batches": batches,
    "tiktoken": tiktoken,
    "gigatoken": gigatoken,
}

if __name__ == "__main__":
    STYLES[sys.argv[1]](*map(Path, sys.argv[2:5]))
