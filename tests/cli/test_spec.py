"""`gptbridge spec` as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

from tests.command import CODE, COMMAND


def gptbridge(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)


def test_list_names_presets_with_their_size() -> None:
    rows = json.loads(gptbridge("spec", "list", "--json").stdout)
    sizes = {(row["kind"], row["name"]): row["parameters"] for row in rows}
    assert sizes["model", "gpt2-small"] == 124_439_808
    assert ("run", "gpt2-tiny") in sizes
    assert "gpt2-small" in gptbridge("spec", "list").stdout


def test_show_prints_yaml_that_check_accepts(tmp_path: Path) -> None:
    shown = gptbridge("spec", "show", "fleetx-1.3b-dp8", "-o", "training.seed=5")
    file = tmp_path / "spec.yaml"
    file.write_text(shown.stdout)
    checked = gptbridge("spec", "check", str(file))
    assert checked.returncode == 0
    assert "parameters 1,313,722,368" in checked.stdout
    assert json.loads(gptbridge("spec", "check", str(file), "--json").stdout)["devices"] == 8


def test_problems_are_lines_and_exit_code_2() -> None:
    result = gptbridge("spec", "check", "gpt2-tiny", "-o", "training.max_step=1", "-o", "model.hiden=2")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 2
    assert all(line.startswith("error: ") for line in result.stderr.splitlines())
    assert "Did you mean training.max_steps?" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_error_cannot_move_the_cursor(tmp_path: Path) -> None:
    """On a terminal: typer strips colours elsewhere."""
    file = tmp_path / "spec.yaml"
    file.write_text('"mo\\e[31mdel": 1\n')
    script = f"import sys; sys.stderr.isatty = lambda: True; {CODE}"
    command = [sys.executable, "-c", script, "spec", "check", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "mo\\x1b[31mdel: unknown key" in result.stderr
    assert "\x1b" not in result.stderr


def test_import_writes_a_spec_and_says_what_became_of_every_key(tmp_path: Path) -> None:
    written = tmp_path / "spec.yaml"
    arguments = tmp_path / "args.txt"
    arguments.write_text("--model_type gpt --model_name_or_path gpt2-en --output_dir out --max_steps 7\n")
    imported = gptbridge("spec", "import", str(arguments), "--output", str(written))
    assert imported.returncode == 0
    lines = imported.stderr.splitlines()
    assert any(line.startswith("field") and "training.max_steps = 7" in line for line in lines)
    assert lines[-1] == f"next       gptbridge train {written} --run out"
    assert gptbridge("spec", "check", str(written)).returncode == 0
    facts = json.loads(gptbridge("spec", "import", str(arguments), "--json", "-o", "training.seed=3").stdout)
    assert (facts["system"], facts["spec"]["training"]["seed"]) == ("PaddleNLP", 3)
    assert {"kind", "key", "value", "text"} == set(facts["keys"][0])
    again = gptbridge("spec", "import", str(arguments), "--output", str(written))
    assert (again.returncode, "File exists" in again.stderr) == (2, True)


def test_schema_describes_every_field() -> None:
    schema = json.loads(gptbridge("spec", "schema").stdout)
    parts = [schema, *schema["$defs"].values()]
    fields = [field for part in parts for field in part["properties"].values()]
    assert len(fields) > 60
    assert all(field.get("description") for field in fields)
