"""The verb `alias`: move a name from one model to another, in a server that runs."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote, urlsplit

from mlx_serving.cli.config_arguments import add_config_arguments, load_from_arguments
from mlx_serving.cli.tables import print_table
from mlx_serving.errors import EngineError, InvalidRequest

EPILOG = """\
examples:
  mlx-serving alias list
  mlx-serving alias set chat mlx-community/Qwen3-4B-4bit
  mlx-serving alias set chat qwen --profile '{"temperature": 0.2, "system_prompt": "Be brief."}'
  mlx-serving alias rollback chat
  mlx-serving alias rm chat

The server is the one that the configuration describes (server.host, server.port), or --url. It asks for its
administrative key, which is taken from the same configuration: MLX_SERVING_SERVER__ADMIN_KEY in the environment.
Requests that run stay with the model that they began with.
"""

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  addresses that are listened on, not called


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|set|rollback|rm")
    listed = actions.add_parser("list", help="the aliases, and what they meant before", allow_abbrev=False)
    moved = actions.add_parser("set", help="have a name mean another model", allow_abbrev=False)
    moved.add_argument("name", metavar="NAME")
    moved.add_argument("model", metavar="MODEL", help="a served name, hub id, directory or GGUF file")
    moved.add_argument("--revision", metavar="NAME", help="branch, tag or commit at the hub")
    moved.add_argument("--profile", metavar="JSON", help="what holds under the name where a request is silent")
    back = actions.add_parser("rollback", help="have a name mean what it meant before", allow_abbrev=False)
    back.add_argument("name", metavar="NAME")
    removed = actions.add_parser("rm", help="forget what was set", allow_abbrev=False)
    removed.add_argument("name", metavar="NAME")
    for action in (listed, moved, back, removed):
        action.add_argument("--url", metavar="URL", help="of the server (default: the configured one)")
        action.add_argument("--json", action="store_true", help="print JSON")
        add_config_arguments(action)


def run(args: argparse.Namespace) -> int:
    path = "/admin/aliases"
    if args.action != "list":
        path += f"/{quote(args.name)}"
    match args.action:
        case "list":
            answer = _call(args, "GET", path)
            rows = cast("list[dict[str, Any]]", answer["data"])
            _print(args, answer, rows)
        case "set":
            profile = {} if args.profile is None else _profile(args.profile)
            body = {"model": args.model, "profile": profile}
            if args.revision is not None:
                body["revision"] = args.revision
            answer = _call(args, "PUT", path, body)
            _print(args, answer, [answer])
        case "rollback":
            _print_one(args, _call(args, "POST", f"{path}/rollback"))
        case _:
            _print_one(args, _call(args, "DELETE", path))
    return 0


def _profile(text: str) -> dict[str, Any]:
    try:
        profile = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"--profile is no JSON: {error}", field="profile", given=text) from None
    if not isinstance(profile, dict):
        raise InvalidRequest("--profile must be a JSON object", field="profile", given=text)
    return cast("dict[str, Any]", profile)


def _print_one(args: argparse.Namespace, answer: Mapping[str, Any]) -> None:
    alias = cast("dict[str, Any] | None", answer["alias"])
    if alias is None and not args.json:
        print(f"{answer['name']} is no alias any more")
    else:
        _print(args, answer, [] if alias is None else [alias])


def _print(args: argparse.Namespace, answer: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
    if args.json:
        print(json.dumps(answer, indent=2))
        return
    print_table(
        ("alias", "model", "source", "before", "profile"),
        [
            (
                row["name"],
                row["model"],
                row["source"],
                ", ".join(target["model"] for target in row["history"]),
                json.dumps(row["profile"]) if row["profile"] else "",
            )
            for row in rows
        ],
    )


def _call(args: argparse.Namespace, method: str, path: str, body: object = None) -> dict[str, Any]:
    """What the server answers. Raises `EngineError` with what it says is wrong, or when there is none."""
    server = load_from_arguments(args, []).config.server
    host = _EVERYWHERE.get(server.host, server.host)
    scheme = "http" if server.tls_cert is None else "https"
    configured = f"{scheme}://{f'[{host}]' if ':' in host else host}:{server.port}"
    url = configured if args.url is None else _origin(args.url)
    key = None if server.admin_key is None else server.admin_key.get_secret_value()
    return asyncio.run(_exchange(url, key, method, path, b"" if body is None else json.dumps(body).encode()))


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


async def _exchange(url: str, key: str | None, method: str, path: str, body: bytes) -> dict[str, Any]:
    from mlx_serving.bench.http_client import ConnectionFailed, HttpClient

    received = bytearray()
    client = HttpClient(url, {} if key is None else {"authorization": f"Bearer {key}"})
    try:
        status = await client.exchange(method, path, body, lambda _, data: received.extend(data))
    except (ConnectionFailed, OSError) as error:
        raise EngineError(f"There is no server at {url}: {error}") from None
    finally:
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
