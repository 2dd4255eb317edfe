"""One stream that several readers follow, each at its own pace and from its beginning."""

from __future__ import annotations

from mlx_serving.core.generation import Delta


class SharedStream:
    """All deltas so far, and where each reader is.

    Whoever joins begins with the first delta. The source is asked for more while somebody has read nearly all there is:
    a slow reader holds up nobody, and a stream that nobody reads comes to a halt. What is kept is the answer so far,
    which `max_tokens` bounds.
    """

    def __init__(self, ahead: int) -> None:
        """`ahead`: deltas that the source may be before its fastest reader, at least 1."""
        self._ahead = ahead
        self._deltas: list[Delta] = []
        self._positions: dict[int, int] = {}
        self._joined = 0
        self._fastest = 0

    def __len__(self) -> int:
        """Readers."""
        return len(self._positions)

    def join(self) -> int:
        """A new reader's number."""
        self._joined += 1
        self._positions[self._joined] = 0
        return self._joined

    def leave(self, reader: int) -> bool:
        """Whether that was the last one."""
        if self._positions.pop(reader, 0) == self._fastest:
            self._fastest = max(self._positions.values(), default=0)
        return not self._positions

    def append(self, delta: Delta) -> None:
        self._deltas.append(delta)

    def next(self, reader: int) -> Delta | None:
        """What comes next for a reader, None when it has all there is."""
        position = self._positions[reader]
        if position == len(self._deltas):
            return None
        self._positions[reader] = position + 1
        self._fastest = max(self._fastest, position + 1)
        return self._deltas[position]

    @property
    def wants_more(self) -> bool:
        return len(self._deltas) - self._fastest < self._ahead
