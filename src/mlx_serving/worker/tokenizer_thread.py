"""A thread beside the one that owns MLX: work that needs no arrays is done there, in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from mlx_serving.core.latency import LatencyWindow
from mlx_serving.core.runtime_telemetry import TokenizationTelemetry
from mlx_serving.errors import EngineError, ProtocolError, TokenizerError

T = TypeVar("T")

_HOLD_S = 0.008  # as long as the scheduler waits for others by default


class TokenizerThread:
    """Runs work off the MLX thread, in order, and hands the outcome back to it through `post`.

    Exactly one of `done` and `failed` sees it through: where `done` raises, `failed` is called with the error.
    """

    def __init__(self, post: Callable[[Callable[[], None]], None], name: str = "tokenizer") -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._post = post
        self._quick: deque[bool] = deque()  # of the work that waits, in order
        self._held: list[Callable[[], None]] = []
        self._held_since = 0.0
        self.pending = 0
        """Work whose outcome has not come back yet. Read and written by the MLX thread only."""
        self._calls = 0
        self._latency = LatencyWindow()

    def telemetry(self) -> TokenizationTelemetry:
        return TokenizationTelemetry(self._calls, self.pending, self._latency.read())

    def submit(
        self,
        work: Callable[[], T],
        done: Callable[[T], None],
        failed: Callable[[EngineError], None],
        *,
        quick: bool = False,
    ) -> None:
        """`quick`: it takes so little time that outcomes before it wait for it, so that those who came together begin
        together."""

        def run() -> None:
            self._quick.popleft()
            began = time.monotonic()
            try:
                with tokenizer_errors():
                    result = work()
            except EngineError as error:
                outcome = _bind(failed, error)
            else:
                outcome = guarded(_bind(done, result), failed)
            self._hand_back(_then(_bind(self._settle, time.monotonic() - began), outcome))

        self.pending += 1
        self._quick.append(quick)
        self._executor.submit(run)

    def _hand_back(self, outcome: Callable[[], None]) -> None:
        now = time.monotonic()
        if not self._held:
            self._held_since = now
        self._held.append(outcome)
        if self._quick and self._quick[0] and now - self._held_since < _HOLD_S:
            return
        held, self._held = self._held, []
        for each in held:
            self._post(each)

    def run(self, work: Callable[[], T]) -> Future[T]:
        """For a thread that waits for the outcome itself."""

        def run() -> T:
            self._quick.popleft()
            with tokenizer_errors():
                return work()

        self._quick.append(False)
        return self._executor.submit(run)

    def _settle(self, duration_s: float) -> None:
        self.pending -= 1
        self._calls += 1
        self._latency.add(duration_s)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


@contextmanager
def tokenizer_errors() -> Generator[None]:
    """What a tokenizer raises becomes a `TokenizerError`."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise TokenizerError(f"The tokenizer failed: {type(error).__name__}: {error}") from error


def guarded(action: Callable[[], None], failed: Callable[[EngineError], None]) -> Callable[[], None]:
    def guarded() -> None:
        try:
            action()
        except EngineError as error:
            failed(error)
        except Exception as error:  # noqa: BLE001  a defect in one request must not end every stream
            failed(ProtocolError(f"The request failed inside the worker: {type(error).__name__}: {error}"))

    return guarded


def _then(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def both() -> None:
        first()
        second()

    return both


def _bind(function: Callable[[T], None], value: T) -> Callable[[], None]:
    return lambda: function(value)
