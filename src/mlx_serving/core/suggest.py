"""What somebody probably meant to write."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: str, allowed: Iterable[str]) -> str | None:
    """The name of `allowed` that `given` most resembles, or None when nothing comes close.

    Upper and lower case, dashes and underscores count as the same.
    """
    by_plain = {_plain(name): name for name in allowed}
    close = get_close_matches(_plain(given), by_plain, n=1, cutoff=0.6)
    return by_plain[close[0]] if close else None


def unknown_key_message(given: str, allowed: Iterable[str], what: str = "key") -> str:
    """One sentence for a name that does not exist: with a suggestion if one is close, else with all that do exist."""
    names = sorted(allowed)
    suggestion = did_you_mean(given, names)
    if suggestion is not None:
        return f"unknown {what} {given!r}; did you mean {suggestion!r}?"
    if not names:
        return f"unknown {what} {given!r}; none is allowed here"
    return f"unknown {what} {given!r}; allowed: {', '.join(names)}"


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_")
