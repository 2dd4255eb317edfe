"""`models load` at a server that takes its time, and tells meanwhile how far it is."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from mlx_serving.cli import progress
from mlx_serving.cli.main import main

from ..command_line import LIMIT_S, run

LOADED = {"name": "one", "reference": "org/one", "state": "ready", "memory_bytes": 2048, "pinned": True}
ONE_MIB = 1 << 20


class SlowServer(ThreadingHTTPServer):
    """Answers loads, of which it keeps the bodies; if it is `slow`, when it was asked twice how far it is."""

    daemon_threads = True

    def __init__(self, *, slow: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.looks = threading.Semaphore(0 if slow else 2)
        self.asked: list[dict[str, object]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def slow(self) -> SlowServer:
        return cast(SlowServer, self.server)

    def do_GET(self) -> None:
        progress = {"stage": "downloading", "done": ONE_MIB, "total": 4 * ONE_MIB}
        self._send({"data": [{"name": "other", "progress": None}, {"name": "one", "progress": progress}]})
        self.slow.looks.release()

    def do_POST(self) -> None:
        self.slow.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        for _ in range(2):
            assert self.slow.looks.acquire(timeout=LIMIT_S)
        self._send({**LOADED, "keep_alive_s": None})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _send(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Generator[SlowServer]:
    with SlowServer(slow=request.param) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("server", [True], indirect=True)
def test_until_it_is_there_the_server_is_asked_how_far_it_is(
    server: SlowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    screen = io.StringIO()

    def at_a_terminal(*, stderr: bool) -> Console:
        assert stderr  # stdout is for the result
        return Console(file=screen, force_terminal=True, width=100, _environ={})

    monkeypatch.setattr(progress, "Console", at_a_terminal)
    assert main(["models", "load", "org/one", "--url", server.url]) == 0
    assert "downloading one" in screen.getvalue()
    assert "1.0/4.2 MB" in screen.getvalue()
    assert "other" not in screen.getvalue()
    assert server.asked == [{"model": "org/one"}]


@pytest.mark.parametrize("server", [False], indirect=True)
def test_at_a_pipe_it_tells_the_end_only(server: SlowServer, tmp_path: Path) -> None:
    options = ("--adapter", "/adapters/sql", "--fuse-adapter", "--pin", "--keep-alive", "5m")
    ended = run(tmp_path, "models", "load", "org/one", *options, "--url", server.url, "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["state"] == "ready"
    wanted = {"model": "org/one", "adapter": "/adapters/sql", "fuse_adapter": True, "keep_alive": "5m", "pin": True}
    assert server.asked == [wanted]
