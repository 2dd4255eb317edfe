"""Headers that every answer has: what it is called, how long it took so far, and what its caller may still ask for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from starlette.datastructures import MutableHeaders
from starlette.types import Message

from mlx_serving.core.choices import Usage
from mlx_serving.core.generation import Served
from mlx_serving.core.key_usage import Allowance

# What a client may call its request: nothing that could break a line of a log or a header, and no more than fits.
_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

EXPOSED: Sequence[str] = (
    "openai-processing-ms",
    "retry-after",
    "server-timing",
    "x-cache",
    "x-request-id",
    "x-speculation",
    *(f"x-ratelimit-{fact}-{what}" for what in ("requests", "tokens") for fact in ("limit", "remaining", "reset")),
)
"""What scripts of other origins may read."""


def usable_id(given: str | None) -> str | None:
    """The id that a client gave its request, if it is one that may be repeated."""
    return given if given is not None and _ID.fullmatch(given) else None


def timing(total_s: float, accepted_s: float | None) -> Iterator[tuple[str, str]]:
    """Until now, and until the worker accepted the request: that it waits for its turn after that is not known yet."""
    parts = [] if accepted_s is None else [f"accept;dur={accepted_s * 1000:.1f}"]
    yield "server-timing", ", ".join([*parts, f"total;dur={total_s * 1000:.1f}"])
    yield "openai-processing-ms", str(round(total_s * 1000))


def rates(allowances: Sequence[Allowance]) -> Iterator[tuple[str, str]]:
    """In OpenAI's words."""
    for each in allowances:
        yield f"x-ratelimit-limit-{each.what}", str(each.limit)
        yield f"x-ratelimit-remaining-{each.what}", str(each.remaining)
        yield f"x-ratelimit-reset-{each.what}", _duration(each.reset_s)


def cache(served: Served) -> Iterator[tuple[str, str]]:
    """Whether it was computed for this request, where that is not a matter of course."""
    if served.cache is not None:
        yield "x-cache", served.cache


def speculation(usage: Usage | None) -> Iterator[tuple[str, str]]:
    """How tokens were drafted, or why none were, and what came of it: of an answer that is complete already."""
    if usage is not None and usage.speculation is not None:
        drafted = f"; drafted={usage.drafted_tokens}; accepted={usage.accepted_tokens}"
        yield "x-speculation", usage.speculation + (drafted if usage.drafted_tokens else "")


def add(message: Message, headers: Iterator[tuple[str, str]]) -> None:
    """Add them to the head of a response."""
    present = MutableHeaders(scope=message)
    for name, value in headers:
        present[name] = value
    present.setdefault("x-content-type-options", "nosniff")
    # An answer belongs to who asked, and the next one may be another: nothing between here and there may keep it.
    present.setdefault("cache-control", "no-store")


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `6m0s`, `1.2s`, `20ms`."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{round(rest)}s" if minutes else f"{rest:.3g}s"
