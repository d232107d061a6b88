"""`gptbridge parity`: do the backends train the same model?"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gptbridge.comparing import Parity

COLUMNS = (
    "backend",
    "max |d logits|",
    "loss, rel. d",
    "at step",
    "grad norm, rel. d",
    "tokens/s",
    "last loss",
)


def parity(
    spec: Annotated[str, typer.Argument(help="A preset or a YAML file.")] = "gpt2-tiny",
    backends: Annotated[
        str, typer.Option("--backends", help="Names with commas between.")
    ] = "torch,paddle,mindspore",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps to compare, at the most.")] = 20,
    overrides: Annotated[
        list[str] | None, typer.Option("--override", "-o", metavar="FIELD=VALUE", help="Set one field.")
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", min=0, help="Largest difference of logits and, relative, of losses."),
    ] = 1e-4,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run one spec on several backends, each in its own process, and compare logits and losses.

    Exit code 1 says that a difference is beyond the tolerance.
    """
    from gptbridge import api

    names = [name.strip() for name in backends.split(",") if name.strip()]
    result = api.parity(
        spec, names, steps=steps, tolerance=tolerance, overrides=overrides or (), progress=_show_step
    )
    if sys.stderr.isatty():
        typer.echo("\r\x1b[K", err=True, nl=False)
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2))
    else:
        _print_table(result)
    result.require()


def _show_step(backend: str, step: int, loss: float) -> None:
    if sys.stderr.isatty():
        typer.echo(f"\r\x1b[K{backend}: step {step}, loss {loss:.4f}", err=True, nl=False)


def _print_table(result: Parity) -> None:
    table = [COLUMNS]
    for row in result.rows:
        logits, speed = row.logits_difference, row.tokens_per_second
        cells = (
            row.backend,
            "-" if logits is None else f"{logits:.2e}",
            f"{row.loss_difference:.2e}",
            str(row.loss_step),
            f"{row.grad_norm_difference:.2e}",
            "-" if speed is None else f"{speed:,.0f}",
            f"{row.final_loss:.5f}",
        )
        table.append(cells)
    widths = [max(len(row[n]) for row in table) for n in range(len(COLUMNS))]
    for line in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for note in result.notes:
        typer.echo(f"note: {note}")
    typer.echo(
        f"logits against the {result.logits_against}; losses of {result.steps} steps against "
        f"{result.rows[0].backend}; tolerance {result.tolerance:g}"
    )
