"""The servers that the benchmarks compare: each a process of its own on a free port, with the same BLAS beneath it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mlx_serving.bench.figures import Objectives, figures_of
from mlx_serving.bench.http_target import HttpTarget, open_http_target
from mlx_serving.bench.load import Generator
from mlx_serving.bench.target import Count, RequestFailed, Target
from mlx_serving.bench.workload import GREEDY, Ask, Closed, Endpoint
from mlx_serving.catalog.prepare import prepare
from mlx_serving.catalog.reference import parse_reference
from mlx_serving.catalog.store import cache_directory
from mlx_serving.machine import blas

HERE = Path(__file__).parent
_STARTUP_S = 120.0
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that answers."""

    url: str
    pid: int
    target: HttpTarget
    extra_body: Mapping[str, object]


def model_directory(name: str | None, scratch: Path) -> Path:
    """Of the model with that name; without one a model that is made on the spot."""
    return tiny_model(scratch) if name is None else prepare(parse_reference(name), lambda _: None)


def tiny_model(scratch: Path, seed: int = 0) -> Path:
    """A random two-layer llama with a vocabulary of 512, on which everything but arithmetic shows."""
    directory = scratch / f"tiny-{seed}"
    command = [sys.executable, "-m", "tests.tiny_models", str(directory), "--printable", "--seed", str(seed)]
    subprocess.run(command, cwd=HERE.parent, check=True)
    return directory


def forbidden_ends(name: str | None, model: Path) -> Mapping[str, object]:
    """What a request says besides, so that its answer is as long as it asks for; the model made on the spot never ends
    by itself."""
    if name is None:
        return {}
    ends: int | list[int] = json.loads((model / "config.json").read_text(encoding="utf-8"))["eos_token_id"]
    return {"logit_bias": {str(end): -100 for end in (ends if isinstance(ends, list) else [ends])}}


def counter(model: Path) -> Count:
    """Counts tokens with the model's own tokenizer."""
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(model / "tokenizer.json"))

    async def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    return count


def cpu_seconds(pid: int) -> float:
    """Processor time that a process and its children have had so far."""
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def peer_environment() -> dict[str, str]:
    """The environment of a process that gets the BLAS which our worker gets."""
    return blas.environment(blas.find(), os.environ, cache_directory() / "blas")


async def rate(target: Target, prompts: Sequence[str], tokens: int, concurrency: int) -> float:
    """Output tokens a second of so many clients that send their next request when the last one is answered."""
    asks = [Ask(prompt, tokens, Endpoint.COMPLETIONS, GREEDY) for prompt in prompts]
    records = await Generator(target, timeout_s=_TIMEOUT_S).run(asks, Closed(concurrency), 0)
    figures = figures_of([records], Objectives())
    if figures.failed or figures.output_tokens is None or figures.output_tokens.minimum < tokens:
        raise SystemExit(f"{target.about.name} did not answer in full: {figures.failed or figures.output_tokens}")
    return figures.output_tokens_per_s


@asynccontextmanager
async def our_server(
    models: Sequence[Path], extra_body: Mapping[str, object], settings: Sequence[str] = ()
) -> AsyncGenerator[Peer]:
    """`mlx-serving serve`; the target's model is the first. `settings` are KEY=VALUE of the configuration."""
    served = json.dumps([{"model": str(path), "name": path.name} for path in models])
    command = ["-m", "mlx_serving", "serve", "--port", "0", "--json", "--set", "logging.level=error"]
    command += [argument for setting in (f"models.served={served}", *settings) for argument in ("--set", setting)]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        url = json.loads(await process.stdout.readline())["url"]
        name = models[0].name
        async with open_http_target(url, name="mlx-serving", model=name, extra_body=extra_body) as target:
            yield Peer(url, process.pid, target, extra_body)
    finally:
        await _stop(process)


@asynccontextmanager
async def mlx_lm_server(model: Path, extra_body: Mapping[str, object]) -> AsyncGenerator[Peer]:
    """`mlx_lm.server`, of the same environment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "mlx_lm", "server", "--model", str(model), "--port", str(port), "--log-level", "ERROR"),
            env=peer_environment(),
            stdout=log,
            stderr=log,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            async with open_http_target(url, name="mlx_lm.server", model=str(model), extra_body=extra_body) as target:
                await _answering(target, process)
                yield Peer(url, process.pid, target, extra_body)
        finally:
            await _stop(process)


async def _answering(target: HttpTarget, process: asyncio.subprocess.Process) -> None:
    """Wait until it answers a request: it listens before its model is loaded."""
    async with asyncio.timeout(_STARTUP_S):
        while process.returncode is None:
            try:
                await target.send(Ask("warm", 4, Endpoint.COMPLETIONS, {"temperature": 0.0}))
            except RequestFailed as error:
                if error.code != "connection":
                    raise
                await asyncio.sleep(0.2)
            else:
                return
    raise SystemExit(f"mlx_lm.server ended with status {process.returncode}")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    await process.wait()
