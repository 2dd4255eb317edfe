"""`models load` and `models unload`: models come and go in a server that runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from mlx_serving.cli.admin_calls import add_server_arguments, call_server
from mlx_serving.cli.tables import bytes_text, print_pairs


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="served name, hub id, directory, GGUF file or alias, as the server sees them")
    parser.add_argument("--name", metavar="NAME", help="the name that clients use")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit at the hub")
    parser.add_argument("--quantization", metavar="FORM", help="pack the weights: 4bit, 8bit-g32, mxfp4, …, or none")
    parser.add_argument("--adapter", metavar="DIR", help="directory of a LoRA adapter")
    parser.add_argument("--fuse-adapter", action="store_true", default=None, help="add the adapter to the weights")
    parser.add_argument("--kv-bits", type=int, metavar="N", help="pack the KV caches: 4 or 8 bits a number")
    parser.add_argument("--kv-group-size", type=int, metavar="N", help="numbers that share a scale: 32, 64 or 128")
    parser.add_argument(
        "--keep-alive",
        metavar="TIME",
        help="how long it stays unused: seconds, or 5m, 1h30m; -1 is for ever, 0 at once",
    )
    pinned = parser.add_mutually_exclusive_group()
    pinned.add_argument("--pin", action="store_true", default=None, help="it stays whatever others need")
    pinned.add_argument("--no-pin", dest="pin", action="store_false", help="it gives way to others")
    parser.add_argument("--replace", action="store_true", default=None, help="take over a name that is in use")
    _add_common(parser)


def add_unload_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a served name")
    parser.add_argument("--force", action="store_true", default=None, help="also while it is in use: its streams end")
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_server_arguments(parser)


def load(args: argparse.Namespace) -> int:
    """Raises `EngineError` with what the server says is wrong, or when there is none."""
    from mlx_serving.cli.progress import load_bars

    fields = ("model", "name", "revision", "quantization", "adapter", "kv_bits", "kv_group_size")
    body = _body(args, *fields, "fuse_adapter", "keep_alive", "pin", "replace")
    with load_bars() as show:
        answer = call_server(args, "POST", "/admin/models/load", body, show)
    if args.json:
        print(json.dumps(answer, indent=2))
        return 0
    memory = answer["memory_bytes"]
    print_pairs(
        {
            "name": answer["name"],
            "model": answer["reference"],
            "state": answer["state"],
            "memory": "" if memory is None else bytes_text(memory),
            "stays": _stays(answer),
        }
    )
    return 0


def unload(args: argparse.Namespace) -> int:
    """Raises as `load`."""
    answer = call_server(args, "POST", "/admin/models/unload", _body(args, "model", "force"))
    print(json.dumps(answer, indent=2) if args.json else f"{answer['name']} is unloaded")
    return 0


def _body(args: argparse.Namespace, *fields: str) -> dict[str, Any]:
    given = {field: getattr(args, field) for field in fields}
    return {field: value for field, value in given.items() if value is not None}


def _stays(answer: Mapping[str, Any]) -> str:
    if answer["pinned"]:
        return "pinned"
    seconds = answer["keep_alive_s"]
    if seconds is None:
        return "as configured for all"
    return "for ever" if seconds < 0 else f"{seconds:g} s unused"
