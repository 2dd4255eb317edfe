"""Who may ask: one key for the API, another for administration."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hmac import compare_digest
from typing import Annotated, TypeAlias

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import Request

from mlx_serving.errors import Forbidden, Unauthenticated
from mlx_serving.server.service import Service
from mlx_serving.server.settings import ServerSettings

_Credentials: TypeAlias = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
Guard: TypeAlias = Callable[[_Credentials], Awaitable[None]]


def require_api_key(service: Service) -> Guard:
    """A dependency that raises `Unauthenticated` unless the API key, or the admin key, was sent or none is set."""

    async def guard(credentials: _Credentials) -> None:
        settings = service.settings
        if settings.api_key is None or _matches(credentials, settings.api_key):
            return
        if settings.admin_key is not None and _matches(credentials, settings.admin_key):
            return
        raise _unauthenticated(credentials, "API key")

    return guard


def require_admin_key(service: Service) -> Guard:
    """A dependency that raises `Forbidden` when no admin key is configured and `Unauthenticated` for a wrong one."""

    async def guard(credentials: _Credentials) -> None:
        settings = service.settings
        if settings.admin_key is None:
            raise Forbidden("Administration over HTTP is off; set an admin key (server.admin_key) to enable it")
        if not _matches(credentials, settings.admin_key):
            raise _unauthenticated(credentials, "admin key")

    return guard


def bearer_of(request: Request) -> str | None:
    """The key that was sent, whatever it is."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key else None


def api_key_of(request: Request, settings: ServerSettings) -> str | None:
    """The key by which the request was let in; None when everybody is."""
    return None if settings.api_key is None else bearer_of(request)


def _matches(credentials: HTTPAuthorizationCredentials | None, key: str) -> bool:
    # Headers arrive decoded as latin-1; the comparison takes the same time wherever the difference is.
    return credentials is not None and compare_digest(credentials.credentials.encode("latin-1"), key.encode())


def _unauthenticated(credentials: HTTPAuthorizationCredentials | None, what: str) -> Unauthenticated:
    if credentials is None:
        return Unauthenticated(f"An {what} is required: send it as `Authorization: Bearer ...`")
    return Unauthenticated(f"The {what} is not correct")
