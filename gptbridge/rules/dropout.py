"""Seeds of dropout: the whole random state of a run."""

from __future__ import annotations

import hashlib


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """Return the 63-bit seed of one micro-batch's dropout.

    `micro_batch` is its number among those of all ranks, so that the same samples see the same dropout
    however they are shared out.
    """
    digest = hashlib.blake2b(f"dropout:{seed}:{step}:{micro_batch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
