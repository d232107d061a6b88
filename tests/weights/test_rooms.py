"""What a system's checkpoints look like is known in dialects/ and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import gptbridge

ROOT = Path(gptbridge.__file__).parent
_FRAMEWORKS = r"torch|paddle|mindspore"
_SYSTEMS = (
    r"hugging.?face|transformers|peft|paddlenlp|mindformers|fleetx|modelscope|megatron|nanogpt|deepspeed"
)
# A pickle names the classes of what it holds by the module that they are from.
_PICKLED = ("weights/formats/pickles/globals.py", re.compile(r'^    "(megatron|deepspeed)(\.\w+)+": \('))
_ADDRESS = re.compile(r"https?://\S+")
_BRANCH = re.compile(r"(dialect|variant) ==|== *['\"]?(dialect|variant)\b")


def lines(*folders: str) -> Iterator[tuple[str, str]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for line in path.read_text().splitlines():
                yield path.relative_to(ROOT).as_posix(), line


def names_a_system(path: str, line: str) -> bool:
    """Formats are called after the software that made them, so those names are theirs too."""
    if path.startswith("weights/dialects/") or (path == _PICKLED[0] and _PICKLED[1].match(line)):
        return False
    own = _SYSTEMS if path.startswith("weights/formats/") else f"{_SYSTEMS}|{_FRAMEWORKS}"
    return re.search(own, _ADDRESS.sub("", line), re.IGNORECASE) is not None


def test_no_system_is_named_outside_the_dialects() -> None:
    found = [(path, line) for path, line in lines("weights", "checkpoint") if names_a_system(path, line)]
    assert found == []


def test_nothing_branches_on_a_dialect() -> None:
    assert [(path, line) for path, line in lines(".") if _BRANCH.search(line)] == []


@pytest.mark.parametrize(
    ("path", "line", "named"),
    [
        ("weights/conversion/target.py", "# as Megatron does", True),
        ("weights/conversion/target.py", "if framework is paddle", True),
        ("weights/formats/torch_zip.py", "what torch.save writes", False),
        ("weights/formats/torch_zip.py", "Megatron's args", True),
        ("weights/formats/pickles/globals.py", '    "megatron.core.enums": ("ModelType",),', False),
        ("weights/dialects/megatron.py", "megatron", False),
        ("checkpoint/reading.py", "a Hugging Face GPT-2", True),
    ],
)
def test_a_name_would_be_seen(path: str, line: str, named: bool) -> None:
    assert names_a_system(path, line) == named


def test_a_branch_would_be_seen() -> None:
    assert _BRANCH.search('if source.dialect == "torch":')
    assert _BRANCH.search("if layout.variant == 'pipeline'")
