"""The flags by which every verb that reads the configuration is told where it comes from."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from mlx_serving.errors import InvalidConfig

if TYPE_CHECKING:
    from mlx_serving.config.assignments import Assignment
    from mlx_serving.config.load import Loaded


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, `--env` and `--set`."""
    group = parser.add_argument_group("configuration")
    group.add_argument(
        "--config",
        dest="config_file",
        metavar="PATH",
        help="YAML file to read (default: $MLX_SERVING_CONFIG, ./mlx-serving.yaml, ~/.config/mlx-serving/config.yaml)",
    )
    group.add_argument(
        "--env",
        dest="overlay",
        metavar="NAME",
        help="overlay of the file to apply, one of its `environments` (default: $MLX_SERVING_ENV)",
    )
    group.add_argument(
        "--set",
        dest="sets",
        metavar="KEY=VALUE",
        action="append",
        default=None,
        help="set one value, as in --set server.port=9000; can be repeated",
    )


def load_from_arguments(
    arguments: argparse.Namespace, flags: Sequence[Assignment] = (), environ: Mapping[str, str] | None = None
) -> Loaded:
    """The configuration that these arguments and the environment ask for.

    `flags` are what a verb's own flags set (`config.assignments.from_flag`); `environ` defaults to this process's.
    Raises InvalidConfig with every problem.
    """
    from mlx_serving.config.load import load

    return load(
        environ=os.environ if environ is None else environ,
        config_file=cast("str | None", arguments.config_file),
        overlay=cast("str | None", arguments.overlay),
        flags=flags,
        sets=cast("list[str] | None", arguments.sets) or (),
    )


def explain(error: InvalidConfig) -> str:
    """Every problem with its origin and a fix, for a terminal."""
    issues = cast("list[dict[str, object]]", error.details["issues"])
    lines = [f"{len(issues)} problem{'' if len(issues) == 1 else 's'} in the configuration"]
    for issue in issues:
        lines.append("")
        place = f"{issue['path']}: " if issue["path"] else ""
        value = str(issue.get("value", ""))
        # A number may well stand within the limit that it exceeds.
        told = re.search(rf"(?<!\w){re.escape(value)}(?!\w)", str(issue["message"]))
        given = f", got {value}" if value and told is None else ""
        lines.append(f"{place}{issue['message']}{given}")
        lines += [f"  set by: {issue['origin']}"] if "origin" in issue else []
        lines += [f"  fix: {issue['suggestion']}"] if "suggestion" in issue else []
    return "\n".join(lines)
