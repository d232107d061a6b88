"""From files of text to a token dataset: PREFIX.bin, PREFIX.idx, PREFIX.tokenizer and PREFIX.json."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptbridge.data.blocks import Block, Problem, read_blocks
from gptbridge.data.encoding import Encoded, Encoder, encode_blocks
from gptbridge.data.indexed_files import dtype_for, write_index
from gptbridge.data.partial import Done, PartialDataset
from gptbridge.data.sources import Source, find_sources
from gptbridge.data.tokenizers import Tokenizer, load_tokenizer
from gptbridge.errors import BadInput, Interrupted, RunFailed, UsageError
from gptbridge.training.signals import StopRequest
from gptbridge.weights.json_files import write_json

COMMIT_TOKENS = 16 << 20  # what a kill may cost


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """What decides the tokens, beside the sources and the tokenizer."""

    append_end_of_text: bool = False
    json_key: str = "text"
    document_separator: str | None = None  # "": a blank line ends a document
    skip_bad: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a preparation is: bytes of the sources as they lie on the disk."""

    consumed: int
    total: int
    documents: int
    tokens: int


def prepare(
    inputs: list[str],
    tokenizer_name: str,
    prefix: Path,
    options: TextOptions | None = None,
    *,
    workers: int = 1,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_problem: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Tokenize `inputs` into the dataset `prefix`; return the content of PREFIX.json.

    The bytes written depend on inputs, tokenizer and options alone. A preparation that was
    interrupted goes on where it was last committed. Raises BadInput for a bad document, unless
    `options.skip_bad`, when `on_problem` gets a line on each; UsageError when the dataset exists.
    """
    options = options or TextOptions()
    final = {name: prefix.with_name(f"{prefix.name}.{name}") for name in ("tokenizer", "bin", "idx", "json")}
    if final["json"].exists() and not overwrite:
        raise UsageError(
            "this dataset exists already", where=final["json"], hint="Add --overwrite to replace it"
        )
    tokenizer = load_tokenizer(tokenizer_name)
    if options.append_end_of_text and tokenizer.end_of_text is None:
        raise UsageError("this tokenizer has no end-of-text token to append", where=tokenizer_name)
    sources = find_sources(inputs)
    dtype = dtype_for(tokenizer.vocab_size)
    encoder = Encoder(tokenizer, dtype, tokenizer.end_of_text if options.append_end_of_text else None)
    try:
        partial = PartialDataset(
            prefix.with_name(f"{prefix.name}.partial"),
            _plan(sources, tokenizer, options),
            np.dtype(dtype).itemsize,
        )
        with closing(partial), StopRequest() as stop:
            blocks = read_blocks(
                sources,
                partial.done.position,
                json_key=options.json_key,
                separator=options.document_separator,
            )
            encoded = encode_blocks(blocks, tokenizer_name, encoder, workers)
            _collect(encoded, partial, _Report(sources, options.skip_bad, stop, on_progress, on_problem))
            content = _describe(sources, tokenizer, options, dtype, partial.done)
            _publish(partial, tokenizer, dtype, content, final)
    except BadInput:
        partial.remove()
        raise
    except OSError as error:
        raise RunFailed(
            f"cannot write the dataset: {error.strerror}",
            where=error.filename or prefix,
            hint="What is done is kept: run the same command again",
        ) from error
    return content


@dataclass(frozen=True, slots=True)
class _Report:
    """Who hears of what happens on the way."""

    sources: list[Source]
    skip_bad: bool
    stop: StopRequest
    on_progress: Callable[[Progress], None]
    on_problem: Callable[[str], None]

    def problem(self, source: Source, line: int, problem: Problem) -> None:
        """Refuse a bad document, or tell that it is skipped."""
        where = f"{source.path}, line {line}"
        if not self.skip_bad:
            raise BadInput(str(problem), where=where, hint="Mend it, or add --skip-bad")
        self.on_problem(str(BadInput(f"skipped: {problem}", where=where)))


def _collect(encoded: Iterable[tuple[Block, Encoded]], partial: PartialDataset, report: _Report) -> None:
    """Append what was encoded to `partial`, in order, committing every now and then."""
    total = sum(source.size for source in report.sources)
    committed = partial.done.tokens
    for block, result in encoded:
        for line, problem in result.problems:
            report.problem(report.sources[block.source], line, problem)
        partial.append(result, block.end)
        if block.digest is not None:
            partial.finish_source(block.digest)
        done = partial.done
        report.on_progress(Progress(block.consumed, total, done.documents, done.tokens))
        if done.tokens - committed >= COMMIT_TOKENS:
            partial.commit()
            committed = done.tokens
        if report.stop.received:
            partial.commit()
            raise Interrupted(
                "stopped; what is done is kept: run the same command again", exit_code=report.stop.exit_code
            )
    partial.commit()
    if not partial.done.documents:
        raise BadInput("no document in the input", where=", ".join(str(s.path) for s in report.sources[:3]))


def _plan(sources: list[Source], tokenizer: Tokenizer, options: TextOptions) -> dict[str, Any]:
    """Return what decides the bytes: a preparation is continued only under the same plan."""
    files = [[str(source.path), source.size, source.path.stat().st_mtime_ns] for source in sources]
    return {"version": 1, "tokenizer": tokenizer.identity, "options": asdict(options), "sources": files}


def _describe(
    sources: list[Source], tokenizer: Tokenizer, options: TextOptions, dtype: str, done: Done
) -> dict[str, Any]:
    """Return the content of PREFIX.json."""
    return {
        "format": "megatron",
        "dtype": dtype,
        "documents": done.documents,
        "tokens": done.tokens,
        "empty_documents": done.empty,
        "bad_documents": dict(sorted(done.problems.items())),
        "tokenizer": {
            "identity": tokenizer.identity,
            "vocab_size": tokenizer.vocab_size,
            "end_of_text": tokenizer.end_of_text,
        },
        "options": asdict(options),
        "sources": [
            {"path": str(source.path), "bytes": source.size, "blake2b": digest}
            for source, digest in zip(sources, done.digests, strict=True)
        ],
    }


def _publish(
    partial: PartialDataset, tokenizer: Tokenizer, dtype: str, content: dict[str, Any], final: dict[str, Path]
) -> None:
    """Write the other files, then give each its name; PREFIX.json, which says it is whole, comes last."""
    made = {name: partial.folder / f"dataset.{name}" for name in final} | {"bin": partial.tokens}
    shutil.rmtree(made["tokenizer"], ignore_errors=True)
    tokenizer.save(made["tokenizer"])
    write_index(made["idx"], dtype, partial.lengths)
    write_json(made["json"], content)
    final["json"].unlink(missing_ok=True)
    shutil.rmtree(final["tokenizer"], ignore_errors=True)
    for name, path in final.items():
        made[name].replace(path)
    partial.remove()
