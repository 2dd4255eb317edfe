"""How much of a model to load before others get their turn."""

from __future__ import annotations

from mlx_serving.core.bounds import greater_than

_FIRST_BYTES = 4 << 20  # before anything is known of this machine's speed
_TRUST = 0.5  # in the last slice, against those before it


class LoadPace:
    """Slices that take `budget_s` each, by the speed of those before. Sizes are bytes."""

    def __init__(self, budget_s: float) -> None:
        greater_than("budget_s", budget_s, 0)
        self._budget_s = budget_s
        self._seconds_per_byte: float | None = None

    @property
    def slice_bytes(self) -> int:
        """What the next slice may have, at least 1."""
        if self._seconds_per_byte is None:
            return _FIRST_BYTES
        return max(1, int(self._budget_s / self._seconds_per_byte))

    def note(self, size: int, seconds: float) -> None:
        """A slice of `size` bytes took so long. One of no bytes says nothing."""
        if size <= 0:
            return
        took = max(seconds, 1e-9) / size
        known = self._seconds_per_byte
        self._seconds_per_byte = took if known is None else _TRUST * took + (1 - _TRUST) * known
