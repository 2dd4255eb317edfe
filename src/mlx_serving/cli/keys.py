"""The verb `keys`: make, list and remove API keys that have limits of their own."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import msgspec

from mlx_serving.cli.config_arguments import add_config_arguments, load_from_arguments
from mlx_serving.cli.tables import print_table
from mlx_serving.config.api_keys import (
    MIN_KEY_CHARS,
    NAME_PATTERN,
    ApiKey,
    hash_key,
    new_key,
    parse_keys,
    read_keys,
    write_keys,
)
from mlx_serving.core.suggest import did_you_mean
from mlx_serving.errors import InvalidRequest

EPILOG = """\
examples:
  mlx-serving keys add ann --requests-per-minute 60 --daily-tokens 1000000
  mlx-serving keys add build-server --priority background --expires 2030-01-01
  mlx-serving keys list
  mlx-serving keys remove ann
  echo "$KEY" | mlx-serving keys hash

`add` prints the key once; the file has only its hash. A server that uses the file notices the change by itself.
The file is `keys.file` of the configuration, or what --file says.
"""

_LIMITS = ("requests_per_minute", "tokens_per_minute", "max_concurrent", "daily_tokens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    add = actions.add_parser("add", help="make a key and print it, once", allow_abbrev=False)
    add.add_argument("name", metavar="NAME", type=_name, help="who has it: letters, digits and . _ @ -")
    add.add_argument(
        "--models", metavar="NAMES", type=_names, help="the models it is for, separated by commas (default: all)"
    )
    for limit in _LIMITS:
        add.add_argument(f"--{limit.replace('_', '-')}", metavar="N", type=_count, help="(default: no limit)")
    add.add_argument(
        "--priority",
        choices=("critical", "high", "normal", "low", "background"),
        default="normal",
        help="of its requests (default: normal)",
    )
    add.add_argument("--expires", metavar="DATE", help="day or time after which it is refused, as in 2030-01-31")

    listed = actions.add_parser("list", help="what keys there are, with their limits", allow_abbrev=False)
    removed = actions.add_parser("remove", help="refuse a key from now on", allow_abbrev=False)
    removed.add_argument("name", metavar="NAME")
    hashed = actions.add_parser("hash", help="read a key of your own from stdin and print its hash", allow_abbrev=False)

    for action, run_action in ((add, _add), (listed, _list), (removed, _remove)):
        action.add_argument("--file", metavar="PATH", help="JSON file of keys (default: `keys.file`)")
        add_config_arguments(action)
        action.set_defaults(run_action=run_action)
    hashed.set_defaults(run_action=_hash)


def run(args: argparse.Namespace) -> int:
    return cast("Callable[[argparse.Namespace], int]", args.run_action)(args)


def _add(args: argparse.Namespace) -> int:
    path = _file(args)
    keys = read_keys(path) if path.exists() else ()
    if args.name in [key.name for key in keys]:
        raise InvalidRequest(f"There is a key {args.name} already: remove it first, or choose another name")
    secret = new_key()
    given: Mapping[str, object] = {
        "name": args.name,
        "hash": hash_key(secret),
        "models": args.models,
        **{limit: getattr(args, limit) for limit in _LIMITS},
        "priority": args.priority,
        "expires": None if args.expires is None else _later(args.expires).isoformat(),
    }
    (key,) = parse_keys(msgspec.json.encode({"keys": [given]}), "the command line")
    write_keys(path, (*keys, key))
    sys.stderr.write(f"added {args.name} to {path}; this is the key, and it is shown only now:\n")
    print(secret)
    return 0


def _list(args: argparse.Namespace) -> int:
    keys = read_keys(_file(args))
    now = datetime.now(UTC)
    print_table(
        ("name", "models", "requests/min", "tokens/min", "at a time", "tokens/day", "priority", "expires"),
        [
            (key.name, _models(key), *(_limit(key, name) for name in _LIMITS), key.priority, _expiry(key, now))
            for key in keys
        ],
    )
    return 0


def _remove(args: argparse.Namespace) -> int:
    path = _file(args)
    keys = read_keys(path)
    names = [key.name for key in keys]
    if args.name not in names:
        hint = did_you_mean(args.name, names)
        raise InvalidRequest(f"There is no key {args.name} in {path}" + (f"; did you mean {hint}?" if hint else ""))
    write_keys(path, [key for key in keys if key.name != args.name])
    sys.stderr.write(f"removed {args.name} from {path}\n")
    return 0


def _hash(_args: argparse.Namespace) -> int:
    key = sys.stdin.readline().strip()
    if len(key) < MIN_KEY_CHARS or not all("!" <= char <= "~" for char in key):
        raise InvalidRequest(
            f"The key must be at least {MIN_KEY_CHARS} printable ASCII characters without spaces, drawn at random, "
            f"got {len(key)}"
        )
    print(hash_key(key))
    return 0


def _file(args: argparse.Namespace) -> Path:
    given: str | None = args.file
    chosen = load_from_arguments(args).config.keys.file if given is None else given
    if not chosen:
        raise InvalidRequest("Say which file: set keys.file in the configuration, or give --file")
    return Path(chosen).expanduser()


def _name(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        raise argparse.ArgumentTypeError(
            f"must be 1 to 64 letters, digits and . _ @ -, the first a letter or a digit, got {text!r}"
        )
    return text


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"must be names of models, separated by commas, got {text!r}")
    return names


def _count(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return count


def _later(text: str) -> datetime:
    time = _time(text)
    if time <= datetime.now(UTC):
        raise InvalidRequest(f"--expires must be in the future, got {text!r}")
    return time


def _time(text: str) -> datetime:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"--expires must be a day or a time, as in 2030-01-31 or 2030-01-31T12:00Z, got {text!r}"
        ) from None
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)


def _models(key: ApiKey) -> str:
    return "all" if key.models is None else ", ".join(key.models)


def _limit(key: ApiKey, name: str) -> str:
    limit: int | None = getattr(key, name)
    return "-" if limit is None else str(limit)


def _expiry(key: ApiKey, now: datetime) -> str:
    if key.expires is None:
        return "never"
    return f"{key.expires:%Y-%m-%d %H:%M %Z}" + (" (expired)" if key.expires <= now else "")
