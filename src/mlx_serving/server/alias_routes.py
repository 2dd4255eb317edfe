"""Names that are moved from one model to another under load: the operator's right."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request

from mlx_serving.catalog.trusted_paths import require_trusted
from mlx_serving.config.profiles import Profile
from mlx_serving.core.alias_table import AliasView, Target
from mlx_serving.errors import NotFound
from mlx_serving.server.http.body import read_json_object, refuse_parameters
from mlx_serving.server.keys.auth import require_admin_key
from mlx_serving.server.openai.documents import Document
from mlx_serving.server.openapi import body_of, error_responses
from mlx_serving.server.parsing import parse_body
from mlx_serving.server.request_fields import Body
from mlx_serving.server.service import Service

_PROFILE = "What holds under the alias where a request is silent, on top of the profile of the model."


class AliasRequest(Body):
    """Body of PUT /admin/aliases/NAME."""

    model: str = Field(
        min_length=1, description="A name that GET /v1/models lists, or a hub id, local directory or GGUF path."
    )
    revision: str | None = Field(default=None, min_length=1, description="Of a hub id: branch, tag or commit.")
    profile: Profile = Field(default=Profile(), description=_PROFILE)


class TargetDocument(Document):
    """What an alias means, or meant."""

    model: str
    profile: dict[str, object] = Field(description=_PROFILE)
    since: float | None = Field(description="Unix seconds; null for what is configured.")


class AliasDocument(TargetDocument):
    name: str
    source: Literal["set", "configured"] = Field(description="What was set wins over what is configured.")
    configured: TargetDocument | None
    history: list[TargetDocument] = Field(description="What it meant before, latest first.")


class AliasList(Document):
    data: list[AliasDocument]


class RolledBackDocument(Document):
    """`alias` is null when the name means the model of that name again."""

    name: str
    alias: AliasDocument | None


class RemovedDocument(Document):
    name: str
    alias: AliasDocument | None = Field(description="What is configured for the name, and holds again.")


BODIES = (AliasRequest,)


def alias_routes(service: Service) -> APIRouter:
    router = APIRouter(
        prefix="/admin/aliases", tags=["Administration"], dependencies=[Depends(require_admin_key(service))]
    )

    @router.get("", summary="The aliases, and what they meant before", responses=error_responses(401, 403))
    async def aliases() -> AliasList:
        return AliasList(data=[_document(view) for view in service.engine.list_aliases()])

    # Names may have slashes, but this path is not one of an alias.
    @router.api_route("/{name:path}/rollback", methods=["GET", "PUT", "DELETE"], include_in_schema=False)
    async def only_posted(name: str) -> None:
        raise HTTPException(405)

    @router.get("/{name:path}", summary="One alias", responses=error_responses(401, 403, 404))
    async def alias(name: str) -> AliasDocument:
        found = _find(service, name)
        if found is None:
            raise NotFound(f"There is no alias {name!r}", name=name)
        return found

    @router.put(
        "/{name:path}",
        summary="Have a name mean another model; running requests stay with the one they began with",
        openapi_extra=body_of(AliasRequest),
        responses=error_responses(400, 401, 403, 404, 500, 502, 503, 507),
    )
    async def put(name: str, request: Request) -> AliasDocument:
        wanted = parse_body(AliasRequest, await read_json_object(request, service.settings))
        if wanted.model not in {model.name for model in service.engine.served_models()}:
            require_trusted(wanted.model, service.settings.trusted_paths, "model")
        view = await service.engine.set_alias(name, wanted.model, revision=wanted.revision, profile=wanted.profile.core)
        return _document(view)

    @router.delete(
        "/{name:path}",
        summary="Forget what was set; the name means what is configured, if anything is",
        responses=error_responses(400, 401, 403, 404),
    )
    async def delete(name: str) -> RemovedDocument:
        service.engine.remove_alias(name)
        return RemovedDocument(name=name, alias=_find(service, name))

    @router.post(
        "/{name:path}/rollback",
        summary="Have a name mean what it meant before",
        responses=error_responses(400, 401, 403, 404, 500, 502, 503, 507),
    )
    async def rollback(name: str, request: Request) -> RolledBackDocument:
        await refuse_parameters(request, service.settings)
        view = await service.engine.roll_back_alias(name)
        return RolledBackDocument(name=name, alias=None if view is None else _document(view))

    return router


def _find(service: Service, name: str) -> AliasDocument | None:
    return next((_document(view) for view in service.engine.list_aliases() if view.name == name), None)


def _document(view: AliasView) -> AliasDocument:
    return AliasDocument(
        name=view.name,
        model=view.target.model,
        profile=view.target.profile.given(),
        since=view.target.since or None,
        source="set" if view.is_set else "configured",
        configured=None if view.configured is None else _target(view.configured),
        history=[_target(target) for target in view.history],
    )


def _target(target: Target) -> TargetDocument:
    return TargetDocument(model=target.model, profile=target.profile.given(), since=target.since or None)
