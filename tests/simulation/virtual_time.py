"""An event loop whose time passes only when nobody has anything to do, and then at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Standstill(Exception):
    """Everybody waits for somebody else, for ever."""


class VirtualTime:
    """Stands in for the module `time`. `ahead_s` is how far the code that runs now is ahead of the others: device work
    is done at once and paid for afterwards."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return self.now + self.ahead_s

    def time(self) -> float:
        return self.monotonic()

    def settle(self) -> float:
        """The seconds that are to be paid for."""
        seconds, self.ahead_s = self.ahead_s, 0.0
        return seconds


class _Pause(selectors.SelectSelector):
    """Waits for no file, but until the next timer."""

    def __init__(self, clock: VirtualTime) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Standstill("Nothing will ever happen again, but somebody waits")
        self._clock.now += max(0.0, timeout)
        return []


class Connectable(Protocol):
    """The parent's end of a virtual pipe."""

    def connect(self, protocol: asyncio.Protocol) -> None: ...


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualTime) -> None:
        super().__init__(_Pause(clock))
        self._now = clock
        self.unhandled: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.unhandled.append(context))

    def time(self) -> float:
        return self._now.now

    def run_for(self, seconds: float) -> None:
        self.run_until_complete(asyncio.sleep(seconds))

    async def create_unix_connection(  # pyright: ignore[reportIncompatibleMethodOverride]  there are no other sockets
        self, protocol_factory: Callable[[], P], path: str | None = None, *, sock: object = None, **_: object
    ) -> tuple[asyncio.Transport, P]:
        protocol = protocol_factory()
        pipe = cast("Connectable", sock)
        pipe.connect(cast("asyncio.Protocol", protocol))
        return cast("asyncio.Transport", pipe), protocol
