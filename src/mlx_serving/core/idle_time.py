"""How long a model may be idle, as people say it: seconds, or a text as Go and Ollama write durations."""

from __future__ import annotations

import math
import re

from mlx_serving.errors import InvalidRequest

FOR_EVER = -1.0

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_TEXT = re.compile(r"-?(?:(?:\d+(?:\.\d+)?)(?:ms|s|m|h|d))+")


def idle_time(given: object, field: str = "keep_alive") -> float:
    """Seconds: `300`, `"300"`, `"5m"`, `"1h30m"`; what is negative is `FOR_EVER`.

    Raises `InvalidRequest`, which names `field`.
    """
    seconds = _seconds(given)
    if seconds is None or not math.isfinite(seconds):
        raise InvalidRequest(
            f"{field} must be a number of seconds or a text like 30s, 5m or 1h30m, negative for ever; got {given!r}",
            field=field,
            given=given if isinstance(given, str | int | float) else str(given),
        )
    return FOR_EVER if seconds < 0 else seconds


def _seconds(given: object) -> float | None:
    if isinstance(given, bool):
        return None
    if isinstance(given, int | float):
        return float(given)
    if not isinstance(given, str):
        return None
    text = given.strip()
    if _TEXT.fullmatch(text):
        parts = [(found[1], found[2]) for found in _PART.finditer(text)]
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
        return -seconds if text.startswith("-") else seconds
    try:
        return float(text)
    except ValueError:
        return None
