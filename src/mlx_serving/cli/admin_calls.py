"""Calls of the administrative routes of a server that runs."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import msgspec

from mlx_serving.cli.config_arguments import add_config_arguments, load_from_arguments
from mlx_serving.errors import EngineError, InvalidRequest

if TYPE_CHECKING:
    from mlx_serving.bench.http_client import HttpClient
    from mlx_serving.cli.progress import ShowLoad

_WATCH_INTERVAL_S = 0.2
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  addresses that are listened on, not called


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Which server `call_server` is to call."""
    parser.add_argument("--url", metavar="URL", help="of the server (default: the configured one)")
    add_config_arguments(parser)


def call_server(
    args: argparse.Namespace, method: str, path: str, body: object = None, show: ShowLoad | None = None
) -> dict[str, Any]:
    """What the server answers. Until it does, `show` is told how far the loads of its models are. Raises `EngineError`
    with what it says is wrong, or when there is none."""
    server = load_from_arguments(args, []).config.server
    host = _EVERYWHERE.get(server.host, server.host)
    scheme = "http" if server.tls_cert is None else "https"
    configured = f"{scheme}://{f'[{host}]' if ':' in host else host}:{server.port}"
    url = configured if args.url is None else _origin(args.url)
    key = None if server.admin_key is None else server.admin_key.get_secret_value()
    content = b"" if body is None else json.dumps(body).encode()
    return asyncio.run(_exchange(url, key, method, path, content, show))


def _origin(text: str) -> str:
    """Raises `InvalidRequest` for what is not the address of a server."""
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is no number, or too large
        sound = False
        parts = urlsplit("")
    if not sound or parts.path.strip("/") or parts.query or parts.fragment:
        raise InvalidRequest(f"--url must be http(s)://HOST:PORT without a path, got {text!r}", field="url", given=text)
    return text.rstrip("/")


async def _exchange(
    url: str, key: str | None, method: str, path: str, body: bytes, show: ShowLoad | None
) -> dict[str, Any]:
    from mlx_serving.bench.http_client import ConnectionFailed, HttpClient

    received = bytearray()
    client = HttpClient(url, {} if key is None else {"authorization": f"Bearer {key}"})
    watching = None if show is None else asyncio.create_task(_watch(client, show))
    try:
        status = await client.exchange(method, path, body, lambda _, data: received.extend(data))
    except (ConnectionFailed, OSError) as error:
        raise EngineError(f"There is no server at {url}: {error}") from None
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.wait((watching,))
        client.close()
    try:
        answer = json.loads(received)
    except ValueError:
        raise EngineError(f"{url} is no server of mlx-serving: it answered {method} {path} with {status}") from None
    if status >= 400:
        try:
            message = str(answer["error"]["message"])
        except (KeyError, TypeError):
            message = f"{url} is no server of mlx-serving: it answered {method} {path} with {status}"
        raise InvalidRequest(message) if status == 400 else EngineError(message)
    return cast("dict[str, Any]", answer)


async def _watch(client: HttpClient, show: ShowLoad) -> None:
    """Ends when it is cancelled, or with the first answer that is none: the call that it accompanies says why."""
    from mlx_serving.bench.http_client import ConnectionFailed

    received = bytearray()
    while True:
        await asyncio.sleep(_WATCH_INTERVAL_S)
        received.clear()
        with contextlib.suppress(ConnectionFailed, OSError):
            await client.exchange("GET", "/admin/models", b"", lambda _, data: received.extend(data))
        try:
            models = msgspec.json.decode(received, type=_Models).data
        except msgspec.MsgspecError:
            return
        for model in models:
            if (load := model.progress) is not None:
                show(model.name, load.stage, load.done, load.total)


class _Load(msgspec.Struct):
    stage: str
    done: int
    total: int


class _Model(msgspec.Struct):
    name: str
    progress: _Load | None = None


class _Models(msgspec.Struct):
    data: list[_Model]
