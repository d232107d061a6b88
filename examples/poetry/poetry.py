"""Tang and Song poems as documents, and whether lines that a model wrote scan as theirs do.

`python poetry.py poems PACKAGE FOLDER` takes the regular poems of the npm package chinese-poetry: all of
their lines have five characters, or all have seven. It writes `poems.jsonl`, those of Tang and a tenth of
Song's, and `collection.jsonl`, Tang's quatrains, where ModelScope's poetry collection has its poems.
`python poetry.py scan TEXTS.json` counts how many of the lines that `gptbridge generate --json` wrote do.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_STOPS = re.compile("[，。？！；]")  # a line ends at a Chinese comma, full stop, ? or !
_HAN = re.compile("[\u4e00-\u9fff]+")


def lines_of(text: str) -> list[str]:
    """Return the lines of verse, without their punctuation."""
    return [line for line in _STOPS.split(text.replace("\n", "")) if line]


def metre(text: str) -> int | None:
    """Return how many characters each line of a poem has, None where they differ or are no Chinese."""
    lines = lines_of(text)
    lengths = {len(line) for line in lines}
    regular = len(lengths) == 1 and all(_HAN.fullmatch(line) for line in lines)
    return lengths.pop() if regular else None


def poems(paths: list[Path], couplets: range) -> Iterator[str]:
    """Yield the title and the couplets of each regular poem that has so many, a line each."""
    for path in paths:
        for poem in json.loads(path.read_text()):
            lines = poem["paragraphs"]
            if len(lines) in couplets and metre("".join(lines)) in (5, 7):
                yield "\n".join([poem["title"], *lines])


def write(package: Path, folder: Path) -> None:
    """Write the poems, each a record."""
    tang, song = (sorted(package.glob(f"dist/quantangshi/poet.{name}.*.json")) for name in ("tang", "song"))
    for name, field, found in (
        ("poems", "text", poems([*tang, *song[::10]], range(2, 5))),
        ("collection", "text1", poems(tang, range(2, 3))),
    ):
        lines = [json.dumps({field: text}, ensure_ascii=False) + "\n" for text in found]
        (folder / f"{name}.jsonl").write_text("".join(lines))
        print(f"{folder / name}.jsonl: {len(lines):,} poems")


def scan(texts: Path) -> None:
    """Print what was written, and how many of its whole lines have the length that most of them have."""
    scanned, whole = 0, 0
    for result in json.loads(texts.read_text()):
        text = result["prompt"] + result["text"]
        _, _, verse = text.partition("\n")
        lines = lines_of(verse[: max((stop.end() for stop in _STOPS.finditer(verse)), default=0)])
        length, _ = Counter(map(len, lines)).most_common(1)[0] if lines else (0, 0)
        scanned += sum(len(line) == length and length in (5, 7) for line in lines)
        whole += len(lines)
        print(text, end="\n\n")
    print(f"{scanned} of {whole} lines scan: five characters, or seven, as the others of their poem")


if __name__ == "__main__":
    what, source, *rest = sys.argv[1:]
    write(Path(source), Path(rest[0])) if what == "poems" else scan(Path(source))
