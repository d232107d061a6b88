"""From a RunSpec to the batches of one rank, each made while the step before it runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.data.dataset import joined, open_dataset
from gptbridge.data.replicas import Replica
from gptbridge.data.sampling import SPLITS, Mixture, Samples, Split, split_bounds
from gptbridge.data.tokenizers import Tokenizer, load_tokenizer
from gptbridge.data.tokens import Ids, TokenDataset, beyond, offsets_of, sampled_blocks
from gptbridge.errors import UsageError
from gptbridge.session import Batch
from gptbridge_specs import RunSpec

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class RunData(Replica):
    """The batches of one rank of `ranks` data-parallel replicas.

    A batch is a pure function of (spec, dataset, step, rank).
    """

    dataset: TokenDataset
    tokenizer: Tokenizer
    thread: ThreadPoolExecutor  # one: it makes the next batch
    parts: tuple[TokenDataset, ...] = ()  # of a mixture, which `dataset` joins
    held: TokenDataset | None = None  # to evaluate on, where it is no part of `dataset`

    @property
    def digest(self) -> str:
        """The identity of the content that is trained on."""
        if not self.parts:
            return self.dataset.digest
        return hashlib.sha256(" ".join(part.digest for part in self.parts).encode()).hexdigest()

    def is_called(self, digest: str) -> bool:
        """Tell whether `digest` is this content's, as a checkpoint of today or an older one notes it."""
        return digest in (self.digest, self.dataset.sampled_digest)

    def facts(self) -> dict[str, Any]:
        """Return what a run's log says of its data."""
        samples = self.samples("training")
        return {
            "data": str(self.dataset.where),
            "data_digest": self.digest,
            "training_tokens": samples.tokens,
            "samples_per_epoch": samples.per_epoch,
        }

    def samples(self, split: Split) -> Samples | Mixture:
        """Return the samples of a split; UsageError where it holds none."""
        if split == "validation" and self.held is not None:
            return samples_of(self.spec, self.held, split, whole=True)
        if not self.parts:
            return samples_of(self.spec, self.dataset, split)
        firsts = offsets_of([part.tokens for part in self.parts]).tolist()
        each = [
            samples_of(self.spec, part, split, first=first)
            for part, first in zip(self.parts, firsts[:-1], strict=True)
        ]
        return Mixture(tuple(each), tuple(part.weight for part in self.spec.data.mixture))

    def training(self, first_step: int) -> Iterator[Batch]:
        """Yield the batches of steps `first_step`, `first_step` + 1, ... without end; 1 is the first.

        Samples beyond training.epochs, which the last batch of the run may need to be whole, are masked.
        """
        samples, epochs = self.samples("training"), self.spec.training.epochs
        end = samples.of_epochs(epochs) if epochs and isinstance(samples, Samples) else None
        size = self.spec.training.global_batch_size
        make = partial(
            self._batch, self.dataset, samples, size, lambda n: n < (n.max() + 1 if end is None else end)
        )
        return prefetched(self.thread, lambda step: make(step, step - 1), count(first_step))

    def validation(self) -> Iterator[Batch]:
        """Yield the first `evaluation.batches` batches of what is evaluated on, in order.

        What the split lacks to a whole last batch is filled with masked samples.
        """
        samples = self.samples("validation")
        size = self.spec.evaluation.global_batch_size or self.spec.training.global_batch_size
        whole = -(-samples.per_epoch // size)
        numbers = range(min(whole, self.spec.evaluation.batches))
        make = partial(self._batch, self.held or self.dataset, samples, size, samples.once)
        return prefetched(self.thread, lambda n: make(0, n), iter(numbers))

    def _batch(
        self,
        dataset: TokenDataset,
        samples: Samples | Mixture,
        size: int,
        counts: Callable[[Numbers], NDArray[np.bool_]],
        step: int,
        number: int,
    ) -> Batch:
        """Return the batch `number` of `size` samples, of which those that do not count are masked."""
        numbers = number * size + np.arange(size)
        counted = counts(numbers)
        starts = samples.starts(np.where(counted, numbers, 0))
        mine = self.share(size)
        tokens = self._read(dataset, starts[mine], samples.seq_length + 1)
        inputs, labels = tokens[..., :-1], tokens[..., 1:]
        mask = np.broadcast_to(counted[mine][..., None], inputs.shape).copy()
        loss_tokens = int(counted.sum()) * samples.seq_length
        end = self.tokenizer.end_of_text
        if self.spec.data.mask_end_of_text and end is not None:
            mask &= inputs != end
            everyone = self._read(dataset, starts[counted], samples.seq_length)
            loss_tokens -= int((everyone == end).sum())
        return Batch(
            np.ascontiguousarray(inputs),
            np.ascontiguousarray(labels),
            mask,
            loss_tokens,
            self.dropout_seeds(step, len(inputs)),
        )

    def _read(self, dataset: TokenDataset, starts: Numbers, length: int) -> NDArray[np.int32]:
        """Return `length` tokens from each of `starts`: shape of `starts` + (length,), all checked."""
        tokens = np.empty((starts.size, length), dataset.source.dtype)
        positions = starts.ravel().tolist()
        for row, start in zip(tokens, positions, strict=True):
            row[:] = dataset.source.read(start, start + length)
        limit = self.spec.model.vocab_size
        if beyond(limit, tokens).any():  # of all at once: row by row it takes as long as the reading
            for row, start in zip(tokens, positions, strict=True):
                _require_within(limit, row, start, dataset)
        return tokens.astype(np.int32).reshape(*starts.shape, length)


def samples_of(
    spec: RunSpec, dataset: TokenDataset, split: Split, *, whole: bool = False, first: int = 0
) -> Samples:
    """Return the samples of a split of `dataset`, or of all of it; UsageError where there is none.

    `first` is the position of its first token in what it is joined with.
    """
    training, data = spec.training, spec.data
    bounds = split_bounds(dataset.documents, data.split)
    index = SPLITS.index(split)
    if whole:
        bounds, index = (0, dataset.documents, 0, 0), 0
    begin, end = (int(dataset.offsets[bound]) for bound in bounds[index : index + 2])
    shuffle = data.shuffle and split == "training"
    samples = Samples(first + begin, end - begin, training.seq_length, training.seed, shuffle)
    if samples.per_epoch == 0:
        raise UsageError(
            f"the {split} split of {dataset.where} holds {bounds[index + 1] - bounds[index]} of "
            f"{dataset.documents} documents, {end - begin} tokens: less than one sample of "
            f"training.seq_length + 1 = {training.seq_length + 1}",
            where="data.split",
            hint="Give it a larger share or take a larger dataset"
            + ("; evaluation.interval=0 trains without it" if split == "validation" else ""),
        )
    return samples


@contextmanager
def open_data(spec: RunSpec) -> Iterator[RunData]:
    """Open the dataset and tokenizer of `spec`, to be read by one rank: `of_rank` makes it one of several.

    Raises BadInput for a damaged dataset, UsageError for a spec that does not fit it: another
    tokenizer, a vocabulary too small, a split that is needed and empty. Of the tokens, a sample is
    checked here, all of a small dataset: most mistakes show before a run begins.
    """
    if spec.task.name != "language_modeling":
        raise UsageError(f"{spec.task.name} reads no token dataset", where="task.name")
    parts = [open_dataset(path) for path in spec.data.paths or (None,)]
    dataset = parts[0] if len(parts) == 1 else joined(", ".join(spec.data.paths), parts)
    tokenizer = load_tokenizer(_tokenizer_name(spec, dataset))
    held = open_dataset(spec.data.validation_path) if spec.data.validation_path is not None else None
    for one in (dataset, *([held] if held else [])):
        _check_tokenizer(spec, one, tokenizer)
        for start, ids in sampled_blocks(one.source):
            _require_within(spec.model.vocab_size, ids, start, one)
    with ThreadPoolExecutor(1, "gptbridge-data") as thread:
        mixed = tuple(parts) if spec.data.mixture else ()
        data = RunData(dataset, tokenizer, thread, mixed, held, spec=spec)
        data.samples("training")
        if spec.evaluation.interval:
            data.samples("validation")
        yield data


def _tokenizer_name(spec: RunSpec, dataset: TokenDataset) -> str:
    """Return the tokenizer to open; none is assumed: its files go into every checkpoint of the run."""
    name = spec.data.tokenizer or dataset.tokenizer
    if name is None and dataset.tokenizer_identity is None:
        raise UsageError(
            f"{dataset.where} does not say which tokenizer made it",
            where="data.tokenizer",
            allowed="byte, or a folder with the files of a tokenizer",
            hint="Give -o data.tokenizer=FOLDER, or -o data.tokenizer=byte",
        )
    return name or "byte"  # a wrong one is refused by the dataset's identity


def _check_tokenizer(spec: RunSpec, dataset: TokenDataset, tokenizer: Tokenizer) -> None:
    made_by = dataset.tokenizer_identity
    if made_by is not None and made_by != tokenizer.identity:
        raise UsageError(
            f"{spec.data.tokenizer or 'byte'} is tokenizer {tokenizer.identity[:12]}, but {dataset.where} "
            f"was made with tokenizer {made_by[:12]}",
            where="data.tokenizer",
            hint="Name the tokenizer of the dataset, or prepare the text again with this one",
        )
    if dataset.vocab_size is not None and dataset.vocab_size > spec.model.vocab_size:
        raise UsageError(
            f"{spec.model.vocab_size} is below the vocabulary of {dataset.where}",
            where="model.vocab_size",
            allowed=f"{dataset.vocab_size} or more",
        )
    if spec.data.mask_end_of_text and tokenizer.end_of_text is None:
        raise UsageError("the tokenizer has no end-of-text token", where="data.mask_end_of_text")


def _require_within(limit: int, ids: Ids, start: int, dataset: TokenDataset) -> None:
    """Raise BadInput where one of `ids`, which begin at position `start`, is beyond the model."""
    dataset.require_within(
        limit,
        ids,
        start,
        allowed=f"0 to model.vocab_size - 1 = {limit - 1}",
        hint="Set model.vocab_size to the tokenizer's, or check the file: gptbridge data inspect",
    )


def prefetched(
    thread: ThreadPoolExecutor, make: Callable[[int], Batch], numbers: Iterator[int]
) -> Iterator[Batch]:
    """Yield make(n) for each of `numbers`, each made by `thread` while the one before is in use.

    An error in the thread is raised where its batch is asked for.
    """
    ahead = [thread.submit(make, number) for number in islice(numbers, 1)]
    while ahead:
        batch = ahead.pop().result()
        ahead += [thread.submit(make, number) for number in islice(numbers, 1)]
        yield batch
