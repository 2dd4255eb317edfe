"""The verb `serve`: serve models over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from typing import TYPE_CHECKING

from mlx_serving.cli.config_arguments import add_config_arguments
from mlx_serving.cli.draft_models import add_draft_arguments, drafting_by_default
from mlx_serving.cli.model_arguments import config_from
from mlx_serving.errors import EngineError
from mlx_serving.machine.device import device_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlx_serving.config.schema import Config
    from mlx_serving.engine.engine_core import EngineCore
    from mlx_serving.server.http.listening import ListenAddress
    from mlx_serving.server.resume.handover import Handover

EPILOG = """\
examples:
  mlx-serving serve
  mlx-serving serve --model mlx-community/Qwen3-4B-4bit --port 9000
  mlx-serving serve --config mlx-serving.yaml --env production

The first Ctrl-C (or SIGTERM) takes no more requests and gives those that run `server.drain_timeout_s` to finish; the
second one stops at once. Clients whose requests are cut off are told so. With --resume-file, the requests are written
there, the next start with the same file finishes them, and their clients get the rest of their answers, with the same
API key, from GET /v1/resumed/ID, which the error that cuts them off names.

SIGHUP reads the configuration again, from the same file, environment and flags, and goes on with it: running requests
are kept, also where it needs a fresh worker or another version of a model. What is not valid is logged in full and
changes nothing. POST /admin/reload does the same. Where a terminal is closed, SIGHUP stops the server as SIGTERM does.

exit status:
  0    everything was finished
  1    it failed: the default model cannot be loaded, the worker cannot be started
  2    wrong usage or configuration
  75   requests took longer than `server.drain_timeout_s` and were cut off, or left in the resume file (TEMPFAIL of
       sysexits.h)
  130  a second Ctrl-C; 143 a second SIGTERM
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="hub id, MLX model directory, GGUF file, or alias (default: the configured one, else smollm2-135m)",
    )
    add_draft_arguments(parser)
    parser.add_argument("--host", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", metavar="PORT", help="port to listen on; 0 takes any free one (default: 8000)")
    parser.add_argument(
        "--resume-file",
        metavar="PATH",
        help="leave requests that a shutdown does not wait for in this file, and finish those of the last server",
    )
    parser.add_argument("--json", action="store_true", help="tell in one JSON line on stdout what is served and where")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from mlx_serving.server.keys.ring import check_keys
    from mlx_serving.server.settings import settings_of

    def read() -> Config:
        flags = {"server.host": args.host, "server.port": args.port, "server.resume_file": args.resume_file}
        config = drafting_by_default(config_from(args, flags), args.draft_model)
        check_keys(settings_of(config).keys)
        return config

    config = read()
    import uvloop

    return uvloop.run(_serve(config, read, as_json=args.json))


async def _serve(config: Config, read: Callable[[], Config], *, as_json: bool) -> int:
    from mlx_serving import assembly
    from mlx_serving.cli.hangup import on_hangup
    from mlx_serving.cli.progress import preparing
    from mlx_serving.server.app import create_app
    from mlx_serving.server.http.listening import listen
    from mlx_serving.server.reload import Reloader
    from mlx_serving.server.run import serve
    from mlx_serving.server.settings import settings_of
    from mlx_serving.telemetry.logger import get_logger

    for probe in await listen(config.server.host, config.server.port):  # better told now than after a download
        probe.close()
    _log_to_stderr(config, routine=False)
    _tell(config, f"starting {config.models.default} …")
    await preparing(config, lambda text: get_logger("mlx_serving.cli").info("preparing", model=text))
    stack = assembly.assemble(config)
    core, handover = stack.core, _handover(config, stack.core)
    app = create_app(core, settings_of(config), handover)
    failures: list[EngineError] = []
    announcing: list[asyncio.Task[None]] = []

    def started(addresses: Sequence[ListenAddress]) -> None:
        work = _announce(core, config, addresses[0].url, failures, as_json=as_json)
        announcing.append(asyncio.create_task(work))

    def apply(changed: Config) -> None:
        app.reconfigure(settings_of(changed))
        _log_to_stderr(changed, routine=True)

    reloader = Reloader(config, read, stack, apply)
    app.reload_with(reloader)
    try:
        with on_hangup(reloader.reload):
            await core.start()
            if handover is not None:
                handover.start(config.generation.timeout_s)
            status = await serve(app, config.server.host, config.server.port, on_started=started)
    finally:
        _log_to_stderr(reloader.config, routine=False)
        for task in announcing:
            task.cancel()
        if handover is not None:
            handover.leave()
            handover.close()
        await core.stop()
        await app.close()
    if failures:
        raise failures[0]
    _tell(config, "stopped")
    return status


def _handover(config: Config, core: EngineCore) -> Handover | None:
    """Raises `InvalidConfig` for a resume file that cannot be one."""
    from pathlib import Path

    from mlx_serving.server.resume.handover import Handover

    server = config.server
    if server.resume_file is None:
        return None
    width = config.scheduler.max_num_seqs * config.workers
    return Handover(Path(server.resume_file).absolute(), server.resume_max_age_s, core, width=width)


async def _announce(core: EngineCore, config: Config, url: str, failures: list[EngineError], *, as_json: bool) -> None:
    """Wait for the default model and tell how to use it. A default model that cannot be loaded ends the server."""
    import os
    import signal

    from mlx_serving.cli.progress import showing_loads

    try:
        with showing_loads(core.events) if _person_reads(config) else contextlib.nullcontext():
            async with core.lease(config.models.default):
                pass
    except EngineError as error:
        failures.append(error)
        os.kill(os.getpid(), signal.SIGTERM)
        return
    info = await core.runtime_info()
    device = device_name(info.device, metal=info.metal)
    if as_json:
        models = [model.name for model in core.served_models()]
        facts = {"url": url, "models": models, "default": config.models.default, "pid": os.getpid()}
        print(json.dumps({**facts, "device": device, "blas": info.blas.name}), flush=True)
    else:
        print(_screen(core, config, url, f"{device}, {info.blas.name}"), flush=True)
    _log_to_stderr(config, routine=True)


def _screen(core: EngineCore, config: Config, url: str, device: str) -> str:
    key = ' \\\n      -H "authorization: Bearer $KEY"' if config.server.api_key else ""
    lines = ["", f"mlx-serving is ready at {url}", ""]
    for model in core.served_models():
        facts = ["default"] if model.default else []
        facts.append({"absent": "is loaded with its first request"}.get(model.state, model.state))
        facts += [f"context {model.context_length} tokens"] if model.context_length else []
        lines.append(f"  {model.name}  ({', '.join(facts)})")
    lines += [
        f"  on {device}",
        "",
        "  try it:",
        f"    curl {url}/v1/chat/completions -H 'content-type: application/json'{key} \\",
        """      -d '{"messages":[{"role":"user","content":"What is the capital of France?"}]}'""",
        "",
        f"  OpenAI clients:   base_url={url}/v1",
        f"  API description:  {url}/openapi.json",
        f"  health:           {url}/health",
        "",
        "  Ctrl-C finishes what is running and stops; a second Ctrl-C stops at once.",
        "",
    ]
    return "\n".join(lines)


def _log_to_stderr(config: Config, *, routine: bool) -> None:
    """Log as configured. Without `routine`, a person is spared how a start or a stop goes while it goes well."""
    from mlx_serving.telemetry import logs

    level = config.logging.level
    spared = _person_reads(config) and not routine and level == "info"
    logs.configure("warning" if spared else level, config.logging.format)


def _tell(config: Config, text: str) -> None:
    """To a person only: a program that reads stderr reads log lines and nothing else."""
    if _person_reads(config):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _person_reads(config: Config) -> bool:
    form = config.logging.format
    return form == "console" or (form == "auto" and sys.stderr.isatty())
