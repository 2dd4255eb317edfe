"""Our own HTTP server, in processes of its own: what clients of `mlx-serving serve` get."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import IO

import msgspec

from mlx_serving.bench.http_target import HttpTarget, open_http_target
from mlx_serving.errors import EngineError

_STOP_S = 10.0
_TAIL_BYTES = 4096


class _Told(msgspec.Struct):
    """What `mlx-serving serve --json` tells when it serves."""

    url: str
    default: str
    device: str
    blas: str


@asynccontextmanager
async def open_server_target(
    arguments: Sequence[str],
    *,
    name: str = "server",
    api_key: str | None = None,
    extra_body: Mapping[str, object] | None = None,
) -> AsyncGenerator[HttpTarget]:
    """`mlx-serving serve` with these arguments on a free port, stopped when the block ends.

    Raises `EngineError` with the end of its stderr when it does not serve.
    """
    # A temporary file and no pipe: nobody has to read it for the server to go on.
    with tempfile.TemporaryFile() as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "mlx_serving", "serve", "--host", "127.0.0.1", "--port", "0", "--json", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
        try:
            assert process.stdout is not None
            line = await process.stdout.readline()
            if not line:
                raise EngineError("The server ended before it served", stderr_tail=_tail(stderr))
            told = msgspec.json.decode(line, type=_Told)
            facts = {
                "device": told.device,
                "BLAS": told.blas,
                "mlx-serving": version("mlx-serving"),
                "mlx": version("mlx"),
                "mlx-lm": version("mlx-lm"),
            }
            async with open_http_target(
                told.url, name=name, model=told.default, api_key=api_key, extra_body=extra_body, facts=facts
            ) as target:
                yield target
        finally:
            await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _tail(log: IO[bytes]) -> str:
    size = log.seek(0, 2)
    log.seek(max(0, size - _TAIL_BYTES))
    return log.read().decode(errors="replace").strip()
