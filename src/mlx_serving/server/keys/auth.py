"""Who may ask: keys for the API, another for administration."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from hmac import compare_digest
from typing import Annotated, TypeAlias

from fastapi import Depends
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import Request

from mlx_serving.core.serving import ServedModel
from mlx_serving.errors import Forbidden, Unauthenticated
from mlx_serving.server.http.access_log import begin_record, current_record
from mlx_serving.server.keys.metering import require_model
from mlx_serving.server.service import Service

# Both are for the API's description; the headers are read by `_keys_of`, because WebSockets have them as well.
_Bearer: TypeAlias = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
_ApiKey: TypeAlias = Annotated[str | None, Depends(APIKeyHeader(name="x-api-key", auto_error=False))]
Guard: TypeAlias = Callable[[Request, _Bearer, _ApiKey], Awaitable[None]]


def require_api_key(service: Service) -> Guard:
    """A dependency that calls `check_api_key`."""

    async def guard(request: Request, _bearer: _Bearer, _key: _ApiKey) -> None:
        check_api_key(service, request.headers)

    return guard


def require_admin_key(service: Service) -> Guard:
    """A dependency that raises `Forbidden` when no admin key is configured and `Unauthenticated` for a wrong one."""

    async def guard(request: Request, _bearer: _Bearer, _key: _ApiKey) -> None:
        settings = service.settings
        if settings.admin_key is None:
            raise Forbidden("Administration over HTTP is off; set an admin key (server.admin_key) to enable it")
        if not _matches(request.headers, settings.admin_key):
            raise _unauthenticated(request.headers, "admin key")

    return guard


def key_of(headers: Mapping[str, str]) -> str | None:
    """The key that was sent, whatever it is."""
    return next(iter(_keys_of(headers)), None)


def owner_of(headers: Mapping[str, str]) -> str:
    """Who keeps something here: a digest of what was sent as the key, the same for all who send none."""
    return sha256("\n".join(_keys_of(headers)).encode("latin-1")).hexdigest()


def api_key_of(service: Service, headers: Mapping[str, str]) -> str | None:
    """The key by which the request was let in; None when everybody is."""
    return None if service.settings.api_key is None and not service.keys else key_of(headers)


def check_api_key(service: Service, headers: Mapping[str, str]) -> None:
    """Raise `Unauthenticated` unless an API key, or the admin key, was sent or none is set. From then on, what this
    task generates is held to the limits of the key."""
    settings = service.settings
    holder = service.keys.find(_keys_of(headers)) if service.keys else None
    if holder is not None:
        if holder.expired:
            raise Unauthenticated(f"The API key {holder.name} has expired")
        begin_record().holder = holder
        return
    if settings.api_key is None and not service.keys:
        return
    for known in (settings.api_key, settings.admin_key):
        if known is not None and _matches(headers, known):
            return
    raise _unauthenticated(headers, "API key")


def require_allowed(model: ServedModel) -> ServedModel:
    """Raises `Forbidden` for a model that the key of this request is not for."""
    record = current_record()
    if record is not None and record.holder is not None:
        require_model(record.holder.limits, model.name)
    return model


def is_allowed(model: ServedModel) -> bool:
    """Whether the key of this request is for that model."""
    record = current_record()
    return record is None or record.holder is None or record.holder.limits.allows(model.name)


def _keys_of(headers: Mapping[str, str]) -> list[str]:
    """What was sent as a key, in OpenAI's way and in Anthropic's."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    keys = [bearer.strip()] if scheme.lower() == "bearer" else []
    return [key for key in (*keys, headers.get("x-api-key", "")) if key]


def _matches(headers: Mapping[str, str], key: str) -> bool:
    # Headers arrive decoded as latin-1; the comparison takes the same time wherever the difference is.
    return any(compare_digest(sent.encode("latin-1"), key.encode()) for sent in _keys_of(headers))


def _unauthenticated(headers: Mapping[str, str], what: str) -> Unauthenticated:
    if not _keys_of(headers):
        return Unauthenticated(f"An {what} is required: send it as `Authorization: Bearer ...`, or as `x-api-key`")
    return Unauthenticated(f"The {what} is not correct")
