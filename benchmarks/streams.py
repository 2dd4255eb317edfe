"""Completions that are watched while they are under way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import msgspec

from mlx_serving.bench.event_stream import EventReader
from mlx_serving.bench.http_client import HttpClient


class Stream:
    """A greedy completion of an OpenAI-compatible server. `arrivals` are the times at which text of it came, in seconds
    of `time.perf_counter`, and `pieces` how many pieces of text came with each.

    What goes wrong ends the benchmark.
    """

    def __init__(
        self, client: HttpClient, model: str, prompt: str, max_tokens: int, extra_body: Mapping[str, object]
    ) -> None:
        self.arrivals: list[float] = []
        self.pieces: list[int] = []
        self._events = EventReader()
        self._changed = asyncio.Event()
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
        request = msgspec.json.encode({**body, **extra_body})
        exchange = client.exchange("POST", "/v1/completions", request, self._on_body)
        self._task = asyncio.create_task(exchange)

    async def reached(self, arrivals: int) -> None:
        """Wait until text has come so many times."""
        while len(self.arrivals) < arrivals:
            self._changed.clear()
            waiting = asyncio.create_task(self._changed.wait())
            await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if self._task.done() and len(self.arrivals) < arrivals:
                raise SystemExit(f"a stream ended after {len(self.arrivals)} arrivals of text: {self._task}")

    async def ended(self) -> None:
        """Wait for the end of the answer."""
        await self._task

    async def leave(self) -> None:
        """Close the connection, whatever is still to come."""
        self._task.cancel()
        await asyncio.wait({self._task})

    def _on_body(self, status: int, data: bytes) -> None:
        now = time.perf_counter()
        if status != 200:
            raise RuntimeError(f"status {status}: {data!r}")
        count = sum(event != b"[DONE]" for event in self._events.feed(data))
        if count:
            self.arrivals.append(now)
            self.pieces.append(count)
            self._changed.set()
