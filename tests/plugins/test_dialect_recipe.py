"""CONTRIBUTING's recipe for a dialect, followed to the letter in a copy of the project."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.command import CODE
from tests.plugins.installing import environment_with
from tests.weights.conversion.checkpoints import MODEL, random_weights, write_hugging_face

ROOT = Path(__file__).parents[2]
_COPIED = ("gptbridge", "specs", "cli", "backends", "docs", "pyproject.toml", "README.md", "LICENSE")
_NAME = "toy"


def steps() -> list[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## Add a dialect\n")[2].partition("\n## ")[0]
    return [" ".join(step.split()) for step in re.findall(r"^\d\. (.*?)(?=^\d\. |^$)", section, re.M | re.S)]


def quoted(step: str, ending: str) -> str:
    (found,) = re.findall(rf"`([^` ]*{re.escape(ending)})`", step)
    return str(found)


@pytest.mark.timeout(200)
def test_one_file_one_line_one_page(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in _COPIED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        project.mkdir(exist_ok=True)
        copy(source, project / name)
    file, line, page = steps()

    example = ROOT / quoted(file, "_dialect.py")
    shutil.copy(example, project / quoted(file, "NAME.py").replace("NAME", _NAME))

    (entry,) = re.findall(r"`(NAME = \"[^`]+)`", line)
    (group,) = re.findall(r"`(\[project\.entry-points\.[^`]+)`", line)
    settings = project / quoted(line, "pyproject.toml")
    content = settings.read_text()
    assert group in content
    settings.write_text(content.replace(group, f"{group}\n{entry.replace('NAME', _NAME)}"))

    (command,) = re.findall(r"`python ([^`]+)`", page)
    marks = "<!-- names: python docs/name_tables.py -->\n<!-- /names -->\n"
    written = project / quoted(page, "NAME.md").replace("NAME", _NAME)
    written.write_text(f"# {_NAME}\n\n{marks}")

    python = environment_with(project, tmp_path / "installed")
    done = python(f"source/{command}")
    assert done.returncode == 0, done.stderr
    made = tmp_path / "installed" / "source" / written.relative_to(project)
    assert "| `h.N.ln_1.bias` | `floor.N.first.shift` | (H) | the same |" in made.read_text()
    source = write_hugging_face(tmp_path / "hf", MODEL, random_weights(MODEL))
    done = python("-c", CODE, "convert", str(source), str(tmp_path / "out"), "--to", _NAME)
    assert done.returncode == 0, done.stderr
    assert "same logits" in done.stdout
