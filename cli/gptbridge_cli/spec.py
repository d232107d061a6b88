"""`gptbridge spec`: list, show and check specs; print their JSON Schema."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from gptbridge_cli.lines import paragraph, say

app = typer.Typer(no_args_is_help=True)

Overrides = Annotated[
    list[str] | None, typer.Option("--override", "-o", metavar="FIELD=VALUE", help="Set one field.")
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
