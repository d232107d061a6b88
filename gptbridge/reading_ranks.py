"""A model that several ranks of this machine hold together, and that this process reads.

Each rank opens the checkpoint itself and reads its slices of it. What is asked of the model goes to every
rank, for they compute it together; rank 0 answers. So whoever reads a model need not know where it is.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import RunFailed
from gptbridge.hookspecs import Launch
from gptbridge.plugins.backend import Backend, load_backend
from gptbridge.plugins.launching import Job, free_port, launched, remove_secrets
from gptbridge.process.line import Array, Line, Listener, connected
from gptbridge.process.records import OwnRecord
from gptbridge.process.signals import unwinding
from gptbridge.session import Decoder, Kind, LanguageModel, Shard
from gptbridge.weights.opening import Hints, Opened, open_checkpoint
from gptbridge.weights.shards import load
from gptbridge_specs import RunSpec

T = TypeVar("T")

_SOCKET = "line"
_LOOK_SECONDS = 0.1
_GONE_SECONDS = 10.0
_SHORT = 70  # of about 100 bytes that the name of a socket may have


@contextmanager
def open_on_ranks(
    spec: RunSpec, backend: Backend, opened: Opened, hang_seconds: float
) -> Iterator[LanguageModel]:
    """Start the ranks of `spec` on this machine and open the checkpoint on them; none is left in the end.

    RunFailed names the rank that failed first, was killed, or hangs for `hang_seconds`; what each of them
    printed is then kept.
    """
    ranks = spec.parallel.world_size
    folder = Path(tempfile.mkdtemp(prefix="gptbridge-", dir=_short_folder()))
    launch = Launch(processes=ranks, logs=folder, port=free_port())
    fields = {
        "backend": backend.name,
        "spec": spec.model_dump(mode="json"),
        "checkpoint": str(opened.path.absolute()),
        "hints": opened.hints.fields(),
    }
    try:
        with (
            unwinding(),
            launched(backend, launch, read_rank, fields, folder, hang_seconds, passing=True) as job,
            closing(RanksModel(job, folder / _SOCKET)) as model,
        ):
            yield model
    except RunFailed:
        raise  # its hint names the folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def read_rank(
    record: OwnRecord, *, backend: str, spec: Any, checkpoint: str, hints: Mapping[str, Any], logs: str
) -> dict[str, Any]:
    """Do what one rank does: open its part of the model, and compute what is asked until nothing is."""
    read_by = RunSpec.model_validate(spec)
    model = load_backend(backend).open_model(read_by)
    remove_secrets(Path(logs))
    with open_checkpoint(Path(checkpoint), Hints.of(hints)) as opened:
        load(model.shards(), opened.merged().read)
    _answer(connected(record.folder / _SOCKET), model, record)
    # Who asked has gone: the thread that watches for that cleans up and ends this rank.
    time.sleep(_GONE_SECONDS)
    return {}


def _short_folder() -> str | None:
    """Return where folders are made whose sockets' names are short enough for the system; None: as usual."""
    return None if len(tempfile.gettempdir()) < _SHORT else "/tmp"


def _answer(line: Line, model: LanguageModel, record: OwnRecord) -> None:
    decoders: dict[int, Decoder] = {}
    line.send({"rank": record.record.rank})
    while True:
        try:
            words, arrays = line.receive()
        except (EOFError, OSError):
            return
        for number in words["dropped"]:
            decoders.pop(number, None)
        name, number = words["call"], words["decoder"]
        if name == "decoder":
            decoders[number], found = model.decoder(*words["sizes"]), None
        else:
            found = getattr(model if number is None else decoders[number], name)(*arrays)
        record.say(step=record.record.step + 1)
        if record.record.rank == 0:
            line.send({}, found)


class RanksModel:
    """A `gptbridge.session.LanguageModel` of which ranks have the parts."""

    def __init__(self, job: Job, path: Path) -> None:
        self.job, self._closed = job, False
        self._decoders = 0
        self._dropped: list[int] = []
        # One after the other, each to its end, also where an interrupt lets nobody wait for it.
        self._calls = ThreadPoolExecutor(1)
        self._lines = self._unless_broken(self._meet, path)

    def token_losses(
        self, inputs: NDArray[np.int32], labels: NDArray[np.int32], at: NDArray[np.int32] | None = None
    ) -> NDArray[np.float32]:
        """Return the negative log likelihood of each of (B, T) `labels`; of (B, K) at positions `at`."""
        return np.asarray(self.call("token_losses", inputs, labels, at))

    def logits(self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Return (B, T, V) logits of (B, T) tokens; (B, K, V) at positions `at` (B, K)."""
        return np.asarray(self.call("logits", tokens, at))

    def decoder(self, rows: int, capacity: int) -> RanksDecoder:
        """Return a decoder of `rows` empty rows of at most `capacity` tokens."""
        self._decoders += 1
        self.call("decoder", decoder=self._decoders, sizes=(rows, capacity))
        decoder = RanksDecoder(self, self._decoders)
        weakref.finalize(decoder, self._dropped.append, self._decoders)
        return decoder

    def shards(self, kind: Kind = "weight") -> list[Shard]:
        """Return nothing: this process holds nothing of the model."""
        return []

    def close(self) -> None:
        """End the ranks."""
        self._closed = True
        self.job.end()
        self._calls.shutdown()

    def call(self, name: str, *arrays: Array | None, decoder: int | None = None, sizes: Any = ()) -> Any:
        """Return what rank 0 answers to a call of the model, or of a decoder of it."""
        dropped, self._dropped[:] = list(self._dropped), []
        words = {"call": name, "decoder": decoder, "sizes": sizes, "dropped": dropped}
        return self._calls.submit(self._unless_broken, self._exchange, words, *arrays).result()

    def _meet(self, path: Path) -> dict[int, Line]:
        with closing(Listener(path, self._look)) as listener:
            lines = [listener.accept() for _ in range(self.job.launch.processes)]
        return {line.receive()[0]["rank"]: line for line in lines}

    def _exchange(self, words: dict[str, Any], *arrays: Array | None) -> Array | None:
        self.job.be_patient()
        for line in self._lines.values():
            line.send(words, *arrays)
        return self._lines[0].receive()[1][0]

    def _unless_broken(self, talk: Callable[..., T], *arguments: Any) -> T:
        """Return what comes of talking to the ranks; RunFailed, which says why, where one has gone."""
        try:
            return talk(*arguments)
        except (EOFError, ConnectionError):
            while True:
                self._look()
                time.sleep(_LOOK_SECONDS)

    def _look(self) -> None:
        """RunFailed once it is clear why a rank does not do what it should."""
        if self._closed or self.job.done():
            raise RunFailed("the ranks have ended")


class RanksDecoder:
    """A `gptbridge.session.Decoder` of a model that ranks hold."""

    def __init__(self, model: RanksModel, number: int) -> None:
        self._model, self._number = model, number

    def feed(self, tokens: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        """Append the first `lengths` (R,) of each row's `tokens` (R, T); return (R, V) logits."""
        return np.asarray(self._model.call("feed", tokens, lengths, decoder=self._number))

    def keep(self, rows: NDArray[np.int32]) -> None:
        """Make row n what row `rows[n]` was; -1 begins an empty row."""
        self._model.call("keep", rows, decoder=self._number)
