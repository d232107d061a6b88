"""From files of text to a token dataset: PREFIX.bin, PREFIX.idx, PREFIX.tokenizer and PREFIX.json."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptbridge.data.blocks import Block, read_blocks
from gptbridge.data.encoding import Encoded, Encoder, encode_blocks
from gptbridge.data.indexed_files import dtype_for, write_index
from gptbridge.data.partial import MADE, Done, PartialDataset, is_published
from gptbridge.data.sources import Selection, Source, SourceStream, find_sources
from gptbridge.data.tokenizers import Tokenizer, load_tokenizer
from gptbridge.errors import BadInput, BridgeError, Interrupted, RunFailed, UsageError
from gptbridge.files import INDEX_LIMIT, discard, read_json, write_json
from gptbridge.process.signals import StopRequest

_ENDINGS = ("tokenizer", "bin", "idx", "json")  # PREFIX.json says that the others are whole
_KEEPING = "stopping, and keeping what is done"
COMMIT_TOKENS = 16 << 20  # what a kill may cost
_EMPTY_LIMIT = 1 << 20  # empty and bad documents beyond the tokens: a few bytes unpack to a thousand million
# Bytes read of the sources as they lie on the disk, bytes in all, documents so far.
Progress = Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True)
class TextOptions:
    """What decides the tokens, beside the sources and the tokenizer."""

    append_end_of_text: bool = False
    json_key: str = "text"
    document_separator: str | None = None  # "": a blank line ends a document
    skip_bad: bool = False


def prepare(
    inputs: list[str],
    tokenizer_name: str,
    prefix: str | Path,
    options: TextOptions | None = None,
    *,
    workers: int = 1,
    overwrite: bool = False,
    selection: Selection | None = None,
    on_progress: Progress = lambda consumed, total, documents: None,
    on_problem: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Tokenize `inputs` into the dataset `prefix`; return the content of PREFIX.json.

    The bytes written depend on inputs, tokenizer and options alone. A preparation that was
    interrupted goes on where it was last committed, and one that is whole is left as it is. Raises
    BadInput for a bad document, unless `options.skip_bad`, when `on_problem` gets a line on each (as on what
    was passed over); UsageError when anything else has the name of one of its files, unless `overwrite`.
    """
    found = find_sources(inputs, selection)
    if notice := found.notice():
        on_problem(notice)
    job = _settle(found.sources, tokenizer_name, prefix, options or TextOptions())
    if not overwrite and (made := _made_before(job, prefix, on_problem)):
        return made
    try:
        with job.partial(replace=overwrite) as partial, StopRequest(_KEEPING) as stop:
            if not partial.published:
                encoded = _encoded(job, partial, tokenizer_name, workers)
                _collect(job, encoded, partial, stop, on_progress, on_problem)
            return job.publish(partial)
    except OSError as error:
        raise RunFailed(
            f"cannot write the dataset: {error.strerror}",
            where=error.filename or prefix,
            hint="What is done is kept: run the same command again"
            if job.path("partial").is_dir()
            else "Nothing was written; give another --output",
        ) from error


def _made_before(job: _Job, prefix: str | Path, on_problem: Callable[[str], None]) -> dict[str, Any] | None:
    """Return what was made of the same text before; else see to it that nothing is in the way."""
    if is_published(job.path("partial"), job.plan()):
        return None
    if made := job.made_before():
        with suppress(OSError):
            job.path("partial").rmdir()  # all that a kill may have left
        on_problem(f"{prefix}: was made from the same text before, and is left as it is")
        return made
    job.require_free()
    return None


def _encoded(
    job: _Job, partial: PartialDataset, tokenizer_name: str, workers: int
) -> Iterator[tuple[Block, Encoded]]:
    """Yield the documents after what `partial` has already, encoded."""
    options = job.options
    blocks = read_blocks(
        job.sources,
        partial.done.position,
        json_key=options.json_key,
        separator=options.document_separator,
        strict=not options.skip_bad,
    )
    return encode_blocks(blocks, tokenizer_name, job.encoder(), workers)


def _settle(sources: list[Source], tokenizer_name: str, prefix: str | Path, options: TextOptions) -> _Job:
    """Check all that can be checked before the first byte is read."""
    job = _Job(Path(prefix), sources, load_tokenizer(tokenizer_name), options)
    if str(prefix).endswith("/") or job.prefix.is_dir():
        raise UsageError(
            "this names a folder, the files of the dataset begin with the prefix",
            where=prefix,
            hint=f"Give a name in it, such as --output {job.prefix / 'corpus'}",
        )
    if options.append_end_of_text and job.tokenizer.end_of_text is None:
        raise UsageError("this tokenizer has no end-of-text token to append", where=tokenizer_name)
    outputs = {job.path(ending).resolve() for ending in _ENDINGS}
    if own := next((source.path for source in job.sources if source.path.resolve() in outputs), None):
        raise UsageError("this is an input, and the dataset would replace it", where=own)
    return job


@dataclass(frozen=True, slots=True)
class _Job:
    """One preparation: from which text, by which rules, to which files."""

    prefix: Path
    sources: list[Source]
    tokenizer: Tokenizer
    options: TextOptions

    def path(self, ending: str) -> Path:
        """Return PREFIX.ending."""
        return self.prefix.with_name(f"{self.prefix.name}.{ending}")

    @property
    def dtype(self) -> str:
        """The type in which tokens are stored."""
        return dtype_for(self.tokenizer.vocab_size)

    def encoder(self) -> Encoder:
        """Return the encoder by these rules."""
        end = self.tokenizer.end_of_text if self.options.append_end_of_text else None
        return Encoder(self.tokenizer, self.dtype, end)

    def plan(self) -> dict[str, Any]:
        """Return all that decides the bytes."""
        files = [[str(s.path), s.size, s.path.stat().st_mtime_ns] for s in self.sources]
        return {
            "version": 1,
            "tokenizer": self.tokenizer.identity,
            "options": asdict(self.options),
            "sources": files,
        }

    def partial(self, *, replace: bool) -> PartialDataset:
        """Open PREFIX.partial under the plan; `replace` removes what else is in it."""
        itemsize = np.dtype(self.dtype).itemsize
        return PartialDataset(self.path("partial"), self.plan(), itemsize, replace=replace)

    def require_free(self) -> None:
        """Raise UsageError where one of the files to write is there: it is somebody's."""
        for ending in _ENDINGS:
            if os.path.lexists(self.path(ending)):
                raise UsageError(
                    "exists already, and this dataset would replace it",
                    where=self.path(ending),
                    hint="Give another --output, or add --overwrite to replace it",
                )

    def made_before(self) -> dict[str, Any] | None:
        """Return the content of PREFIX.json where the whole dataset is there, of the text as it is now."""
        with suppress(BridgeError, OSError, KeyError, TypeError, ValueError):  # it is another's, or broken
            content = read_json(self.path("json"), limit=INDEX_LIMIT)
            sizes = [(source["path"], source["bytes"]) for source in content["sources"]]
            whole = self.path("idx").is_file() and self.path("tokenizer").is_dir()
            whole &= self.path("bin").stat().st_size == content["tokens"] * np.dtype(self.dtype).itemsize
            if whole and sizes == [(str(source.path), source.size) for source in self.sources]:
                digests = []
                for source in self.sources:
                    with closing(SourceStream(source)) as stream:
                        digests.append(stream.finish())
                done = Done(
                    tokens=content["tokens"],
                    documents=content["documents"],
                    empty=content["empty_documents"],
                    problems=Counter(content["bad_documents"]),
                    digests=digests,
                )
                return content if self._facts(done) == content else None
        return None

    def publish(self, partial: PartialDataset) -> dict[str, Any]:
        """Write the other files, then give each its name; return the content of PREFIX.json.

        That one says that the dataset is whole, so it comes last.
        """
        made = {ending: partial.folder / f"{MADE}{ending}" for ending in _ENDINGS} | {"bin": partial.tokens}
        if not partial.published:
            discard(made["tokenizer"])
            self.tokenizer.save(made["tokenizer"])
            write_index(made["idx"], self.dtype, partial.lengths)
            write_json(made["json"], self._facts(partial.done))
            partial.mark_whole()
        if made["json"].exists():  # else this one has its name
            discard(self.path("json"))
        partial.publish({made[ending]: self.path(ending) for ending in _ENDINGS})
        content = read_json(self.path("json"), limit=INDEX_LIMIT)
        partial.remove()
        return content

    def _facts(self, done: Done) -> dict[str, Any]:
        return {
            "format": "megatron",
            "dtype": self.dtype,
            "documents": done.documents,
            "tokens": done.tokens,
            "empty_documents": done.empty,
            "bad_documents": dict(sorted(done.problems.items())),
            "tokenizer": {
                "identity": self.tokenizer.identity,
                "vocab_size": self.tokenizer.vocab_size,
                "end_of_text": self.tokenizer.end_of_text,
            },
            "options": asdict(self.options),
            "sources": [
                {"path": str(source.path), "bytes": source.size, "blake2b": digest}
                for source, digest in zip(self.sources, done.digests, strict=True)
            ],
        }


def _collect(
    job: _Job,
    encoded: Iterable[tuple[Block, Encoded]],
    partial: PartialDataset,
    stop: StopRequest,
    on_progress: Progress,
    on_problem: Callable[[str], None],
) -> None:
    """Append what was encoded to `partial`, in order, committing every now and then."""
    total = sum(source.size for source in job.sources)
    committed = partial.done.tokens
    for block, result in encoded:
        for line, problem in result.problems:
            where = f"{job.sources[block.source].path}, line {line}"
            if not job.options.skip_bad:
                raise BadInput(str(problem), where=where, hint="Mend it, or add --skip-bad")
            on_problem(str(BadInput(f"skipped: {problem}", where=where)))
        partial.append(result, block.end)
        _require_content(partial.done, job.sources[block.source])
        if block.digest is not None:
            partial.finish_source(block.digest)
        on_progress(block.consumed, total, partial.done.documents)
        if partial.done.tokens - committed >= COMMIT_TOKENS:
            partial.commit()
            committed = partial.done.tokens
        if stop.received:
            partial.commit()
            raise Interrupted(
                "stopped; what is done is kept: run the same command again", exit_code=stop.exit_code
            )
    partial.commit()
    if not partial.done.documents:
        raise BadInput("no document in the input", where=", ".join(str(s.path) for s in job.sources[:3]))


def _require_content(done: Done, source: Source) -> None:
    """Refuse text that is next to nothing but empty and bad documents."""
    without = done.empty + done.problems.total()
    if without > _EMPTY_LIMIT + done.tokens:
        raise BadInput(
            f"{without} documents that are empty or bad, and {done.tokens} tokens in all",
            where=source.path,
            allowed=f"at most {_EMPTY_LIMIT} such documents more than tokens",
        )
