"""Which part of each batch is a replica's, and which dropout it sees: the same whatever the data are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import UsageError
from gptbridge.rules.dropout import dropout_seed
from gptbridge_specs import RunSpec


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One of `ranks` data-parallel replicas of a run.

    Micro-batch a of rank r holds the samples a * ranks + r of the global batch when it is cut into
    micro-batches, so that one step sees the same samples for any number of ranks and any micro-batch size.
    """

    spec: RunSpec
    rank: int = 0
    ranks: int = 1

    def of_rank(self, rank: int, ranks: int) -> Self:
        """Return the same for one of `ranks` replicas; UsageError where they do not divide the batch."""
        batch, micro = self.spec.training.global_batch_size, self.spec.training.micro_batch_size or 1
        if batch % (ranks * micro):
            problem = f"{batch} is not a multiple of {ranks} replicas x micro_batch_size"
            raise UsageError(problem, where="training.global_batch_size")
        size = self.spec.evaluation.global_batch_size
        if size is not None and size % ranks:
            problem = f"{size} is not a multiple of {ranks} replicas"
            raise UsageError(problem, where="evaluation.global_batch_size")
        return replace(self, rank=rank, ranks=ranks)

    def share(self, size: int) -> NDArray[np.int64]:
        """Return which samples of a global batch of `size` are this rank's, (A, B)."""
        share = size // self.ranks
        micro = self.spec.training.micro_batch_size or share
        micro = share if share % micro else micro  # of an evaluation, whose batch is any size
        return np.arange(size).reshape(share // micro, self.ranks, micro)[:, self.rank]

    def dropout_seeds(self, step: int, micro_batches: int) -> tuple[int, ...]:
        """Return a seed for each micro-batch of a step, by its number among those of all ranks."""
        numbers = (a * self.ranks + self.rank for a in range(micro_batches))
        return tuple(dropout_seed(self.spec.training.seed, step, number) for number in numbers)
