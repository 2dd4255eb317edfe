"""Is it alive, is it ready, how is it."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.responses import Response

from mlx_serving.core.serving import HealthReport, HealthStatus, WorkerHealth
from mlx_serving.server.keys.auth import require_api_key
from mlx_serving.server.openai.documents import Document
from mlx_serving.server.openapi import error_responses
from mlx_serving.server.service import Service


class LiveDocument(Document):
    status: HealthStatus


class ReadyDocument(Document):
    ready: bool
    reason: str | None = Field(default=None, description="Why not.")


class CrashDocument(Document):
    at: float
    cause: str
    exit_code: int | None
    signal: str | None
    finding: str | None
    advice: str | None
    stderr_tail: str


class WorkerDocument(Document):
    state: str
    since: float = Field(description="Unix seconds.")
    pid: int | None
    restarts: int
    kv_share: float = Field(
        description="Part of its memory for KV caches that it uses: below 1 after workers died for want of memory."
    )
    models: list[str]
    active_streams: int
    last_crash: CrashDocument | None


class HealthDocument(Document):
    status: HealthStatus
    reasons: list[str]
    uptime_s: float
    active_streams: int
    loaded_models: list[str]
    draining: bool
    worker: WorkerDocument = Field(description="The first of `workers`.")
    workers: list[WorkerDocument]


def health_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/health", tags=["Health"])

    @router.get(
        "/live", summary="Whether it generates, or will again without help", responses=_unavailable(LiveDocument)
    )
    async def live(response: Response) -> LiveDocument:
        health = await service.engine.health()
        response.status_code = _status(health)
        return LiveDocument(status=health.status)

    @router.get("/ready", summary="Whether to send requests here", responses=_unavailable(ReadyDocument))
    async def ready(response: Response) -> ReadyDocument:
        reason = _not_ready(service)
        response.status_code = 200 if reason is None else 503
        return ReadyDocument(ready=reason is None, reason=reason)

    @router.get(
        "",
        summary="Everything about the worker, its crashes and its models",
        dependencies=[Depends(require_api_key(service))],
        responses=_unavailable(HealthDocument) | error_responses(401),
    )
    async def health(response: Response) -> HealthDocument:
        report = await service.engine.health()
        response.status_code = _status(report)
        return _document(report, draining=service.in_flight.closed)

    return router


def _unavailable(model: type[Document]) -> dict[int | str, dict[str, object]]:
    return {503: {"model": model}}


def _status(health: HealthReport) -> int:
    return 503 if health.status == "unhealthy" else 200


def _not_ready(service: Service) -> str | None:
    if service.in_flight.closed:
        return "the server is shutting down"
    model = service.default_model()
    if model is None:
        return "no default model is served"
    return None if model.state == "ready" else f"the default model {model.name!r} is {model.state}"


def _document(report: HealthReport, *, draining: bool) -> HealthDocument:
    workers = [_worker(worker) for worker in report.workers]
    return HealthDocument(
        status=report.status,
        reasons=list(report.reasons),
        uptime_s=report.uptime_s,
        active_streams=report.active_streams,
        loaded_models=list(report.loaded_models),
        draining=draining,
        worker=workers[0],
        workers=workers,
    )


def _worker(worker: WorkerHealth) -> WorkerDocument:
    crash = worker.last_crash
    return WorkerDocument(
        state=worker.state,
        since=worker.since,
        pid=worker.pid,
        restarts=worker.restarts,
        kv_share=worker.kv_share,
        models=list(worker.models),
        active_streams=worker.active_streams,
        last_crash=None
        if crash is None
        else CrashDocument(
            at=crash.at,
            cause=crash.cause,
            exit_code=crash.exit_code,
            signal=crash.signal,
            finding=crash.finding,
            advice=crash.advice,
            stderr_tail=crash.stderr_tail,
        ),
    )
