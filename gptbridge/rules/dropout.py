"""Seeds of dropout: the whole random state of a run."""

from __future__ import annotations

import hashlib


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """Return the 63-bit seed of the dropout stream of one micro-batch: the whole RNG state of a run."""
    digest = hashlib.blake2b(f"dropout:{seed}:{step}:{micro_batch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
