"""How the HTTP server behaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version

from mlx_serving.core.bounds import at_least, greater_than


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """`api_key` None lets everybody in; `admin_key` None switches the administrative requests off.

    `max_body_bytes` and `body_timeout_s` bound what a client may send and how long it may take to.
    `default_model` answers requests that name none; None is the engine's own choice.
    `keepalive_s` is how long a stream may be silent while work goes on; None is for ever.
    `request_timeout_s` bounds one generation from admission to its last byte; None is no limit.
    """

    api_key: str | None = field(default=None, repr=False)
    admin_key: str | None = field(default=None, repr=False)
    max_body_bytes: int = 4 * 1024**2
    body_timeout_s: float = 30.0
    default_model: str | None = None
    keepalive_s: float | None = 10.0
    request_timeout_s: float | None = None
    access_log: bool = True
    system_fingerprint: str = field(default_factory=lambda: f"mlx-serving-{version('mlx-serving')}")

    def __post_init__(self) -> None:
        at_least("max_body_bytes", self.max_body_bytes, 1)
        greater_than("body_timeout_s", self.body_timeout_s, 0)
        for name in ("keepalive_s", "request_timeout_s"):
            if getattr(self, name) is not None:
                greater_than(name, getattr(self, name), 0)
