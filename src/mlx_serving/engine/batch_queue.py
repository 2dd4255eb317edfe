"""Small calls of many callers in few messages: the shell around `core.batch_queue`."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

import msgspec

from mlx_serving.core import batch_queue
from mlx_serving.core.batch_queue import BatchQueuePolicy, BatchQueueStats
from mlx_serving.engine.worker_client import WorkerClient
from mlx_serving.errors import MessageTooLarge, ProtocolError
from mlx_serving.wire import error_table, methods


class BatchQueue:
    """`timeout_s` is how long a message may take."""

    def __init__(self, policy: BatchQueuePolicy, timeout_s: float) -> None:
        self._policy = policy
        self._timeout_s = timeout_s
        self._counts = _Counts()
        self._line: _Line | None = None

    async def tokenize(self, client: WorkerClient, params: methods.TokenizeParams) -> methods.TokenizeResult:
        """What `client.call(TOKENIZE, params)` gives, and raises."""
        if len(params.text) > self._policy.max_text_chars:
            self._counts.note(1)
            return await client.call(methods.TOKENIZE, params, timeout_s=self._timeout_s)
        if self._line is None or self._line.client is not client:
            # Who waits in the old line hears there of the end of its worker.
            self._line = _Line(client, self._policy, self._timeout_s, self._counts)
        return await self._line.join(params)

    def reconfigure(self, policy: BatchQueuePolicy) -> None:
        """What waits already goes as it would have gone."""
        self._policy = policy
        self._line = None

    def flush(self) -> None:
        """Send at once who waits."""
        if self._line is not None:
            self._line.flush()

    def stats(self) -> BatchQueueStats:
        counts = self._counts
        return BatchQueueStats(
            tokenize_batches=counts.messages,
            tokenize_requests=counts.calls,
            tokenize_fallbacks=counts.fallbacks,
            tokenize_queue_size=0 if self._line is None else self._line.waiting,
            average_batch_size=counts.calls / counts.messages if counts.messages else 0.0,
        )

    def reset_stats(self) -> None:
        self._counts.reset()


class _Counts:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.messages = self.calls = self.fallbacks = 0

    def note(self, calls: int) -> None:
        self.messages += 1
        self.calls += calls


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    params: methods.TokenizeParams
    raw: msgspec.Raw
    answer: asyncio.Future[methods.TokenizeResult]

    def succeed(self, result: methods.TokenizeResult) -> None:
        if not self.answer.done():
            self.answer.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class _Line:
    """Who waits for one worker."""

    def __init__(self, client: WorkerClient, policy: BatchQueuePolicy, timeout_s: float, counts: _Counts) -> None:
        self.client = client
        self._policy = policy
        self._timeout_s = timeout_s
        self._counts = counts
        self._entries: deque[_Entry] = deque()
        self._messages: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        return len(self._entries)

    async def join(self, params: methods.TokenizeParams) -> methods.TokenizeResult:
        loop = asyncio.get_running_loop()
        raw = msgspec.Raw(msgspec.json.encode(params))  # what cannot be encoded fails here, alone
        entry = _Entry(params, raw, loop.create_future())
        self._entries.append(entry)
        if len(self._entries) >= self._policy.max_batch_size:
            self._send_due()
        elif len(self._entries) == 1:
            loop.call_soon(self._send_due)  # after all that run in this turn
        try:
            return await entry.answer
        except asyncio.CancelledError:
            if entry in self._entries:
                self._entries.remove(entry)
            raise

    def flush(self) -> None:
        while self._entries:
            self._send(min(len(self._entries), self._policy.max_batch_size))

    def _send_due(self) -> None:
        while count := batch_queue.calls_to_send(len(self._entries), len(self._messages), self._policy):
            self._send(count)

    def _send(self, count: int) -> None:
        batch = [self._entries.popleft() for _ in range(count)]
        self._counts.note(count)
        message = asyncio.create_task(self._exchange(batch), name="batch-queue")
        self._messages.add(message)
        message.add_done_callback(self._answered)

    def _answered(self, message: asyncio.Task[None]) -> None:
        self._messages.discard(message)
        self._send_due()

    async def _exchange(self, batch: list[_Entry]) -> None:
        if len(batch) == 1:
            await self._exchange_one(batch[0])
            return
        try:
            params = methods.BatchTokenizeParams(requests=[entry.raw for entry in batch])
            answer = await self.client.call(methods.BATCH_TOKENIZE, params, timeout_s=self._timeout_s)
            if len(answer.results) != len(batch):
                raise ProtocolError(f"The worker answered {len(answer.results)} of {len(batch)} calls")
        except MessageTooLarge:
            self._counts.fallbacks += 1
            for entry in batch:
                await self._exchange_one(entry)
        except Exception as error:  # noqa: BLE001  it becomes the answer of all who wait for it
            for entry in batch:
                entry.fail(error)
        else:
            for entry, item in zip(batch, answer.results, strict=True):
                _settle(entry, item)

    async def _exchange_one(self, entry: _Entry) -> None:
        try:
            entry.succeed(await self.client.call(methods.TOKENIZE, entry.params, timeout_s=self._timeout_s))
        except Exception as error:  # noqa: BLE001  it becomes the answer of who waits for it
            entry.fail(error)


def _settle(entry: _Entry, item: methods.BatchTokenizeItem) -> None:
    if item.error is not None:
        error = item.error
        entry.fail(error_table.from_wire(error.code, error.type, error.message, error.details))
    elif item.result is not None:
        entry.succeed(item.result)
    else:
        entry.fail(ProtocolError("The worker answered a call with neither result nor error"))
