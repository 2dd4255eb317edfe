"""The verb `alias`: move a name from one model to another, in a server that runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote

from mlx_serving.cli.admin_calls import add_server_arguments, call_server
from mlx_serving.cli.tables import print_table
from mlx_serving.errors import InvalidRequest

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
        add_server_arguments(action)
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from mlx_serving.cli.progress import load_bars

    path = "/admin/aliases"
    if args.action != "list":
        path += f"/{quote(args.name)}"
    match args.action:
        case "list":
            answer = call_server(args, "GET", path)
            rows = cast("list[dict[str, Any]]", answer["data"])
            _print(args, answer, rows)
        case "set":
            profile = {} if args.profile is None else _profile(args.profile)
            body = {"model": args.model, "profile": profile}
            if args.revision is not None:
                body["revision"] = args.revision
            with load_bars() as show:
                answer = call_server(args, "PUT", path, body, show)
            _print(args, answer, [answer])
        case "rollback":
            _print_one(args, call_server(args, "POST", f"{path}/rollback"))
        case _:
            _print_one(args, call_server(args, "DELETE", path))
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
