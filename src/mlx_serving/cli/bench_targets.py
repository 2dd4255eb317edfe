"""The flags that say what `bench` measures, and opening it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from mlx_serving.cli.model_arguments import config_from, log_for_debugging
from mlx_serving.errors import InvalidRequest

if TYPE_CHECKING:
    from mlx_serving.bench.target import Target

_OURS = ("engine", "server")


@dataclass(frozen=True, slots=True)
class Choice:
    """One target: `what` is engine, server or an address, `name` what the report calls it."""

    what: str
    name: str
    model: str | None
    api_key: str | None


def add_target_arguments(action: argparse.ArgumentParser) -> None:
    group = action.add_argument_group("what is measured")
    group.add_argument(
        "--target",
        default="server",
        metavar="TARGET",
        help="engine (in this process), server (mlx-serving serve, started here on a free port), or the address of an "
        "OpenAI-compatible server (default: server)",
    )
    group.add_argument("--compare", metavar="TARGET", help="a second target: rounds alternate, ratios are printed")
    group.add_argument(
        "--model",
        metavar="MODEL",
        help="of the target: what serve takes, or the name at an address (default: the configured; the first listed)",
    )
    group.add_argument(
        "--compare-model", metavar="MODEL", help="of the second target (default: the same, if both are ours)"
    )
    group.add_argument("--api-key-env", metavar="NAME", help="environment variable that holds the address's API key")
    group.add_argument("--compare-api-key-env", metavar="NAME", help="the same for the second target")
    group.add_argument(
        "--extra-body",
        metavar="JSON",
        help="an object to merge into every body sent over HTTP, such as '{\"ignore_eos\": true}'",
    )


def choices_of(args: argparse.Namespace) -> list[Choice]:
    """The target, and the second one if there is one. Raises `InvalidRequest`."""
    first = Choice(args.target, args.target, args.model, _key(args.api_key_env, "api-key-env"))
    if args.extra_body is not None:
        _extra_body(args)
        if "engine" in (args.target, args.compare):
            raise InvalidRequest("--extra-body is for targets over HTTP, not for engine", field="extra_body")
    _refuse_unused(args)
    if args.compare is None:
        return [first]
    both_ours = args.target in _OURS and args.compare in _OURS
    model = cast("str | None", args.compare_model) or (args.model if both_ours else None)
    name = f"{args.compare} (second)" if args.compare == args.target else args.compare
    return [first, Choice(args.compare, name, model, _key(args.compare_api_key_env, "compare-api-key-env"))]


@asynccontextmanager
async def open_choice(choice: Choice, args: argparse.Namespace) -> AsyncGenerator[Target]:
    """The target, ready for requests, until the block ends. Raises `EngineError` and `RequestFailed`."""
    if choice.what not in _OURS:
        from mlx_serving.bench.http_target import open_http_target

        async with open_http_target(
            choice.what, name=choice.name, model=choice.model, api_key=choice.api_key, extra_body=_extra_body(args)
        ) as target:
            yield target
        return
    from mlx_serving.cli.progress import preparing

    config = config_from(argparse.Namespace(**{**vars(args), "model": choice.model}))
    await preparing(config)
    if choice.what == "engine":
        from mlx_serving.bench.engine_target import open_engine_target

        log_for_debugging(config)
        async with open_engine_target(config, choice.name) as target:
            yield target
        return
    from mlx_serving.bench.server_target import open_server_target

    key = config.server.api_key
    async with open_server_target(
        _serve_arguments(choice, args),
        name=choice.name,
        api_key=None if key is None else key.get_secret_value(),
        extra_body=_extra_body(args),
    ) as target:
        yield target


def _serve_arguments(choice: Choice, args: argparse.Namespace) -> list[str]:
    given = {"--model": choice.model, "--config": args.config_file, "--env": args.overlay}
    arguments = [argument for flag, value in given.items() if value is not None for argument in (flag, str(value))]
    sets = cast("list[str] | None", args.sets) or []
    return [*arguments, *(argument for value in sets for argument in ("--set", value))]


def _refuse_unused(args: argparse.Namespace) -> None:
    """Flags that would change nothing."""
    for flag, target in (
        ("api-key-env", args.target),
        ("compare-api-key-env", args.compare),
        ("compare-model", args.compare),
    ):
        if getattr(args, flag.replace("-", "_")) is None:
            continue
        if target is None:
            raise InvalidRequest(f"--{flag} is for the target of --compare, and there is none", field=flag)
        if target in _OURS and flag != "compare-model":
            raise InvalidRequest(f"--{flag} is for an address, not for {target}", field=flag, given=target)


def _key(variable: str | None, flag: str) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise InvalidRequest(f"--{flag}: the environment variable {variable} is not set", field=flag, given=variable)
    return key


def _extra_body(args: argparse.Namespace) -> Mapping[str, object]:
    text = cast("str | None", args.extra_body)
    if text is None:
        return {}
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise InvalidRequest(f"--extra-body must be a JSON object, got {text!r}", field="extra_body", given=text)
    return cast("dict[str, object]", body)
