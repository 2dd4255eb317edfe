"""The flags of the verbs that generate, and the engine that they ask for."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, cast

from mlx_serving.cli.config_arguments import add_config_arguments, load_from_arguments
from mlx_serving.errors import InvalidRequest

if TYPE_CHECKING:
    from mlx_serving.config.schema import Config
    from mlx_serving.core.generation import SamplingParams
    from mlx_serving.engine.engine_core import EngineCore


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="hub id, MLX model directory, GGUF file, or alias (default: the configured one, else smollm2-135m)",
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--max-tokens", type=int, metavar="N", help="tokens to generate at most")
    sampling.add_argument("--temperature", type=float, metavar="T", help="0 always takes the likeliest token")
    sampling.add_argument("--top-p", type=float, metavar="P")
    sampling.add_argument("--top-k", type=int, metavar="K")
    sampling.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    sampling.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end the answer here; repeatable")
    add_config_arguments(parser)


def sampling_from(arguments: argparse.Namespace) -> SamplingParams:
    """Raises `InvalidRequest` for a value out of range."""
    from mlx_serving.core import sampling_defaults
    from mlx_serving.core.generation import SamplingParams

    params = SamplingParams(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        seed=arguments.seed,
        stop=tuple(cast("list[str]", arguments.stop)),
    )
    sampling_defaults.validate(params)
    return params


def config_from(arguments: argparse.Namespace, flags: Mapping[str, object] | None = None) -> Config:
    """The configuration with `--model` on top, and `flags`: what a verb's own flags (`--port`) set, by dotted path.

    A flag that was not given is None. Raises `InvalidConfig`, and `InvalidRequest` for one that is empty.
    """
    from mlx_serving.config.assignments import Assignment, from_flag

    given = {"models.default": arguments.model, **(flags or {})}
    names = {"models.default": "--model"}
    assignments: list[Assignment] = []
    for path, value in given.items():
        name = names.get(path, f"--{path.rpartition('.')[2].replace('_', '-')}")
        if value == "":  # of a variable that is not set, say, which would leave the setting as it is
            raise InvalidRequest(f"{name} must not be empty", field=path, given="")
        if value is not None:
            assignments.append(from_flag(name, path, str(value)))
    return load_from_arguments(arguments, assignments).config


def log_for_debugging(config: Config) -> None:
    """Log when level `debug` asks for it; what goes wrong otherwise is told by the verb itself, once."""
    from mlx_serving.telemetry import logs

    if config.logging.level == "debug":
        logs.configure(config.logging.level, config.logging.format)


@contextlib.asynccontextmanager
async def running_engine(config: Config) -> AsyncGenerator[EngineCore]:
    """An engine with the default model prepared and loaded."""
    from mlx_serving import assembly
    from mlx_serving.cli.progress import preparing, showing_loads

    log_for_debugging(config)
    await preparing(config)
    core = assembly.build(config)
    try:
        async with contextlib.AsyncExitStack() as stack:
            with showing_loads(core.events):
                await core.start()
                await stack.enter_async_context(core.lease(config.models.default))
            yield core
    finally:
        await core.stop()
