"""`gptbridge backends`: what is installed, what is missing, how to get it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from gptbridge_cli.lines import say


def backends(
    probe: Annotated[
        bool, typer.Option("--probe", help="Import each framework and list its devices.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the backends: ready, not installed or broken, and what to do about it."""
    from dataclasses import asdict

    from gptbridge.plugins.survey import survey

    if as_json:
        typer.echo(json.dumps([asdict(report) for report in survey(probe=probe)], indent=2))
        return
    for report in survey(probe=probe):
        devices = report.hardware if report.devices is None else report.devices
        facts = [
            f"{report.name:<10}",
            f"{report.title:<14}",
            f"{report.state:<13}",
            f"{report.version or '-':<12}",
            ", ".join(devices) or "-",
        ]
        say("  ".join(facts) + (f"  {report.detail}" if report.detail else ""))
