"""The verb `models`: list, pull, verify, remove models; tell about one, or compare two; load and unload them in a
server that runs."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from mlx_serving.cli import draft_models, pull, served
from mlx_serving.cli.tables import bytes_text, print_pairs, print_table

if TYPE_CHECKING:
    from mlx_serving.catalog.integrity import Verdict
    from mlx_serving.catalog.reference import Reference

EPILOG = """\
examples:
  mlx-serving models list --json
  mlx-serving models pull mlx-community/Qwen3-4B-4bit
  mlx-serving models info smollm2-135m
  mlx-serving models verify
  mlx-serving models rm mlx-community/Qwen3-4B-4bit
  mlx-serving models load mlx-community/Qwen3-4B-4bit --keep-alive 30m
"""


_ACTIONS = {
    "list": ("what is on this machine and how much disk it takes, and the aliases", "mlx-serving models list --json"),
    "pull": (
        "download or convert a model, or bring it up to date, and verify it: the same as `mlx-serving pull`",
        "mlx-serving models pull mlx-community/Qwen3-4B-4bit --revision main",
    ),
    "verify": (
        "read all files of a model, or of all models, and tell which are damaged; exit status 1 if any is",
        "mlx-serving models verify mlx-community/Qwen3-4B-4bit",
    ),
    "rm": ("delete a model from this machine", "mlx-serving models rm mlx-community/Qwen3-4B-4bit"),
    "check-draft": (
        "whether a model can draft for another one, and what that could bring; exit status 1 if it cannot",
        "mlx-serving models check-draft mlx-community/Qwen3-8B-4bit mlx-community/Qwen3-0.6B-4bit",
    ),
    "info": (
        "what a model is and where; prepares it if it is not here yet",
        "mlx-serving models info smollm2-135m --json",
    ),
    "load": (
        "load a model into a server that runs, or change how it stays in memory",
        "mlx-serving models load mlx-community/Qwen3-4B-4bit --name qwen --keep-alive 30m",
    ),
    "unload": ("have a server that runs unload a model", "mlx-serving models unload qwen"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(_ACTIONS))
    for name, (summary, example) in _ACTIONS.items():
        action = actions.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name == "pull":
            pull.add_arguments(action)
            continue
        if name in ("load", "unload"):
            (served.add_load_arguments if name == "load" else served.add_unload_arguments)(action)
            continue
        if name != "list":
            nargs = "?" if name == "verify" else None
            action.add_argument("model", nargs=nargs, help="hub id, alias, GGUF file or directory")
        if name == "check-draft":
            action.add_argument("draft", help="the same of the smaller one that is to draft for it")
        if name in ("verify", "info"):
            action.add_argument("--revision", metavar="NAME", help="branch, tag or commit at the hub")
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    match args.action:
        case "list":
            return _list(as_json=args.json)
        case "pull":
            return pull.run(args)
        case "load":
            return served.load(args)
        case "unload":
            return served.unload(args)
        case "verify":
            return _verify(args.model, args.revision, as_json=args.json)
        case "check-draft":
            return draft_models.check_draft(args.model, args.draft, as_json=args.json)
        case "rm":
            return _remove(args.model, as_json=args.json)
        case _:
            return _info(args.model, args.revision, as_json=args.json)


def _list(*, as_json: bool) -> int:
    from mlx_serving.catalog.inventory import list_models

    entries = list_models()
    total, free = sum(entry.size_bytes for entry in entries), _free_bytes()
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
        print(json.dumps({"models": rows, "total_bytes": total, "free_bytes": free}, indent=2))
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
    print(f"{bytes_text(total)} in all, {bytes_text(free)} free")
    return 0


def _free_bytes() -> int:
    """Of the disk that models are downloaded to."""
    from mlx_serving.catalog.hub import Hub

    return Hub().free_bytes()


def _verify(text: str | None, revision: str | None, *, as_json: bool) -> int:
    from mlx_serving.catalog.integrity import verify

    places = _places(text, revision)
    verdicts = {place.name: verify(place.path) for place in places}
    if as_json:
        rows = [
            {
                "model": name,
                "files": verdict.files,
                "size_bytes": verdict.size_bytes,
                "compared_digests": verdict.digests,
                "damaged": [{"file": str(damage.file), "reason": damage.reason} for damage in verdict.damages],
            }
            for name, verdict in verdicts.items()
        ]
        print(json.dumps({"models": rows}, indent=2))
    else:
        _tell(verdicts, {place.name: place.fix for place in places})
    return 1 if any(verdict.damages for verdict in verdicts.values()) else 0


def _tell(verdicts: dict[str, Verdict], fixes: dict[str, str]) -> None:
    print_table(
        ("model", "files", "with a digest", "size", "verdict"),
        [
            (
                name,
                verdict.files,
                verdict.digests,
                bytes_text(verdict.size_bytes),
                f"{len(verdict.damages)} damaged" if verdict.damages else "sound",
            )
            for name, verdict in verdicts.items()
        ],
    )
    for name, verdict in verdicts.items():
        for damage in verdict.damages:
            print(f"{name}: {damage}")
        if verdict.damages:
            print(f"    fix: {fixes[name]}")


class _Place(NamedTuple):
    """A model that is here, and what to do if it is damaged."""

    name: str
    path: Path
    fix: str


def _places(text: str | None, revision: str | None) -> list[_Place]:
    """The models to be verified, and where they are. Raises `ModelNotFound` for one that is not here."""
    from mlx_serving.catalog.inventory import list_models
    from mlx_serving.catalog.prepare import locate
    from mlx_serving.catalog.reference import ModelDirectory, parse_reference
    from mlx_serving.errors import ModelNotFound

    if text is None:
        return [
            # What was converted is known by a name of its own, and is made anew when its source is wanted again.
            _Place(
                entry.name,
                entry.path,
                f"mlx-serving {'models rm' if entry.kind == 'converted' else 'pull'} {entry.name}",
            )
            for entry in list_models()
            if entry.kind != "incomplete" and entry.path is not None
        ]
    reference = parse_reference(text, revision)
    path = locate(reference)
    if path is None:
        raise ModelNotFound(f"{text} is not on this machine, or not all of it: mlx-serving pull {text}", model=text)
    if isinstance(reference, ModelDirectory):
        return [_Place(text, path, "bring its files here again from where they came")]
    return [_Place(text, path, f"mlx-serving pull {text}{f' --revision {revision}' if revision else ''}")]


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
