"""Small calls of many callers in few messages: the shell around `core.batch_queue`."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

from mlx_serving.core import batch_queue
from mlx_serving.core.batch_queue import BatchQueuePolicy, BatchQueueStats
from mlx_serving.core.speculation.report import CompatibilityReport
from mlx_serving.engine.worker_client import WorkerClient
from mlx_serving.errors import MessageTooLarge, ProtocolError
from mlx_serving.wire import error_table, methods
from mlx_serving.wire.methods import BatchItem, BatchParams, BatchResult, Method

P = TypeVar("P")
R = TypeVar("R")


class BatchQueue:
    """`timeout_s` is how long a message may take."""

    def __init__(self, policy: BatchQueuePolicy, timeout_s: float) -> None:
        self._policy = policy
        self._tokenize = _Kind(methods.TOKENIZE, methods.BATCH_TOKENIZE, timeout_s)
        self._check_draft = _Kind(methods.CHECK_DRAFT, methods.BATCH_CHECK_DRAFT, timeout_s)

    async def tokenize(self, client: WorkerClient, params: methods.TokenizeParams) -> methods.TokenizeResult:
        """What `client.call(TOKENIZE, params)` gives, and raises."""
        if len(params.text) > self._policy.max_text_chars:
            return await self._tokenize.alone(client, params)
        return await self._tokenize.together(client, params, self._policy)

    async def check_draft(self, client: WorkerClient, params: methods.CheckDraftParams) -> CompatibilityReport:
        """What `client.call(CHECK_DRAFT, params)` gives, and raises."""
        return await self._check_draft.together(client, params, self._policy)

    def reconfigure(self, policy: BatchQueuePolicy) -> None:
        """What waits already goes as it would have gone."""
        self._policy = policy
        self._tokenize.line = self._check_draft.line = None

    def flush(self) -> None:
        """Send at once who waits."""
        for line in (self._tokenize.line, self._check_draft.line):
            if line is not None:
                line.flush()

    def stats(self) -> BatchQueueStats:
        tokenize, check_draft = self._tokenize, self._check_draft
        messages = tokenize.counts.messages + check_draft.counts.messages
        calls = tokenize.counts.calls + check_draft.counts.calls
        return BatchQueueStats(
            tokenize_batches=tokenize.counts.messages,
            tokenize_requests=tokenize.counts.calls,
            tokenize_fallbacks=tokenize.counts.fallbacks,
            tokenize_queue_size=tokenize.waiting,
            check_draft_batches=check_draft.counts.messages,
            check_draft_requests=check_draft.counts.calls,
            check_draft_fallbacks=check_draft.counts.fallbacks,
            check_draft_queue_size=check_draft.waiting,
            average_batch_size=calls / messages if messages else 0.0,
        )

    def reset_stats(self) -> None:
        self._tokenize.counts.reset()
        self._check_draft.counts.reset()


class _Counts:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.messages = self.calls = self.fallbacks = 0

    def note(self, calls: int) -> None:
        self.messages += 1
        self.calls += calls


@dataclass(slots=True, eq=False)
class _Kind(Generic[P, R]):
    """Calls that can share a message: alone they are `one`, together `many`."""

    one: Method[P, R]
    many: Method[BatchParams, BatchResult[R]]
    timeout_s: float
    counts: _Counts = field(default_factory=_Counts)
    line: _Line[P, R] | None = None

    @property
    def waiting(self) -> int:
        return 0 if self.line is None else self.line.waiting

    async def alone(self, client: WorkerClient, params: P) -> R:
        self.counts.note(1)
        return await client.call(self.one, params, timeout_s=self.timeout_s)

    async def together(self, client: WorkerClient, params: P, policy: BatchQueuePolicy) -> R:
        line = self.line
        if line is None or line.client is not client:
            # Who waits in the old line hears there of the end of its worker.
            line = self.line = _Line(client, policy, self)
        return await line.join(params)


@dataclass(frozen=True, slots=True, eq=False)
class _Entry(Generic[P, R]):
    params: P
    raw: msgspec.Raw
    answer: asyncio.Future[R]

    def succeed(self, result: R) -> None:
        if not self.answer.done():
            self.answer.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class _Line(Generic[P, R]):
    """Who waits for one worker."""

    def __init__(self, client: WorkerClient, policy: BatchQueuePolicy, kind: _Kind[P, R]) -> None:
        self.client = client
        self._policy = policy
        self._kind = kind
        self._entries: deque[_Entry[P, R]] = deque()
        self._messages: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        return len(self._entries)

    async def join(self, params: P) -> R:
        loop = asyncio.get_running_loop()
        raw = msgspec.Raw(msgspec.json.encode(params))  # what cannot be encoded fails here, alone
        entry: _Entry[P, R] = _Entry(params, raw, loop.create_future())
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
        self._kind.counts.note(count)
        message = asyncio.create_task(self._exchange(batch), name="batch-queue")
        self._messages.add(message)
        message.add_done_callback(self._answered)

    def _answered(self, message: asyncio.Task[None]) -> None:
        self._messages.discard(message)
        self._send_due()

    async def _exchange(self, batch: list[_Entry[P, R]]) -> None:
        if len(batch) == 1:
            await self._exchange_one(batch[0])
            return
        try:
            params = BatchParams(requests=[entry.raw for entry in batch])
            answer = await self.client.call(self._kind.many, params, timeout_s=self._kind.timeout_s)
            if len(answer.results) != len(batch):
                raise ProtocolError(f"The worker answered {len(answer.results)} of {len(batch)} calls")
        except MessageTooLarge:
            self._kind.counts.fallbacks += 1
            for entry in batch:
                await self._exchange_one(entry)
        except Exception as error:  # noqa: BLE001  it becomes the answer of all who wait for it
            for entry in batch:
                entry.fail(error)
        else:
            for entry, item in zip(batch, answer.results, strict=True):
                _settle(entry, item)

    async def _exchange_one(self, entry: _Entry[P, R]) -> None:
        try:
            entry.succeed(await self.client.call(self._kind.one, entry.params, timeout_s=self._kind.timeout_s))
        except Exception as error:  # noqa: BLE001  it becomes the answer of who waits for it
            entry.fail(error)


def _settle(entry: _Entry[P, R], item: BatchItem[R]) -> None:
    if item.error is not None:
        error = item.error
        entry.fail(error_table.from_wire(error.code, error.type, error.message, error.details))
    elif item.result is not None:
        entry.succeed(item.result)
    else:
        entry.fail(ProtocolError("The worker answered a call with neither result nor error"))
