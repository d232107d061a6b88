"""Seeds of dropout: the whole random state of a run."""

from __future__ import annotations

import hashlib


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """Return the 63-bit seed of one micro-batch's dropout.

    `micro_batch` is its number among those of all ranks, so that the same samples see the same dropout
    however they are shared out.
    """
    return _seed(f"dropout:{seed}:{step}:{micro_batch}")


def site_seed(seed: int, layer: int, site: str, part: int = 0) -> int:
    """Return the 63-bit seed of one dropout site of a micro-batch with this `seed`.

    Sites are drawn apart, so that a pipeline's stages, and a layer that is recomputed, draw what one process
    does. `part` numbers the ranks that have different parts of the site: those of tensor parallelism in
    attention, and everywhere where the sequence is cut. The site before the first layer is of layer -1.
    """
    return _seed(f"site:{seed}:{layer}:{site}:{part}")


def _seed(words: str) -> int:
    digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
