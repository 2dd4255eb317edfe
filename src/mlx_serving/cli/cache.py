"""The verb `cache`: what the prefix cache keeps on disk, and how to be rid of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from mlx_serving.catalog.prefix_folder import ModelRecords, clear, summaries
from mlx_serving.cli.config_arguments import add_config_arguments, load_from_arguments
from mlx_serving.cli.tables import bytes_text, print_table
from mlx_serving.errors import InvalidRequest

EPILOG = """\
examples:
  mlx-serving cache info
  mlx-serving cache clear --path ~/.cache/mlx-serving/prefixes

The folder is `prefix_cache.disk.path` of the configuration, or what --path says. Servers may go on using it meanwhile.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    info = actions.add_parser("info", help="what there is of each model", allow_abbrev=False)
    info.add_argument("--json", action="store_true", help="print JSON")
    cleared = actions.add_parser("clear", help="delete all of it", allow_abbrev=False)
    for action, run_action in ((info, _info), (cleared, _clear)):
        action.add_argument("--path", metavar="PATH", help="the folder (default: `prefix_cache.disk.path`)")
        add_config_arguments(action)
        action.set_defaults(run_action=run_action)


def run(args: argparse.Namespace) -> int:
    try:
        return cast("Callable[[argparse.Namespace], int]", args.run_action)(args)
    except OSError as error:
        raise InvalidRequest(f"The folder cannot be used: {error}") from error


def _info(args: argparse.Namespace) -> int:
    folder = _folder(args)
    found = summaries(folder)
    if args.json:
        total = sum(each.size_bytes for each in found)
        print(json.dumps({"path": str(folder), "size_bytes": total, "models": [asdict(each) for each in found]}))
        return 0
    header = ("model", "records", "tokens", "size", "last used", "damaged")
    rows = [*map(_row, found), ("all", *_totals(found))]
    print(folder)
    print_table(header, rows)
    return 0


def _row(model: ModelRecords) -> tuple[object, ...]:
    used = f"{datetime.fromtimestamp(model.used_at, UTC):%Y-%m-%d %H:%M UTC}" if model.records else "-"
    size = bytes_text(model.size_bytes)
    return model.fingerprint[:12], model.records, model.tokens, size, used, model.damaged


def _totals(found: list[ModelRecords]) -> tuple[object, ...]:
    size = bytes_text(sum(each.size_bytes for each in found))
    damaged = sum(each.damaged for each in found)
    return sum(each.records for each in found), sum(each.tokens for each in found), size, "", damaged


def _clear(args: argparse.Namespace) -> int:
    folder = _folder(args)
    count, size = clear(folder)
    print(f"deleted {count} records, {bytes_text(size)}, from {folder}")
    return 0


def _folder(args: argparse.Namespace) -> Path:
    given: str | None = args.path
    chosen = load_from_arguments(args).config.prefix_cache.disk.path if given is None else given
    if not chosen:
        raise InvalidRequest("Say which folder: set prefix_cache.disk.path in the configuration, or give --path")
    folder = Path(chosen).expanduser()
    if folder.exists() and not folder.is_dir():
        raise InvalidRequest(f"{folder} is no folder", field="path", given=chosen)
    return folder
