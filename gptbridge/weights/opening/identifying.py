"""Which dialect a checkpoint is, from the names of its tensors; and its pipeline stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gptbridge.errors import BadInput, UsageError
from gptbridge.weights.canonical.cutting import LetterCutting, Stage
from gptbridge.weights.dialects.dialect import Dialect
from gptbridge.weights.dialects.registry import find_dialect, known_dialects
from gptbridge.weights.formats import WeightFile
from gptbridge.weights.layouts.matching import Match, best_match, require_whole
from gptbridge.weights.opening.discovery import Found
from gptbridge.weights.opening.families import refuse_other_family


@dataclass(frozen=True, slots=True)
class Identified:
    """What the tensors are: by the layout of which dialect, in which stages."""

    dialect: Dialect
    match: Match
    stages: tuple[Stage, ...]
    warnings: tuple[str, ...] = ()  # what is taken for granted, and which dialects could not be asked


def identify(
    found: Found, files: Sequence[WeightFile], *, dialect: str | None, strategy: Path | None, where: Path
) -> Identified:
    """Return what the checkpoint is: by the layouts of the one `dialect`, or of every one if None is known.

    BadInput for tensors that are missing, left over or of no dialect; UsageError for another dialect's.
    """
    known = find_dialect(dialect) if dialect is not None else found.dialect
    if known is not None:
        if dialect is not None and not _fitting([known], files[0]):
            _refuse_other(known, found, files, strategy, where)
        best = _best((known,), found, files, strategy)
        if dialect is not None and not best.match.whole:
            _refuse_other(known, found, files, strategy, where)
        _require_whole(best, found, files[0], where)
        return best
    dialects, broken = known_dialects()
    best = _best(_fitting(dialects, files[0]), found, files, strategy)
    try:
        _require_whole(best, found, files[0], where)
    except BadInput as error:
        if not best.match.natives and broken:
            error.hint = str(broken[0])
        raise
    return replace(best, warnings=(*map(str, broken), *best.warnings))


def _require_whole(best: Identified, found: Found, weights: WeightFile, where: Path) -> None:
    """Refuse what is not wholly understood: as another family, if it says so, else for its tensors."""
    if not best.match.whole:
        refuse_other_family(found.root, weights, best.dialect if best.match.natives else None)
    require_whole(best.match, where)


def _refuse_other(
    named: Dialect, found: Found, files: Sequence[WeightFile], strategy: Path | None, where: Path
) -> None:
    """Refuse a checkpoint that is not of the dialect that the user names, but wholly of another."""
    try:
        other = _best(_fitting(known_dialects().dialects, files[0]), found, files, strategy)
    except BadInput:
        return
    if other.match.whole:
        raise UsageError(
            f"holds {other.dialect.name} ({other.match.variant}), not {named.name}",
            where=where,
            hint=f"Leave out --from {named.name}",
        )


def _fitting(dialects: Sequence[Dialect], weights: WeightFile) -> list[Dialect]:
    """Return the dialects that lie in files of this format."""
    return [dialect for dialect in dialects if not dialect.formats or weights.format in dialect.formats]


def _best(
    dialects: Iterable[Dialect], found: Found, files: Sequence[WeightFile], strategy: Path | None
) -> Identified:
    """Return the first of those matches that understand the most tensors and miss the fewest.

    BadInput of a dialect that does not read this form of its files, where no other dialect's it is.
    """
    plain = tuple(_stages(found, files, strategy, None))
    matches: list[Identified] = []
    refused: list[BadInput] = []
    for dialect in dialects:
        seen = [dialect.seen(file) for file in files] if dialect.seen else files
        own = dialect.seen or dialect.virtual_stage
        stages = tuple(_stages(found, seen, strategy, dialect)) if own else plain
        try:
            layouts = dialect.layouts_for(seen[0])
        except BadInput as error:
            refused.append(error)
            continue
        if not layouts:
            continue
        match = best_match(layouts, [stage.names for stage in stages])
        matches.append(Identified(dialect, match, stages, tuple(_taken(match))))
    best = min(matches, key=lambda each: (-len(each.match.natives), len(each.match.missing)), default=None)
    if refused and (best is None or not best.match.whole):
        raise refused[0]
    if best is None:
        raise BadInput("says of itself that it is another system's", where=files[0].path)
    return best


def _taken(match: Match) -> Iterator[str]:
    if match.layout.zeros:
        names = ", ".join(name.removeprefix("h.{}.") for name in match.layout.zeros)
        yield f"{match.layout.dialect} ({match.variant}) has no {names}: zeros are taken"


def _stages(
    found: Found, files: Sequence[WeightFile], strategy: Path | None, dialect: Dialect | None
) -> list[Stage]:
    """Return the stages in order; of virtual ones, the first of every rank before the second of any."""
    if found.stages is not None:
        return found.stages(files, found.root, strategy)
    runs = [files[start : start + found.tensor] for start in range(0, len(files), found.tensor)]
    by_rank = [(tuple(ranks), _virtual_stages(ranks[0], dialect)) for ranks in runs]
    cutting = LetterCutting(found.tensor, found.root)
    return [
        Stage(ranks, virtual[number], cutting)
        for number in range(max(len(virtual) for _, virtual in by_rank))
        for ranks, virtual in by_rank
        if number < len(virtual)
    ]


def _virtual_stages(weights: WeightFile, dialect: Dialect | None) -> list[tuple[str, ...]]:
    """Return the tensors of each virtual pipeline stage of a rank. What is in none is in the first."""
    if dialect is None or dialect.virtual_stage is None:
        return [tuple(weights.tensors)]
    chunks: dict[int, list[str]] = {0: []}
    for name in weights.tensors:
        chunks.setdefault(dialect.virtual_stage(name), []).append(name)
    return [tuple(chunks[number]) for number in sorted(chunks)]
