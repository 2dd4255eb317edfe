"""Limits on the numbers of a policy. Each raises a ValueError that names the field, the limit and what was given."""

from __future__ import annotations

import math


def at_least(name: str, value: float, minimum: float) -> None:
    if not _is_finite(value) or value < minimum:
        raise ValueError(f"{name} must be {_finite(value)}at least {minimum}, got {value}")


def greater_than(name: str, value: float, limit: float) -> None:
    if not _is_finite(value) or value <= limit:
        raise ValueError(f"{name} must be {_finite(value)}greater than {limit}, got {value}")


def between(name: str, value: float, low: float, high: float) -> None:
    """Both ends are allowed."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value}")


def _finite(value: float) -> str:
    return "" if _is_finite(value) else "a finite number "


def _is_finite(value: float) -> bool:
    # Integers are compared as they are: one beyond a float's range must not turn into an OverflowError here.
    return isinstance(value, int) or math.isfinite(value)
