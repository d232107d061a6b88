"""Tang and Song poems as documents, and whether lines that a model wrote scan as theirs do.

`python poetry.py poems PACKAGE OUTPUT.jsonl` takes the regular poems of the npm package chinese-poetry: all
of their lines have five characters, or all have seven. `python poetry.py scan TEXTS.jsonl` counts how many
of the lines that `gptbridge generate --json` wrote do.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_STOPS = re.compile("[\uff0c\u3002\uff1f\uff01\uff1b]")  # a line ends at a Chinese comma, full stop, ? or !
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


def poems(package: Path) -> Iterator[str]:
    """Yield the title and the couplets of each regular poem, a line each: all of Tang, a tenth of Song."""
    tang, song = (sorted(package.glob(f"dist/quantangshi/poet.{name}.*.json")) for name in ("tang", "song"))
    for path in (*tang, *song[::10]):
        for poem in json.loads(path.read_text()):
            couplets = poem["paragraphs"]
            if 2 <= len(couplets) <= 4 and metre("".join(couplets)) in (5, 7):
                yield "\n".join([poem["title"], *couplets])


def write(package: Path, output: Path) -> None:
    """Write the poems, each a document."""
    count = 0
    with output.open("w") as file:
        for text in poems(package):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            count += 1
    print(f"{output}: {count:,} poems")


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
