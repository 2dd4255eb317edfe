"""How generations ended, in figures."""

from __future__ import annotations

import pytest

from mlx_serving.core.generation import FinishReason
from mlx_serving.errors import DeadlineExceeded, EngineError, GenerationError
from mlx_serving.wire.jsonrpc import rpc_error
from mlx_serving.wire.notifications import Completed, Failed, Row, Stats
from mlx_serving.worker.outcomes import Outcomes


def completed(reason: FinishReason, *, tokens: int = 2, first_s: float = 0.1, total_s: float = 0.5) -> Row:
    return Row("s", [], "", Completed(reason, Stats(3, tokens, 10.0, first_s, total_s)))


def failed(error: EngineError) -> Row:
    return Row("s", [], "", Failed(rpc_error(error)))


def test_nothing_has_ended_at_first() -> None:
    outcomes = Outcomes()
    generation, errors = outcomes.generation(0.0), outcomes.errors()
    assert (generation.calls, generation.total_tokens, generation.latency_ms) == (0, 0, None)
    assert (generation.avg_tokens_per_call, generation.tokens_per_second) == (0.0, 0.0)
    assert (errors.total, errors.timeouts, errors.error_rate) == (0, 0, 0.0)


def test_tokens_count_as_they_are_delivered() -> None:
    outcomes = Outcomes()
    outcomes.note([Row("a", [1, 2], "x"), Row("b", [3], "y")])
    outcomes.note([Row("a", [], "rest")])
    generation = outcomes.generation(0.5)
    assert (generation.calls, generation.total_tokens, generation.tokens_per_second) == (0, 3, 6.0)


def test_latencies_and_averages_are_of_those_that_completed() -> None:
    outcomes = Outcomes()
    outcomes.note([completed(FinishReason.STOP, tokens=2, first_s=0.1, total_s=0.2)])
    outcomes.note([completed(FinishReason.LENGTH, tokens=4, first_s=0.3, total_s=0.4)])
    outcomes.note([completed(FinishReason.ABORT, tokens=100, first_s=9.0, total_s=9.0)])
    generation = outcomes.generation(1.0)
    assert (generation.calls, generation.aborted, generation.avg_tokens_per_call) == (3, 1, 3.0)
    assert generation.latency_ms is not None
    assert generation.time_to_first_token_ms is not None
    assert (generation.latency_ms.max, generation.time_to_first_token_ms.max) == pytest.approx((400, 300))


def test_errors_are_counted_by_whether_time_was_over() -> None:
    outcomes = Outcomes()
    outcomes.note([failed(GenerationError("no")), failed(DeadlineExceeded("late")), completed(FinishReason.STOP)])
    outcomes.note([completed(FinishReason.ABORT)])
    errors = outcomes.errors()
    assert (errors.total, errors.timeouts, errors.error_rate) == (2, 1, 0.5)
    assert outcomes.generation(1.0).calls == 4
