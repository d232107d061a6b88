"""The common ground of every part of a spec."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Part(BaseModel):
    """A frozen part of a spec that refuses unknown keys and non-finite numbers."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _booleans_are_no_numbers(cls, values: Any) -> Any:
        """Hand a boolean to a field of another type as text, so that `max_steps: true` is not 1."""
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {
            key: str(value).lower()
            if isinstance(value, bool) and key in fields and fields[key].annotation is not bool
            else value
            for key, value in values.items()
        }
