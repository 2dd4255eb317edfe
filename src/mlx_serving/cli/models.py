"""The verb `models`: list, pull, remove models; tell about one."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlx_serving.cli.tables import bytes_text, print_pairs, print_table

if TYPE_CHECKING:
    from mlx_serving.catalog.reference import Reference

EPILOG = """\
examples:
  mlx-serving models list --json
  mlx-serving models pull mlx-community/Qwen3-4B-4bit
  mlx-serving models info smollm2-135m
  mlx-serving models rm mlx-community/Qwen3-4B-4bit
"""


_ACTIONS = {
    "list": ("what is on this machine, and the aliases", "mlx-serving models list --json"),
    "pull": (
        "download or convert a model, so that loading it needs no network",
        "mlx-serving models pull mlx-community/Qwen3-4B-4bit --revision main",
    ),
    "rm": ("delete a model from this machine", "mlx-serving models rm mlx-community/Qwen3-4B-4bit"),
    "info": (
        "what a model is and where; prepares it if it is not here yet",
        "mlx-serving models info smollm2-135m --json",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|pull|rm|info")
    for name, (summary, example) in _ACTIONS.items():
        action = actions.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name != "list":
            action.add_argument("model", help="hub id, alias, GGUF file or directory")
        if name in ("pull", "info"):
            action.add_argument("--revision", metavar="NAME", help="branch, tag or commit at the hub")
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    match args.action:
        case "list":
            return _list(as_json=args.json)
        case "rm":
            return _remove(args.model, as_json=args.json)
        case _:
            return _info(args.model, args.revision, as_json=args.json)


def _list(*, as_json: bool) -> int:
    from mlx_serving.catalog.inventory import list_models

    entries = list_models()
    if as_json:
        rows = [
            {
                "model": entry.name,
                "kind": entry.kind,
                "size_bytes": entry.size_bytes if entry.path is not None else None,
                "path": str(entry.path) if entry.path is not None else None,
                "summary": entry.summary,
            }
            for entry in entries
        ]
        print(json.dumps({"models": rows}, indent=2))
        return 0
    print_table(
        ("model", "kind", "size", "what it is"),
        [
            (
                entry.name,
                entry.kind,
                bytes_text(entry.size_bytes) if entry.path is not None else "not here",
                entry.summary,
            )
            for entry in entries
        ],
    )
    return 0


def _info(text: str, revision: str | None, *, as_json: bool) -> int:
    from mlx_serving.catalog.reference import parse_reference
    from mlx_serving.catalog.store import size_of
    from mlx_serving.cli.progress import prepare_showing

    reference = parse_reference(text, revision)
    path = asyncio.run(prepare_showing(text, revision))
    config = _json_object(path / "config.json")
    facts: dict[str, object] = {
        "model": text,
        "kind": _kind(reference),
        "path": str(path),
        "size_bytes": size_of(path),
        "model_type": config.get("model_type"),
        "context_length": config.get("max_position_embeddings"),
        "vocab_size": config.get("vocab_size"),
        "quantization": config.get("quantization"),
        "dtype": config.get("torch_dtype") or config.get("dtype"),
        "chat_template": _has_chat_template(path),
    }
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        print_pairs({**facts, "size_bytes": bytes_text(facts["size_bytes"])})
    return 0


def _kind(reference: Reference) -> str:
    from mlx_serving.catalog.reference import Alias, GgufFile, HubRepository

    match reference:
        case Alias():
            return "alias"
        case GgufFile():
            return "gguf"
        case HubRepository():
            return "hub"
        case _:
            return "directory"


def _has_chat_template(path: Path) -> bool:
    if (path / "chat_template.jinja").is_file() or (path / "chat_template.json").is_file():
        return True
    settings = path / "tokenizer_config.json"
    return settings.is_file() and "chat_template" in _json_object(settings)


def _json_object(path: Path) -> dict[str, Any]:
    """Raises `ModelLoadError` when there is none."""
    from mlx_serving.errors import ModelLoadError

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise ModelLoadError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelLoadError(f"{path} holds no JSON object")
    return cast("dict[str, Any]", found)


def _remove(name: str, *, as_json: bool) -> int:
    from mlx_serving.catalog.inventory import remove_model

    freed = remove_model(name)
    if as_json:
        print(json.dumps({"model": name, "freed_bytes": freed}))
    else:
        print(f"removed {name}: {bytes_text(freed)} freed")
    return 0
