"""How generations ended, counted as their rows are sent."""

from __future__ import annotations

from collections.abc import Iterable

from mlx_serving.core.generation import FinishReason
from mlx_serving.core.latency import LatencyWindow
from mlx_serving.core.runtime_telemetry import ErrorTelemetry, GenerationTelemetry
from mlx_serving.errors import DeadlineExceeded
from mlx_serving.wire.notifications import Completed, Failed, Row


class Outcomes:
    def __init__(self) -> None:
        self._tokens = 0
        self._completed = 0
        self._completed_tokens = 0
        self._aborted = 0
        self._failed = 0
        self._timeouts = 0
        self._latency = LatencyWindow()
        self._first_token = LatencyWindow()

    def note(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._tokens += len(row.token_ids)
            if row.end is not None:
                self._note_end(row.end)

    def _note_end(self, end: Completed | Failed) -> None:
        match end:
            case Failed():
                self._failed += 1
                self._timeouts += end.error.code == DeadlineExceeded.rpc_code
            case Completed(FinishReason.ABORT):
                self._aborted += 1
            case Completed():
                self._completed += 1
                self._completed_tokens += end.stats.tokens_generated
                self._latency.add(end.stats.total_time)
                self._first_token.add(end.stats.time_to_first_token)

    @property
    def _calls(self) -> int:
        return self._completed + self._aborted + self._failed

    def generation(self, busy_s: float) -> GenerationTelemetry:
        """`busy_s` is how long the device has worked."""
        return GenerationTelemetry(
            calls=self._calls,
            aborted=self._aborted,
            total_tokens=self._tokens,
            avg_tokens_per_call=self._completed_tokens / self._completed if self._completed else 0.0,
            tokens_per_second=self._tokens / busy_s if busy_s else 0.0,
            latency_ms=self._latency.read(),
            time_to_first_token_ms=self._first_token.read(),
        )

    def errors(self) -> ErrorTelemetry:
        return ErrorTelemetry(
            total=self._failed,
            timeouts=self._timeouts,
            error_rate=self._failed / self._calls if self._calls else 0.0,
        )
