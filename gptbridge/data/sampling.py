"""Which tokens a sample holds: splits by document, samples by position, order by a keyed permutation.

No index files: everything is computed from (seed, epoch, sample), so that a run resumes at any step
at once and every rank finds its own samples alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["training", "validation", "test"]
SPLITS: tuple[Split, ...] = ("training", "validation", "test")

_ROUNDS = 8  # of the permutation
_ROUND = 1 << 16  # samples of a mixture


def split_bounds(documents: int, shares: Sequence[float]) -> tuple[int, int, int, int]:
    """Return the first document of training, validation and test, and the number of documents.

    PaddleNLP's and FleetX's rounding (get_train_valid_test_split_): each share is rounded half to
    even on its own, and what the sum is off by is taken from every bound but the first.
    """
    total = sum(shares)
    bounds = [0]
    for share in shares:
        bounds.append(bounds[-1] + round(share / total * documents))
    excess = bounds[-1] - documents
    train, validation, test = (max(0, bound - excess) for bound in bounds[1:])
    return (0, train, validation, test)


class Permutation:
    """A keyed permutation of 0..size-1 in constant memory.

    The generalised Feistel cipher with cycle walking of Black and Rogaway, "Ciphers with Arbitrary
    Finite Domains" (CT-RSA 2002), section 5: x = high * side + low with side = ceil(sqrt(size));
    each round maps (high, low) to (low, (high + F(low)) mod side), a bijection of the side**2 pairs.
    A value beyond `size` is enciphered again until it is within, which is seldom needed. F is the
    SplitMix64 finaliser (Steele, Lea and Flood, OOPSLA 2014) under a round key; the keys are the
    BLAKE2b digest of (seed, epoch).
    """

    def __init__(self, size: int, *, seed: int, epoch: int) -> None:
        self._size = size
        self._side = np.uint64(max(1, math.isqrt(size - 1) + 1))
        key = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = np.frombuffer(key, "<u8")

    def __call__(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the image of each of `values`, which lie in 0..size-1."""
        result = self._encipher(values.astype(np.uint64))
        while (outside := result >= self._size).any():
            result[outside] = self._encipher(result[outside])
        return result.astype(np.int64)

    def _encipher(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        high, low = np.divmod(values, self._side)
        for key in self._keys:
            high, low = low, (high + _mix(low + key) % self._side) % self._side
        result: NDArray[np.uint64] = high * self._side + low
        return result


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class Samples:
    """The samples of one split: sample k is its tokens k*S to k*S + S, the last one a label only.

    Neighbours overlap by one token, and T tokens hold (T - 1) // S samples: an epoch. Sample
    `number` counts on through the epochs.
    """

    first_token: int
    tokens: int
    seq_length: int
    seed: int = 0
    shuffle: bool = False

    @property
    def per_epoch(self) -> int:
        """Samples of one epoch."""
        return max(0, self.tokens - 1) // self.seq_length

    def of_epochs(self, epochs: float) -> int:
        """Return the samples of so many epochs: at least one."""
        return max(1, round(epochs * self.per_epoch))

    def once(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which of `numbers` are of the first epoch."""
        return numbers < self.per_epoch

    def starts(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the position of the first token of each sample, in the shape of `numbers`."""
        epochs, within = np.divmod(numbers, self.per_epoch)
        if self.shuffle:
            for epoch in np.unique(epochs):
                here = epochs == epoch
                order = Permutation(self.per_epoch, seed=self.seed, epoch=int(epoch))
                within[here] = order(within[here])
        return self.first_token + within * self.seq_length


@dataclass(frozen=True)
class Mixture:
    """The samples of several datasets in turn: a round of 65,536 has of each what its weight says.

    The round is the same for all: within it, and so in every stretch of samples, each dataset is at most
    about one sample off its share. Those of one dataset come in its own order, whatever the others are.
    """

    parts: tuple[Samples, ...]
    weights: tuple[float, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all datasets."""
        return sum(part.tokens for part in self.parts)

    @property
    def seq_length(self) -> int:
        """Tokens of a sample."""
        return self.parts[0].seq_length

    @property
    def per_epoch(self) -> int:
        """Samples until every dataset has been taken through once."""
        return max(self._first_pass(i) for i in range(len(self.parts)))

    def once(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which of `numbers` are of the first pass over their dataset."""
        which, own = self._own(numbers)
        passes = np.array([part.per_epoch for part in self.parts])
        result: NDArray[np.bool_] = own < passes[which]
        return result

    def starts(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the position of the first token of each sample, in the shape of `numbers`."""
        which, own = self._own(numbers)
        result = np.empty_like(own)
        for i, part in enumerate(self.parts):
            result[which == i] = part.starts(own[which == i])
        return result

    def _own(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which dataset each sample is of, and its number among that dataset's."""
        rounds, slots = np.divmod(numbers, _ROUND)
        which = self._turns[slots]
        return which, rounds * self._quotas[which] + self._before[slots]

    def _first_pass(self, i: int) -> int:
        """Return how many samples there are up to the last one of the first pass over dataset `i`."""
        rounds, within = divmod(self.parts[i].per_epoch - 1, int(self._quotas[i]))
        return rounds * _ROUND + int(np.flatnonzero(self._turns == i)[within]) + 1

    @cached_property
    def _quotas(self) -> NDArray[np.int64]:
        """Samples of each dataset in a round: at least one, the rest by the largest remainders."""
        shares = np.array(self.weights) / sum(self.weights) * (_ROUND - len(self.weights))
        quotas = np.floor(shares).astype(np.int64)
        largest = np.argsort(quotas - shares, kind="stable")[: _ROUND - len(self.weights) - int(quotas.sum())]
        quotas[largest] += 1
        result: NDArray[np.int64] = quotas + 1
        return result

    @cached_property
    def _turns(self) -> NDArray[np.int64]:
        """Which dataset each sample of a round is of: each dataset's are spread evenly."""
        times = np.concatenate([(np.arange(quota) + 0.5) / quota for quota in self._quotas])
        labels: NDArray[np.int64] = np.repeat(np.arange(len(self.parts)), self._quotas)
        order: NDArray[np.int64] = np.argsort(times, kind="stable")
        return labels[order]

    @cached_property
    def _before(self) -> NDArray[np.int64]:
        """Samples of the same dataset before each one of a round."""
        result = np.empty(_ROUND, np.int64)
        for i, quota in enumerate(self._quotas):
            result[self._turns == i] = np.arange(quota)
        return result
