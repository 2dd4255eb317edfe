"""The generations being answered, each of which can be ended from outside: by its client's leaving, its deadline, or
the server's stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from starlette.types import Receive

from mlx_serving.errors import Aborted, DeadlineExceeded, EngineClosed, EngineError


class InFlight:
    """Admits generations until it is closed, counts them, and can end them all."""

    def __init__(self) -> None:
        self._running: set[_Interruption] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def __len__(self) -> int:
        return len(self._running)

    def close(self) -> None:
        """Admit nothing more; what is running goes on."""
        self._closed = True

    async def wait_idle(self) -> None:
        """Return when nothing is running."""
        await self._idle.wait()

    def interrupt_all(self, reason: Callable[[str], EngineError]) -> None:
        """End everything that is running: each block raises a `reason` of its own, which is made from its name, where
        it stands."""
        for interruption in tuple(self._running):
            interruption.strike(reason(interruption.name))

    @asynccontextmanager
    async def admit(self, receive: Receive, timeout_s: float | None, name: str = "") -> AsyncGenerator[None]:
        """Run the block as one generation, for a request whose body has been read to its end.

        Raises `EngineClosed` instead of entering once closed. The block is cancelled, and this raises instead:
        `Aborted` when the client disconnects, `DeadlineExceeded` after `timeout_s`, or what `interrupt_all` was given.
        A cancellation from elsewhere passes through.
        """
        if self._closed:
            raise EngineClosed("The server is shutting down and takes no more requests")
        interruption = _Interruption(name)
        self._running.add(interruption)
        self._idle.clear()
        watcher = asyncio.create_task(_strike_on_disconnect(receive, interruption))
        deadline = None if timeout_s is None else _deadline(timeout_s, interruption)
        try:
            yield
        except asyncio.CancelledError:
            interruption.raise_reason()
            raise
        finally:
            watcher.cancel()
            if deadline is not None:
                deadline.cancel()
            self._running.discard(interruption)
            if not self._running:
                self._idle.set()


class _Interruption:
    """Cancels the task that made it, once, and remembers why: the way `asyncio.timeout` does it."""

    __slots__ = ("_cancelling", "_reason", "_task", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._reason: EngineError | None = None

    def strike(self, reason: EngineError) -> None:
        if self._reason is None:
            self._reason = reason
            self._task.cancel()

    def raise_reason(self) -> None:
        """Turn the cancellation into its reason, unless somebody else has cancelled the task as well."""
        if self._reason is not None and self._task.uncancel() <= self._cancelling:
            raise self._reason from None


async def _strike_on_disconnect(receive: Receive, interruption: _Interruption) -> None:
    # An HTTP server cancels nothing by itself when a client leaves: it only answers the next receive() with this.
    while (await receive())["type"] != "http.disconnect":
        pass
    interruption.strike(Aborted("The client closed the connection"))


def _deadline(timeout_s: float, interruption: _Interruption) -> asyncio.TimerHandle:
    error = DeadlineExceeded(f"The request took longer than {timeout_s:g} s", timeout_s=timeout_s)
    return asyncio.get_running_loop().call_later(timeout_s, interruption.strike, error)
