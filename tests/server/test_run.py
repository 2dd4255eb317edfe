"""The server as a process: signals, draining, exit codes."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from mlx_serving.errors import InvalidConfig
from mlx_serving.server.app import create_app
from mlx_serving.server.http.listening import ListenAddress, address_of, listen
from mlx_serving.server.run import EXIT_UNFINISHED, HttpServer
from mlx_serving.server.settings import ServerSettings

from .raw_http import Connection, connect, post
from .scripted_engine import ScriptedEngine

STREAM = post("/v1/completions", json.dumps({"prompt": "Hi", "stream": True}).encode())


@dataclass
class _Program:
    process: Process
    address: ListenAddress

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def exit_code(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 10)

    async def logged(self, text: str) -> None:
        """Return when the program has logged it."""
        assert self.process.stdout is not None
        while text not in (line := (await asyncio.wait_for(self.process.stdout.readline(), 10)).decode()):
            assert line, f"the program ended without logging {text!r}"

    def let_streams_end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")


@asynccontextmanager
async def _program(drain_timeout_s: float = 10) -> AsyncGenerator[_Program]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.server.scripted_server", "0", str(drain_timeout_s)),
        cwd=Path(__file__).parents[2],
        stdin=PIPE,
        stdout=PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        port = int(await asyncio.wait_for(process.stdout.readline(), 30))
        yield _Program(process, ListenAddress("127.0.0.1", port))
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def _open_stream(program: _Program) -> AsyncGenerator[Connection]:
    """A stream that has begun and hangs."""
    async with connect(program.address) as stream:
        await stream.send(STREAM)
        await stream.read_until(b"Hello")
        yield stream


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_an_idle_server_with_0(number: signal.Signals) -> None:
    async with _program() as program:
        program.signal(number)
        assert await program.exit_code() == 0


async def test_the_first_signal_lets_streams_finish_and_refuses_new_ones() -> None:
    async with _program() as program, _open_stream(program) as stream:
        program.signal(signal.SIGTERM)
        await program.logged("draining")
        async with httpx2.AsyncClient(base_url=program.address.url) as http:
            ready = await http.get("/health/ready")
            live = await http.get("/health/live")
            refused = await http.post("/v1/completions", json={"prompt": "Hi"})
        assert (ready.status_code, live.status_code, refused.status_code) == (503, 200, 503)
        assert refused.json()["error"]["code"] == "shutting_down"
        program.let_streams_end()
        assert b"data: [DONE]" in await stream.read_all()
        assert await program.exit_code() == 0


async def test_streams_that_take_longer_than_the_drain_are_cut_off_with_an_error() -> None:
    async with _program(drain_timeout_s=0.05) as program, _open_stream(program) as stream:
        program.signal(signal.SIGINT)
        rest = await stream.read_all()
        assert b'"code":"shutting_down"' in rest
        assert b"[DONE]" not in rest
        assert await program.exit_code() == EXIT_UNFINISHED


async def test_whole_answers_that_take_longer_than_the_drain_are_refused_with_an_error() -> None:
    async with _program(drain_timeout_s=0.05) as program, connect(program.address) as connection:
        await connection.send(post("/v1/completions", json.dumps({"prompt": "Hi"}).encode()))
        async with _open_stream(program):  # it came later, so the other one is running, too
            program.signal(signal.SIGTERM)
            answer = await connection.read_all()
        assert answer.startswith(b"HTTP/1.1 503")
        assert b'"code":"shutting_down"' in answer
        assert await program.exit_code() == EXIT_UNFINISHED == 75


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_the_second_signal_ends_everything_at_once(number: signal.Signals, code: int) -> None:
    async with _program() as program, _open_stream(program) as stream:
        program.signal(signal.SIGINT)
        await program.logged("draining")
        program.signal(number)
        assert b'"code":"shutting_down"' in await stream.read_all()
        assert await program.exit_code() == code


async def test_a_port_in_use_is_an_error_of_the_configuration() -> None:
    (taken,) = await listen("127.0.0.1", 0)
    app = create_app(ScriptedEngine(), ServerSettings())
    server = HttpServer(app, on_started=lambda _: pytest.fail("it must not start"))
    with taken, pytest.raises(InvalidConfig, match="already in use"):
        await server.run("127.0.0.1", address_of(taken).port)


async def test_it_prints_nothing_but_its_log_lines() -> None:
    async with _program() as program:
        async with connect(program.address) as connection:
            await connection.send(b"not http\r\n\r\n")
            await connection.read_all()
        async with httpx2.AsyncClient(base_url=program.address.url) as http:
            await http.get("/nothing")
        program.signal(signal.SIGINT)
        assert program.process.stdout is not None
        printed = (await asyncio.wait_for(program.process.stdout.read(), 10)).decode()
        assert await program.exit_code() == 0
    lines = printed.splitlines()
    assert len(lines) == 2
    assert "/nothing" in lines[0]
    assert "draining" in lines[1]
