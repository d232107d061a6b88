"""`gptbridge spec`: list, show, check and import specs; print their JSON Schema."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptbridge_cli.lines import paragraph, say

if TYPE_CHECKING:
    from gptbridge_specs.imports import Imported

app = typer.Typer(no_args_is_help=True)

Overrides = Annotated[
    list[str] | None, typer.Option("--override", "-o", metavar="FIELD=VALUE", help="Set one field.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        "-o",
        metavar="FIELD=VALUE",
        help="Set one field of the spec, or a key of the file, or a variable of the script.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_presets(as_json: AsJson = False) -> None:
    """List the presets and what each one reproduces."""
    from gptbridge.weights.architecture import count_parameters
    from gptbridge_specs.loading import load_model
    from gptbridge_specs.presets import all_presets

    rows = [
        {
            "kind": preset.kind.removesuffix("s"),
            "name": preset.name,
            "parameters": count_parameters(load_model(preset.name)),
            "reproduces": preset.reproduces,
        }
        for preset in all_presets()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        size = f"{int(str(row['parameters'])) / 1e9:.4g}B"
        say(f"{row['kind']:5}  {row['name']:32}  {size:>9}")
        paragraph(str(row["reproduces"]), indent="       ")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A preset or a YAML file.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Print a spec, complete: every field with its value."""
    from gptbridge_specs.loading import dump_yaml, load_named

    spec = load_named(name, overrides or ())
    typer.echo(spec.model_dump_json(indent=2) if as_json else dump_yaml(spec), nl=as_json)


@app.command()
def check(
    file: Annotated[str, typer.Argument(help="A YAML file or a preset.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check a spec; name every problem at once, or say what the run would be."""
    from gptbridge.weights.architecture import count_parameters
    from gptbridge_specs.loading import load_run

    spec = load_run(file, overrides or ())
    facts = {
        "parameters": count_parameters(spec.model),
        "tokens_per_step": spec.tokens_per_step,
        "max_steps": spec.training.max_steps,
        "devices": spec.parallel.world_size,
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    typer.echo(f"{file}: good. " + ", ".join(f"{key.replace('_', ' ')} {n:,}" for key, n in facts.items()))


@app.command()
def fields(
    prefix: Annotated[
        str, typer.Argument(metavar="[SECTION]", help="Only names that begin so: training, model.hidden, ...")
    ] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table for a page.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print every field of a run: what it takes, its default, what it means."""
    from gptbridge_specs.errors import SpecError, suggestion
    from gptbridge_specs.fields import describe_fields, markdown_table
    from gptbridge_specs.run import RunSpec

    rows = [row for row in describe_fields(RunSpec) if row.name.startswith(prefix)]
    if not rows:
        raise SpecError([f"no field begins with {prefix!r}.{suggestion(prefix, RunSpec.model_fields)}"])
    if markdown:
        typer.echo(markdown_table(rows))
        return
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    for row in rows:
        typer.echo(f"{row.name} = {row.default}\n    {row.meaning}\n    {row.takes}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a run, for editors and for reading."""
    from gptbridge_specs.run import RunSpec

    typer.echo(json.dumps(RunSpec.model_json_schema(), indent=2))


@app.command("import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="A PaddleFleetX or MindFormers YAML, ModelScope's configuration.json, a script or list of "
            "arguments of PaddleNLP or Megatron-LM, a PaddleNLP model_config.json."
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", help="Write the spec here.")] = None,
    overrides: Changes = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Training samples: what an epoch is.")] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="Devices that the run had.")] = None,
    vocab_size: Annotated[int | None, typer.Option(min=1, help="Tokens that the tokenizer knows.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a spec of another system's configuration; say what becomes of every key."""
    from gptbridge.errors import UsageError
    from gptbridge_specs.imports import Facts, import_file

    imported = import_file(file, overrides or (), Facts(samples, devices, vocab_size))
    if output is not None:
        try:
            with output.open("x", encoding="utf-8") as written:
                written.write(imported.yaml())
        except OSError as error:
            raise UsageError(f"cannot be written: {error.strerror}", where=output) from error
    elif not as_json:
        typer.echo(imported.yaml(), nl=False)
    _tell(imported, f"gptbridge train {output or 'run.yaml'}", as_json=as_json)


def _tell(imported: Imported, typed: str, *, as_json: bool) -> None:
    """Print what became of every key, and what can be typed now."""
    typed = " ".join([typed, *imported.options])
    if as_json:
        facts = {"system": imported.system, "spec": imported.spec.model_dump(mode="json"), "train": typed}
        typer.echo(json.dumps({**facts, "keys": [asdict(line) for line in imported.lines]}, indent=2))
        return
    for line in imported.lines:
        said = f"{line.key} = {line.value}" if line.value is not None else line.key
        say(f"{line.kind:9}  {said:50}  {line.text}".rstrip(), err=True)
    say(f"next       {typed}", err=True)
