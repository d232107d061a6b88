"""Comparisons that prove they can fail: each one is also made with values that must not pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[Any]]

# A wrong value must miss by this many tolerances, or the comparison would be too blunt to notice it.
SHARPNESS = 10


def require(condition: object, message: str) -> None:
    """Fail the test with `message` unless `condition` holds."""
    if not condition:
        raise AssertionError(message)


def require_equal_bits(what: str, actual: Tensors, expected: Tensors) -> None:
    """Fail unless both hold the same names in the same order and the same bits."""
    require(list(actual) == list(expected), f"{what}: names {_difference(actual, expected)}")
    for name, array in expected.items():
        found = actual[name]
        require(found.dtype == array.dtype, f"{what}: {name} is {found.dtype}, not {array.dtype}")
        require(found.shape == array.shape, f"{what}: {name} has shape {found.shape}, not {array.shape}")
        require(found.tobytes() == array.tobytes(), f"{what}: {name} differs: {_worst(found, array)}")


def require_close(
    what: str, actual: Tensors, expected: Tensors, wrong: Mapping[str, Tensors], tolerance: float
) -> None:
    """Fail unless each tensor is within `tolerance` of its expected value, and every wrong one is not.

    Differences are relative to the largest magnitude of the expected tensor. `wrong` names a
    mistake and what it would lead to; a mistake that stays near the tolerance fails the test too.
    """
    require(set(actual) == set(expected), f"{what}: names {_difference(actual, expected)}")
    for name, array in expected.items():
        found = actual[name]
        require(found.shape == array.shape, f"{what}: {name} has shape {found.shape}, not {array.shape}")
        difference = _relative(found, array)
        if not difference <= tolerance:  # also catches NaN
            likely = min(wrong, key=lambda mistake: distance(actual, wrong[mistake]), default=None)
            guess = f" Nearest known mistake: {likely}." if likely and _is_near(actual, wrong[likely]) else ""
            raise AssertionError(
                f"{what}: {name} is off by {difference:.2g} of its largest value (allowed: {tolerance:.0e}): "
                f"{_worst(found, array)}.{guess}"
            )
    for mistake, tensors in wrong.items():
        error = distance(actual, tensors)
        require(
            error > SHARPNESS * tolerance,
            f"{what}: the check cannot tell '{mistake}' from right: that is only {error:.2g} away",
        )


def require_share(what: str, drawn: NDArray[np.bool_], probability: float) -> None:
    """Fail unless the share of True is `probability`, give or take 5 standard deviations of such draws."""
    share = float(np.mean(drawn))
    deviation = (probability * (1 - probability) / drawn.size) ** 0.5
    require(abs(share - probability) < 5 * deviation, f"{what}: {share:.3f}, not {probability:.3f}")


def distance(one: Tensors, other: Tensors) -> float:
    """Return the largest difference of any tensor, relative to that tensor's largest magnitude."""
    if set(one) != set(other):
        return float("inf")
    return max(_relative(one[name], other[name]) for name in one)


def _relative(found: NDArray[Any], expected: NDArray[Any]) -> float:
    if found.shape != expected.shape:
        return float("inf")
    scale = float(np.abs(expected).max(initial=0)) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max(initial=0)) / scale


def _is_near(actual: Tensors, wrong: Tensors) -> bool:
    return distance(actual, wrong) < 1e-2


def _worst(found: NDArray[Any], expected: NDArray[Any]) -> str:
    gap = np.abs(found.astype(np.float64) - expected)
    place = np.unravel_index(int(np.nanargmax(gap)) if not np.isnan(gap).all() else 0, gap.shape)
    at = tuple(int(n) for n in place)
    return f"at {at} it is {found[place]:.9g}, not {expected[place]:.9g}"


def _difference(actual: Tensors, expected: Tensors) -> str:
    absent, extra = sorted(set(expected) - set(actual)), sorted(set(actual) - set(expected))
    return f"absent {absent[:5]}, not expected {extra[:5]}" if absent or extra else "are in another order"
