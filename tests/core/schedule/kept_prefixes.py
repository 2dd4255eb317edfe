"""What simulated sequences have in common, and what of it is kept: what `core.prefix.prefixes` describes, naively."""

from __future__ import annotations

from collections.abc import Collection

Text = tuple[object, ...]
"""Tokens that can only be compared."""


class KeptPrefixes:
    """In `exact` models what is kept is of use as a whole only."""

    def __init__(self, exact: Collection[str]) -> None:
        self._exact = exact
        self._texts: dict[str, tuple[str, Text]] = {}  # by id: the model, and what is to be computed
        self._kept: dict[str, set[Text]] = {}
        self.claimed: dict[str, int] = {}

    def open(self, id: str, model: str, text: Text) -> None:  # noqa: A002
        self._texts[id] = model, text

    def grow(self, id: str, length: int) -> None:  # noqa: A002
        """What it has generated is its own."""
        model, text = self._texts[id]
        self._texts[id] = model, (*text, *((id, place) for place in range(len(text), length)))

    def keep(self, id: str, end: int, *, whole: bool) -> None:  # noqa: A002
        model, text = self._texts[id]
        if end and (whole or model not in self._exact):
            self._kept.setdefault(model, set()).add(text[:end])

    def forget(self) -> None:
        """Memory is short."""
        self._kept.clear()

    def covered(self, id: str) -> int:  # noqa: A002
        model, text = self._texts[id]
        found = (
            common(text, kept) for kept in self._kept.get(model, ()) if model not in self._exact or _fits(kept, text)
        )
        return min(max(found, default=0), len(text) - 1)

    def claim(self, id: str) -> int:  # noqa: A002
        self.claimed[id] = self.covered(id)
        return self.claimed[id]

    def shared(self, id: str, other: str) -> int:  # noqa: A002
        (model, text), (others_model, others) = self._texts[id], self._texts[other]
        assert model == others_model
        return min(common(text, others), len(text) - 1, len(others) - 1)


def common(one: Text, other: Text) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _fits(kept: Text, text: Text) -> bool:
    return len(kept) < len(text) and text[: len(kept)] == kept
