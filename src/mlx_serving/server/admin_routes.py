"""What is the operator's right, behind a key of its own: models come and go, the worker is replaced and looked into."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.requests import Request

from mlx_serving.catalog.trusted_paths import require_trusted
from mlx_serving.config.fields import AS_IDLE_TIME, PublicName, Reference
from mlx_serving.core import kv_form
from mlx_serving.core.serving import EngineTelemetry, ReuseStats, ServedModel, ServedModelState
from mlx_serving.core.weight_options import AS_THEY_ARE, WeightOptions
from mlx_serving.errors import InvalidConfig, NotFound
from mlx_serving.server.errors import ConfigRefused
from mlx_serving.server.http.access_log import access_record
from mlx_serving.server.http.body import read_json_object, refuse_parameters
from mlx_serving.server.keys.auth import require_admin_key
from mlx_serving.server.openai.documents import Document, LoadProgressDocument
from mlx_serving.server.openai.routes import progress_document
from mlx_serving.server.openapi import body_of, error_responses
from mlx_serving.server.parsing import parse_body
from mlx_serving.server.reload import Reloaded
from mlx_serving.server.request_fields import Body
from mlx_serving.server.service import Service


class LoadModelRequest(Body):
    """Body of POST /admin/models/load."""

    model: Reference = Field(description="A name that is served, or a hub id, local directory, GGUF path or alias.")
    name: PublicName | None = Field(default=None, description="The name that clients use; made from `model`.")
    revision: str | None = Field(default=None, min_length=1, description="Of a hub id: branch, tag or commit.")
    quantization: str | None = Field(
        default=None,
        description="How the weights are packed as they are read: `4bit`, `8bit-g32`, `mxfp4`, …; `none` leaves them "
        "as they are.",
    )
    adapter: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="Directory of a LoRA adapter in mlx-lm's form, which shares the weights of its model with others.",
    )
    fuse_adapter: bool = Field(default=False, description="Add the adapter to the weights, which are then its own.")
    kv_bits: int | None = Field(default=None, description="Pack the KV caches: 4 or 8 bits a number.")
    kv_group_size: int | None = Field(
        default=None, description="How many numbers share a scale in packed KV caches: 32, 64 (unless given) or 128."
    )
    pin: bool | None = Field(
        default=None, description="Whether it stays in memory whatever others need; null as configured for the name."
    )
    keep_alive: Annotated[float, AS_IDLE_TIME] | None = Field(
        default=None,
        description="How long it stays when nobody uses it: seconds, or a text like `5m`; negative is for ever, null "
        "as configured for the name.",
    )
    replace: bool = Field(
        default=False,
        description="Take over a name that is in use: running requests go on with this model, which must have the same "
        "vocabulary. If it cannot be loaded, the old one stays.",
    )


class UnloadModelRequest(Body):
    """Body of POST /admin/models/unload."""

    model: str = Field(min_length=1, description="A name that GET /v1/models lists, of a model and not an alias.")
    force: bool = Field(default=False, description="Also while it is in use: its streams end.")


class ServedModelDocument(Document):
    name: str
    reference: str
    created: int = Field(description="Unix seconds.")
    state: ServedModelState
    context_length: int | None
    error: str | None
    default: bool
    revision: str | None = None
    pinned: bool = Field(default=False, description="Whether it stays in memory whatever other models need.")
    keep_alive_s: float | None = Field(
        default=None, description="Seconds that it stays when nobody uses it; negative: for ever."
    )
    memory_bytes: int | None = Field(default=None, description="What its weights take; null while it is not loaded.")
    kv_bits: int | None = Field(default=None, description="Bits a number takes in its KV caches; null as computed.")
    in_use: int = Field(default=0, description="Requests that use it now.")
    progress: LoadProgressDocument | None = None
    profile: dict[str, object] = Field(
        default_factory=dict, description="What holds under this name where a request is silent."
    )
    alias_of: str | None = Field(default=None, description="Of an alias: the model that it means now.")


class ServedModelList(Document):
    data: list[ServedModelDocument]


class UnloadedDocument(Document):
    name: str
    unloaded: bool = True


class ClearedDocument(Document):
    answers: int = Field(description="That were kept, and are forgotten.")


class RestartedWorkerDocument(Document):
    pid: int | None
    restarts: int


class RestartedDocument(Document):
    """The worker that is ready now, the first of `workers`; `restarts` counts those before it."""

    pid: int | None
    restarts: int
    workers: list[RestartedWorkerDocument]


class KeptSettingDocument(Document):
    """A setting that only a new start can change."""

    setting: str
    value: object
    wanted: object


class FailedModelDocument(Document):
    model: str
    error: str


class ReloadedDocument(Document):
    """What the configuration changed. Models are named."""

    changed: list[str] = Field(description="Settings that hold now.")
    kept: list[KeptSettingDocument] = Field(description="Settings that need a new start.")
    added: list[str]
    removed: list[str]
    replaced: list[str]
    failed: list[FailedModelDocument] = Field(description="Models of which the old version stays.")
    worker_restarted: bool


def admin_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/admin", tags=["Administration"], dependencies=[Depends(require_admin_key(service))])

    @router.get("/models", summary="The models, and how they are in memory", responses=error_responses(401, 403))
    async def models() -> ServedModelList:
        return ServedModelList(data=[_document(model) for model in service.engine.served_models()])

    @router.post(
        "/models/load",
        summary="Load a model and serve it",
        openapi_extra=body_of(LoadModelRequest),
        responses=error_responses(400, 401, 403, 404, 500, 502, 503, 507),
    )
    async def load(request: Request) -> ServedModelDocument:
        wanted = parse_body(LoadModelRequest, await read_json_object(request, service.settings))
        access_record(request).model = wanted.name or wanted.model
        if wanted.model not in {model.name for model in service.engine.served_models()}:
            require_trusted(wanted.model, service.settings.trusted_paths, "model")
        if wanted.adapter is not None:
            require_trusted(wanted.adapter, service.settings.trusted_paths, "adapter")
        kv = kv_form.of(wanted.kv_bits, wanted.kv_group_size)
        form = WeightOptions(wanted.quantization, wanted.adapter, wanted.fuse_adapter, kv)
        return _document(
            await service.engine.load_served(
                wanted.model,
                name=wanted.name,
                revision=wanted.revision,
                replace=wanted.replace,
                weights=None if wanted.quantization is None and form == AS_THEY_ARE else form,
                pinned=wanted.pin,
                keep_alive_s=wanted.keep_alive,
            )
        )

    @router.post(
        "/models/unload",
        summary="Unload a model",
        openapi_extra=body_of(UnloadModelRequest),
        responses=error_responses(400, 401, 403, 404, 503),
    )
    async def unload(request: Request) -> UnloadedDocument:
        wanted = parse_body(UnloadModelRequest, await read_json_object(request, service.settings))
        access_record(request).model = wanted.model
        await service.engine.unload_served(wanted.model, force=wanted.force)
        return UnloadedDocument(name=wanted.model)

    @router.post(
        "/workers/restart",
        summary="Replace the workers, one after the other; running requests go on in the new ones",
        responses=error_responses(400, 401, 403, 503),
    )
    async def restart(request: Request) -> RestartedDocument:
        await refuse_parameters(request, service.settings)
        await service.engine.restart_workers()
        workers = (await service.engine.health()).workers
        return RestartedDocument(
            pid=workers[0].pid,
            restarts=workers[0].restarts,
            workers=[RestartedWorkerDocument(pid=worker.pid, restarts=worker.restarts) for worker in workers],
        )

    @router.post(
        "/reload",
        summary="Read the configuration again and go on with it, as SIGHUP does",
        responses=error_responses(400, 401, 403, 404),
    )
    async def reload(request: Request) -> ReloadedDocument:
        await refuse_parameters(request, service.settings)
        if service.reloader is None:
            raise NotFound("This server was not started from a configuration that could be read again")
        try:
            return _reloaded(await service.reloader.reload())
        except InvalidConfig as error:
            issues = cast("list[dict[str, object]] | None", error.details.get("issues"))
            raise ConfigRefused(error.message, issues=issues) from None

    @router.get("/cache", summary="What was computed once for several requests", responses=error_responses(401, 403))
    async def reuse() -> ReuseStats:
        return service.engine.reuse()

    @router.post("/cache/clear", summary="Forget the answers that are kept", responses=error_responses(400, 401, 403))
    async def clear_cache(request: Request) -> ClearedDocument:
        await refuse_parameters(request, service.settings)
        return ClearedDocument(answers=await service.engine.clear_responses())

    @router.get(
        "/telemetry",
        summary="Load, work and memory of the engine and its worker",
        responses=error_responses(401, 403),
    )
    async def telemetry() -> EngineTelemetry:
        return await service.engine.telemetry()

    return router


def _reloaded(reloaded: Reloaded) -> ReloadedDocument:
    plan = reloaded.plan
    return ReloadedDocument(
        changed=list(plan.changed),
        kept=[KeptSettingDocument(setting=kept.path, value=kept.value, wanted=kept.wanted) for kept in plan.kept],
        added=[model.name for model in plan.added],
        removed=[model.name for model in plan.removed],
        replaced=[model.name for model in plan.replaced],
        failed=[FailedModelDocument(model=name, error=error.message) for name, error in reloaded.failed.items()],
        worker_restarted=plan.fresh_worker,
    )


def _document(model: ServedModel) -> ServedModelDocument:
    return ServedModelDocument(
        name=model.name,
        reference=model.reference,
        created=model.created,
        state=model.state,
        context_length=model.context_length,
        error=model.error,
        default=model.default,
        revision=model.revision,
        pinned=model.pinned,
        keep_alive_s=model.keep_alive_s,
        memory_bytes=model.memory_bytes,
        kv_bits=model.kv_bits,
        in_use=model.in_use,
        progress=progress_document(model),
        profile=dict(model.profile),
        alias_of=model.alias_of,
    )
