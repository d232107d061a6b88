"""Options that a command only hands on, said once for all commands that have them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

Command = Callable[..., None]
# By the keyword that a function of `gptbridge.api` has for it: the type and the default, a typer.Option.
Options = Mapping[str, tuple[Any, Any]]


def passing(*tables: Options) -> Callable[[Command], Command]:
    """Give a command the options of `tables`, which come in its `**words`, before its own flags."""

    def decorate(command: Command) -> Command:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        passed = [
            inspect.Parameter(name, kind, annotation=annotation, default=option)
            for table in tables
            for name, (annotation, option) in table.items()
        ]
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        flags = [p for p in own if p.default is False]
        parameters = [*(p for p in own if p not in flags), *passed, *flags]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate
