"""Command groups whose commands show help without importing pydantic."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup, TyperOption


class QuickGroup(TyperGroup):
    """A group whose flags are False when they are not given.

    Typer leaves `--help` of a group at None then, and imports pydantic to make a bool of it.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the group's parameters."""
        params: list[Any] = super().get_params(ctx)
        for param in params:
            if isinstance(param, TyperOption) and param.is_flag and param.default is None:
                param.default = False
        return params
