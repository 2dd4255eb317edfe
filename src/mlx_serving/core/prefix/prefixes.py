"""What the scheduler asks of those who keep beginnings of sequences, so that none is computed twice."""

from __future__ import annotations

from typing import Protocol


class Prefixes(Protocol):
    """Sequences are named by their ids. Tokens are counted from the beginning, over the prompt and what was generated
    before a preemption."""

    def covered(self, id: str) -> int:  # noqa: A002
        """How many first tokens of a sequence are kept; not all."""
        ...

    def claim(self, id: str) -> int:  # noqa: A002
        """The same, for one that begins with them now: they stay until it has them."""
        ...

    def shared(self, id: str, other: str) -> int:  # noqa: A002
        """How many first tokens two sequences have in common that one could take from the other; not all of either."""
        ...


class NoPrefixes:
    """Nothing is kept."""

    def covered(self, id: str) -> int:  # noqa: A002
        return 0

    def claim(self, id: str) -> int:  # noqa: A002
        return 0

    def shared(self, id: str, other: str) -> int:  # noqa: A002
        return 0


NO_PREFIXES = NoPrefixes()
