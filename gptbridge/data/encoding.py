"""Encoding blocks of documents, here or in worker processes, in order."""

from __future__ import annotations

import multiprocessing
import re
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gptbridge.data.blocks import Block, Payload, Problem
from gptbridge.data.tokenizers import Tokenizer, load_tokenizer
from gptbridge.errors import RunFailed

PIECE = 1 << 20  # characters encoded in one go: an encoder's memory is many times its input
RUN_LIMIT = 4 << 20  # characters without a place to cut
_CUT = re.compile(r"[!-~](?=[ \n])")

_NO_CUT = Problem("no space", f"a document may have {RUN_LIMIT >> 20} Mi characters without one")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A block's documents: tokens back to back, their numbers, and what could not be encoded."""

    tokens: NDArray[np.integer[Any]]
    lengths: NDArray[np.int32]
    empty: int
    problems: tuple[tuple[int, Problem], ...]


class Encoder:
    """Turns payloads into tokens of one type, with `append` after each document if it is not None."""

    def __init__(self, tokenizer: Tokenizer, dtype: str, append: int | None) -> None:
        self.settings = (dtype, append)
        self._tokenizer = tokenizer
        self._dtype = np.dtype(dtype)
        self._append = np.array([] if append is None else [append], self._dtype)

    def encode(self, payload: Payload) -> Encoded:
        """Return the tokens of a payload's documents; an empty document is counted and left out."""
        tokens = bytearray()
        lengths: list[int] = []
        problems: list[tuple[int, Problem]] = []
        empty = 0
        for line, text in payload.documents():
            pieces = text if isinstance(text, Problem) else self._pieces(text)
            if isinstance(pieces, Problem):
                problems.append((line, pieces))
                continue
            before = len(tokens)
            for piece in pieces:
                # a copy at once: the encoder's own array keeps kilobytes, whatever it holds
                tokens += self._tokenizer.encode(piece).astype(self._dtype).data
            if len(tokens) == before:
                empty += 1
                continue
            tokens += self._append.data
            lengths.append((len(tokens) - before) // self._dtype.itemsize)
        return Encoded(
            np.frombuffer(tokens, self._dtype), np.array(lengths, np.int32), empty, tuple(problems)
        )

    def _pieces(self, text: str) -> Iterable[str] | Problem:
        if len(text) <= PIECE:
            return (text,)
        pieces = list(_cut(text)) if self._tokenizer.cuts_before_space else [text]
        return _NO_CUT if max(map(len, pieces)) > RUN_LIMIT else pieces


def _cut(text: str) -> Iterator[str]:
    """Cut `text` where a visible ASCII character meets a space or newline, about every PIECE."""
    begin = 0
    while len(text) - begin > PIECE:
        cut = _CUT.search(text, begin + PIECE)
        end = cut.end() if cut else len(text)
        yield text[begin:end]
        begin = end
    yield text[begin:]


def encode_blocks(
    blocks: Iterable[Block], tokenizer_name: str, encoder: Encoder, workers: int
) -> Iterator[tuple[Block, Encoded]]:
    """Yield each block with what became of it, in order, whatever the number of workers."""
    if workers == 1:
        for block in blocks:
            yield block, encoder.encode(block.payload)
        return
    with _WorkerPool(tokenizer_name, encoder, workers) as pool:
        waiting: deque[tuple[Block, Future[Encoded]]] = deque()
        for block in blocks:
            waiting.append((block, pool.submit(block.payload)))
            # two blocks a worker: one in its hands, one ready
            if len(waiting) > 2 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        for block, future in waiting:
            yield block, future.result()


class _WorkerPool:
    """Worker processes, each at the end of a pipe: when this process dies, the pipes close and they end.

    (The workers of a ProcessPoolExecutor would wait for ever after a kill -9.)
    """

    def __init__(self, tokenizer_name: str, encoder: Encoder, workers: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork copies threads' locks
        self._threads = ThreadPoolExecutor(workers)  # one waits at each pipe
        self._idle: SimpleQueue[Connection] = SimpleQueue()
        self._connections: list[Connection] = []
        self._processes = []
        for _ in range(workers):
            here, there = context.Pipe()
            process = context.Process(
                target=_work, args=(there, tokenizer_name, *encoder.settings), daemon=True
            )
            process.start()
            there.close()
            self._processes.append(process)
            self._connections.append(here)
            self._idle.put(here)

    def submit(self, payload: Payload) -> Future[Encoded]:
        """Have an idle worker encode `payload`."""
        return self._threads.submit(self._ask, payload)

    def _ask(self, payload: Payload) -> Encoded:
        connection = self._idle.get()
        try:
            connection.send(payload)
            answer: Encoded = connection.recv()
        except (EOFError, OSError) as error:
            raise RunFailed(
                "a worker process died", hint="Was it killed for memory? Try fewer --workers"
            ) from error
        finally:
            self._idle.put(connection)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join()


def _work(connection: Connection, tokenizer_name: str, dtype: str, append: int | None) -> None:
    """Encode what comes through the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    encoder = Encoder(load_tokenizer(tokenizer_name), dtype, append)
    while True:
        try:
            connection.send(encoder.encode(connection.recv()))
        except (EOFError, BrokenPipeError):
            return
