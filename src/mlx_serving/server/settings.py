"""How the HTTP server behaves."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from mlx_serving.config.schema import Config
from mlx_serving.core.bounds import at_least, greater_than
from mlx_serving.core.response_store import StorePolicy
from mlx_serving.server.keys.ring import KeySettings


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """`api_key` None lets everybody in; `admin_key` None switches the administrative requests off.

    `max_body_bytes` and `body_timeout_s` bound what a client may send and how long it may take to,
    `max_response_bytes` the text it gets; None leaves that to the request.
    `default_model` answers requests that name none; None is the engine's own choice.
    `keepalive_s` is how long a stream may be silent while work goes on; None is for ever.
    `drain_timeout_s` is how long requests have to finish when the server is stopped.
    `keys` says where the API keys with limits of their own are.
    `cors_origins` are the origins whose scripts may call this server; `*` is all of them.
    `tls_cert` and `tls_key` are PEM files; without them, HTTP is not encrypted.
    `request_timeout_s` bounds one generation from admission to its last byte; None is no limit.
    `trusted_paths` are the folders that models may be loaded from on request; None is any.
    `stored_responses` bounds what is kept of /v1/responses; `stored_responses_file` has it from one start to the next.
    """

    api_key: str | None = field(default=None, repr=False)
    admin_key: str | None = field(default=None, repr=False)
    max_body_bytes: int = 16 * 1024**2
    max_response_bytes: int | None = None
    body_timeout_s: float = 30.0
    default_model: str | None = None
    keepalive_s: float | None = 10.0
    request_timeout_s: float | None = None
    drain_timeout_s: float = 30.0
    access_log: bool = True
    keys: KeySettings = field(default_factory=KeySettings)
    cors_origins: tuple[str, ...] = ()
    trusted_paths: tuple[Path, ...] | None = None
    stored_responses: StorePolicy = field(default_factory=StorePolicy)
    stored_responses_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    system_fingerprint: str = field(default_factory=lambda: f"mlx-serving-{version('mlx-serving')}")

    def __post_init__(self) -> None:
        at_least("max_body_bytes", self.max_body_bytes, 1)
        greater_than("body_timeout_s", self.body_timeout_s, 0)
        at_least("drain_timeout_s", self.drain_timeout_s, 0)
        for name in ("keepalive_s", "request_timeout_s"):
            if getattr(self, name) is not None:
                greater_than(name, getattr(self, name), 0)


def settings_of(config: Config) -> ServerSettings:
    """What the configuration says of it."""
    server = config.server
    return ServerSettings(
        api_key=server.api_key.get_secret_value() if server.api_key else None,
        admin_key=server.admin_key.get_secret_value() if server.admin_key else None,
        max_body_bytes=server.max_body_bytes,
        max_response_bytes=server.max_response_bytes,
        default_model=config.models.default,
        keepalive_s=server.keepalive_s,
        request_timeout_s=config.generation.timeout_s,
        drain_timeout_s=server.drain_timeout_s,
        access_log=server.access_log,
        keys=KeySettings(
            file=_path(config.keys.file),
            inline=None if config.keys.inline is None else config.keys.inline.get_secret_value(),
            state_file=_path(config.keys.state_file),
        ),
        stored_responses=config.stored_responses,
        stored_responses_file=_path(config.stored_responses.path),
        cors_origins=tuple((server.cors_origins or "").split()),
        trusted_paths=_paths(config.models.trusted_paths),
        tls_cert=_path(server.tls_cert),
        tls_key=_path(server.tls_key),
    )


def _paths(text: str | None) -> tuple[Path, ...] | None:
    return None if text is None else tuple(Path(part).expanduser() for part in text.split(os.pathsep) if part)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()
