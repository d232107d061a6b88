"""Every command of docs/export.md runs, and its tables say what the code does."""

from __future__ import annotations

import re
import shlex

import pytest

from gptbridge import api
from gptbridge.exporting.formats import FORMATS
from gptbridge_cli import export
from tests.exporting.conftest import PAGE, Artefacts, block, executed


@pytest.mark.timeout(400)
def test_every_command_runs(artefacts: Artefacts) -> None:
    """Those of gptbridge made the artefacts, in one process; then the scripts, and the Python."""
    scripts = [line for line in block("bash") if not line.startswith("gptbridge ")]
    assert (len(block("bash")), len(scripts)) == (7, 2)
    assert artefacts.printed.count("same logits") == 4  # the fifth prints JSON
    assert max(len(line) for line in artefacts.printed.splitlines() if not line.startswith(" ")) <= 120
    for line in scripts:
        python, *words = shlex.split(line)
        assert python == "python"
        assert executed(artefacts.folder, words)
    assert "same logits" in executed(artefacts.folder, ["-c", "\n".join(block("python"))])


def test_the_tables_are_complete() -> None:
    for told in (api.export.__doc__, export.FormatName.__metadata__[0].help):  # type: ignore[attr-defined]
        assert all(re.search(rf"\b{name}\b", str(told)) for name in FORMATS)
    first = re.findall(r"^\| `([\w-]+)` \|.*\| ([^|]*) \|$", PAGE, re.MULTILINE)[: len(FORMATS)]
    assert first == [
        (name, " ".join(f"`{dtype}`" for dtype in form.dtypes)) for name, form in FORMATS.items()
    ]
    section = PAGE.partition("\n## What is refused\n")[2]
    refused = re.findall(r"^\| `([\w-]+)` \| `([\w.]+)` \|", section, re.MULTILINE)
    in_code = {(name, refusal.field) for name, form in FORMATS.items() for refusal in form.refusals}
    assert set(refused) == in_code | {("paddle-inference", "model.layernorm_epsilon")}
