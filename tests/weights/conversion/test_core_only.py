"""Every pair of dialects, in an environment that has the core and its dependencies and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.weights.conversion.checkpoints import MODEL, random_weights, write_hugging_face

ROOT = Path(__file__).parents[3]
SITE = Path(sysconfig.get_path("purelib"))
SCRIPT = """
import importlib.util, itertools, json, sys
from pathlib import Path
from gptbridge.weights.conversion.facts import digest
from gptbridge.weights.conversion.convert import Conversion, convert_checkpoint
from gptbridge.weights.opening import Hints, open_checkpoint
from gptbridge.weights.conversion.target import Split
from gptbridge.weights.dialects.registry import dialect_names

def digest_of(path):
    with open_checkpoint(path) as opened:
        return digest(opened)

source, folder = Path(sys.argv[1]), Path(sys.argv[2])
absent = ("torch", "paddle", "mindspore", "transformers", "peft", "google.protobuf")
dialects = dialect_names()
found = [name for name in absent if importlib.util.find_spec(name.split(".")[0])]
digests = {"source": digest_of(source)}
for dialect in dialects:
    convert_checkpoint(Conversion(source, folder / dialect, dialect))
for first, second in itertools.product(dialects, dialects):
    output = folder / f"{first}-{second}"
    convert_checkpoint(Conversion(folder / first, output, second, Hints(first)))
    digests[output.name] = digest_of(output)
for dialect in ("mindspore", "fleetx", "modelscope", "megatron"):
    output = folder / f"{dialect}-2"
    convert_checkpoint(Conversion(source, output, dialect, vocab_size=64, split=Split(2)))
    convert_checkpoint(Conversion(output, folder / f"{dialect}-1", "torch", Hints(dialect), vocab_size=61))
    digests[f"{dialect} split"] = digest_of(folder / f"{dialect}-1")
print(json.dumps({"found": found, "loaded": sorted(set(absent) & set(sys.modules)), "digests": digests}))
"""


def needed(name: str, known: set[str]) -> set[str]:
    """Return the names of the distributions that `name` needs, itself included, without its extras."""
    known.add(name.lower())
    for line in distribution(name).requires or ():
        requirement = Requirement(line)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and requirement.name.lower() not in known:
            needed(requirement.name, known)
    return known


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with this project's wheel; its dependencies are links to the installed ones."""
    folder = tmp_path_factory.mktemp("environment")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=100)
    (wheel,) = folder.glob("*.whl")
    made = folder / "venv"
    venv.create(made, with_pip=False, symlinks=True)
    python = made / "bin" / "python"
    install = [*pip, "--python", str(python), "install", *offline, str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=100)
    (target,) = made.glob("lib/python*/site-packages")
    for name in needed("gptbridge", set()) - {"gptbridge"}:
        for file in distribution(name).files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (target / top).exists():
                (target / top).symlink_to(SITE / top)
    return made


@pytest.mark.timeout(200)
def test_every_pair_converts_without_any_framework(environment: Path, tmp_path: Path) -> None:
    model = MODEL.model_copy(update={"ffn_hidden_size": None})  # 4 x hidden_size: some have no other
    source = write_hugging_face(tmp_path / "source", model, random_weights(model))
    python = environment / "bin" / "python"
    command = [str(python), "-I", "-c", SCRIPT, str(source), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["found"] == result["loaded"] == []
    assert len(result["digests"]) == 1 + 9 * 9 + 4
    assert set(result["digests"].values()) == {result["digests"]["source"]}


def test_the_command_works_there(environment: Path, original: Path, tmp_path: Path) -> None:
    command = [str(environment / "bin" / "gptbridge"), "convert", str(original), str(tmp_path / "out")]
    done = subprocess.run([*command, "--to", "megatron"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "same logits" in done.stdout
