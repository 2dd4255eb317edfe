"""The event loop that an engine lives in."""

from __future__ import annotations

import asyncio

from mlx_serving.errors import InvalidRequest


class HomeLoop:
    """Remembers the loop of the first use. What waits in one loop for another one would wait for ever."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def enter(self) -> None:
        """Raises `InvalidRequest` in any other loop."""
        running = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = running
        elif self._loop is not running:
            over = ", which has ended" if self._loop.is_closed() else ""
            raise InvalidRequest(
                f"This engine lives in another event loop{over}: use it within one asyncio.run, or take SyncEngine, "
                f"which any thread may call"
            )
