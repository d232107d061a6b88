"""Numbers in files that strangers made."""

from __future__ import annotations

from typing import Any

from gptbridge.errors import BadInput, printable

_LARGEST = 1 << 31


def finite_number(value: Any, name: str, where: object) -> float:
    """Return `value`, the field `name`, if it is a number of any use; BadInput otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise BadInput(f"{name} is {printable(value, 60)}", where=where, allowed="a number")
    return float(value)


def whole_number(value: Any, where: object) -> int:
    """Return `value` if it is a whole number of any use; BadInput otherwise."""
    if type(value) is not int or abs(value) > _LARGEST:
        raise BadInput(f"{printable(value, 40)} is not a whole number of any use", where=where)
    return value
