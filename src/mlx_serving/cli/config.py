"""The verb `config`: show what is configured and where each value was set, check it, describe it for editors."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, cast

from mlx_serving.cli.config_arguments import add_config_arguments, explain, load_from_arguments
from mlx_serving.errors import InvalidConfig

if TYPE_CHECKING:
    from mlx_serving.config.load import Loaded

EPILOG = """\
examples:
  mlx-serving config show --env production
  mlx-serving config check --config mlx-serving.yaml
  mlx-serving config schema > mlx-serving.schema.json"""

EXIT_OK = 0
EXIT_INVALID = 2

_SCHEMA_EXAMPLE = """\
mlx-serving config schema > mlx-serving.schema.json

An editor with a YAML language server finds it by the first line of the configuration file:
  # yaml-language-server: $schema=mlx-serving.schema.json"""
_ACTIONS = {
    "show": (
        "print every value and where it was set; secrets are masked",
        "mlx-serving config show --env production --set server.port=9000",
    ),
    "check": (
        "exit 0 if the configuration is valid, else 2 with every problem and a fix",
        "mlx-serving config check --config mlx-serving.yaml --json",
    ),
    "schema": (
        "print the JSON Schema of the configuration file, for editors",
        _SCHEMA_EXAMPLE,
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions `show`, `check` and `schema` with their flags."""
    actions = parser.add_subparsers(dest="config_action", required=True, metavar="show|check|schema")
    for name, (summary, example) in _ACTIONS.items():
        action = actions.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name != "schema":
            add_config_arguments(action)
            action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Carry out the action; the result is the exit status."""
    if args.config_action == "schema":
        from mlx_serving.config.json_schema import json_schema

        print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
        return EXIT_OK
    as_json = cast("bool", args.json)
    try:
        loaded = load_from_arguments(args)
    except InvalidConfig as error:
        if as_json:
            print(json.dumps({"valid": False, **error.details}, indent=2, ensure_ascii=False))
        else:
            print(explain(error), file=sys.stderr)
        return EXIT_INVALID
    if args.config_action == "show":
        _show(loaded, as_json=as_json)
    else:
        _confirm(loaded, as_json=as_json)
    return EXIT_OK


def _show(loaded: Loaded, *, as_json: bool) -> None:
    from mlx_serving.config.load import values
    from mlx_serving.config.origin import dotted
    from mlx_serving.config.tree import leaves

    rows = [
        (dotted(path), value, str(loaded.provenance[dotted(path)])) for path, value in leaves(values(loaded.config))
    ]
    if as_json:
        listing = {path: {"value": value, "origin": origin} for path, value, origin in rows}
        print(json.dumps(listing, indent=2, ensure_ascii=False))
    elif sys.stdout.isatty():
        _print_table([(path, _text(value), origin) for path, value, origin in rows])
    else:
        texts = [(path, _text(value), origin) for path, value, origin in rows]
        path_width = max(len(path) for path, _, _ in texts)
        value_width = max(len(value) for _, value, _ in texts)
        for path, value, origin in texts:
            print(f"{path:<{path_width}}  {value:<{value_width}}  {origin}")


def _print_table(rows: list[tuple[str, str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("setting", "value", "origin", box=None, pad_edge=False)
    for path, value, origin in rows:
        style = "dim" if origin == "default" else "bold"
        table.add_row(Text(path), Text(value, style=style), Text(origin, style=style))
    Console().print(table)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _confirm(loaded: Loaded, *, as_json: bool) -> None:
    from mlx_serving.config.origin import DEFAULT

    if as_json:
        summary = {"valid": True, "file": loaded.file, "overlay": loaded.overlay}
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    changed = sum(origin != DEFAULT for origin in loaded.provenance.values())
    sources = f"file {loaded.file}" if loaded.file is not None else "no file"
    overlay = f", overlay {loaded.overlay}" if loaded.overlay is not None else ""
    print(f"the configuration is valid ({sources}{overlay}; {changed} of {len(loaded.provenance)} values set)")
