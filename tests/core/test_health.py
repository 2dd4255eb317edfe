from __future__ import annotations

from mlx_serving.core.health import concerns, status_of
from mlx_serving.core.serving import ServedModel, WorkerHealth

READY = WorkerHealth("ready", 0.0)
MODEL = ServedModel("m", "m", 0, "ready")


def test_nothing_is_wrong() -> None:
    assert concerns([READY, READY], [MODEL], circuit_open=False) == []
    assert status_of([READY], []) == "healthy"


def test_everything_is_wrong() -> None:
    workers = [WorkerHealth("gave up", 0.0), WorkerHealth("backing off", 0.0, kv_share=0.5)]
    failed = ServedModel("bad", "bad", 0, "failed", error="no such file")
    reasons = concerns(workers, [MODEL, failed], circuit_open=True)
    assert reasons == [
        "worker 0 was given up",
        "worker 1 is backing off",
        "the circuit breaker is open",
        "model bad failed to load: no such file",
        "KV caches get 50% of their memory: a worker has died for want of it",
    ]
    assert status_of(workers, reasons) == "degraded"


def test_a_single_worker_needs_no_number() -> None:
    assert concerns([WorkerHealth("gave up", 0.0)], [], circuit_open=False) == ["the worker was given up"]


def test_it_is_unhealthy_when_no_worker_will_come_back() -> None:
    gone = [WorkerHealth("gave up", 0.0), WorkerHealth("stopped", 0.0)]
    assert status_of(gone, concerns(gone, [], circuit_open=False)) == "unhealthy"
