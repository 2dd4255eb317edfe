"""How an engine is, judged by how its workers and models are."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_serving.core.serving import HealthStatus, ServedModel, WorkerHealth

_GONE = ("gave up", "stopped")


def concerns(workers: Sequence[WorkerHealth], models: Sequence[ServedModel], *, circuit_open: bool) -> list[str]:
    """Everything that is not as it should be, in words for the operator."""
    reasons: list[str] = []
    for number, worker in enumerate(workers):
        name = "the worker" if len(workers) == 1 else f"worker {number}"
        if worker.state != "ready":
            reasons.append(f"{name} was given up" if worker.state == "gave up" else f"{name} is {worker.state}")
    if circuit_open:
        reasons.append("the circuit breaker is open")
    reasons += [f"model {model.name} failed to load: {model.error}" for model in models if model.state == "failed"]
    shares = [worker.kv_share for worker in workers if worker.kv_share < 1]
    if shares:
        reasons.append(f"KV caches get {min(shares):.0%} of their memory: a worker has died for want of it")
    return reasons


def status_of(workers: Sequence[WorkerHealth], reasons: Sequence[str]) -> HealthStatus:
    """`unhealthy` when no worker is there or will be, `degraded` when there are `reasons`."""
    if all(worker.state in _GONE for worker in workers):
        return "unhealthy"
    return "degraded" if reasons else "healthy"
