"""Coverage-guided fuzzing of one target: `fuzz.py TARGET CORPUS [-max_total_time=SECONDS]`. Needs atheris.

CORPUS is a folder that gets the target's good files, and keeps what the fuzzer finds.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import atheris  # type: ignore[import-untyped,unused-ignore]

PACKAGES = ["gptbridge", "gptbridge_specs"]

with atheris.instrument_imports(include=PACKAGES):
    from tests.fuzz.targets import Room

SECONDS, MEGABYTES = 30, 2048  # what one input may take, frameworks' libraries included
VALUES: list[Any] = json.loads(
    '[null, true, -1, 0, 2147483648, 1e400, 1e30, "", "../a", "\\u001b[2J", "\\ud800", [], {}]'
)


class Mutator:
    """Changes inputs as bytes, and JSON as often in its values.

    Every second one begins at a good file again: all reach the same lines, and libFuzzer keeps one of them.
    """

    def __init__(self, good: Sequence[bytes]) -> None:
        self.good = good

    def __call__(self, content: bytes, longest: int, seed: int) -> bytes:
        """Return at most `longest` bytes."""
        draw = random.Random(seed)
        if draw.random() < 0.5:
            content = draw.choice(self.good)
        changed = _with_other_value(content, draw) if draw.random() < 0.5 else None
        return (changed or bytes(atheris.Mutate(content, longest)))[:longest]


def _with_other_value(content: bytes, draw: random.Random) -> bytes | None:
    """Return JSON with a value removed or replaced, also by what stands elsewhere; None where it is none."""
    try:
        tree = [json.loads(content[1:])]
    except (ValueError, RecursionError):
        return None
    places = list(_places(tree))
    inside, key = draw.choice(places)
    if draw.random() < 0.2 and inside is not tree:
        del inside[key]
    else:
        inside[key] = draw.choice([*VALUES, copy.deepcopy(draw.choice(places)[0])])
    return content[:1] + json.dumps(tree[0]).encode()


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def main(name: str, corpus: str, *options: str) -> None:
    """Fuzz until an option of libFuzzer ends it; exit code 0 where nothing was found."""
    room_folder = Path(f"{corpus}.room")
    shutil.rmtree(room_folder, ignore_errors=True)  # libFuzzer ends the process without a word to Python
    room = Room(name, room_folder)
    Path(corpus).mkdir(parents=True, exist_ok=True)
    for seed, content in room.seeds().items():
        Path(corpus, seed).write_bytes(content)
        with atheris.instrument_imports(include=PACKAGES):  # what is imported where it is used
            room.opens(content)
    limits = (f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}", f"-artifact_prefix={corpus}-")
    atheris.Setup(
        [sys.argv[0], corpus, *limits, *options],
        room.opens,
        custom_mutator=Mutator(list(room.seeds().values())),
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
