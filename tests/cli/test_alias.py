from __future__ import annotations

import http.server
import threading
from pathlib import Path

import pytest

from ..command_line import run


@pytest.mark.parametrize(
    "url",
    ["notaurl", "ftp://host", "http://", "http://host:port", "http://host:99999", "http://host/v1", "http://h?a=b"],
)
def test_an_address_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    ended = run(tmp_path, "alias", "list", "--url", url)
    expected = f"mlx-serving: --url must be http(s)://HOST:PORT without a path, got {url!r}\n"
    assert (ended.returncode, ended.stderr) == (2, expected)


def test_another_server_is_told_from_ours(tmp_path: Path) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b'{"detail": "Not Found"}')

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.handle_request).start()
        url = f"http://127.0.0.1:{server.server_port}"
        ended = run(tmp_path, "alias", "list", "--url", url)
    assert ended.returncode == 1
    assert ended.stderr == f"mlx-serving: {url} is no server of mlx-serving: it answered GET /admin/aliases with 404\n"


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    ended = run(tmp_path, "alias", "list", "--url", "http://127.0.0.1:1")
    assert ended.returncode == 1
    assert "There is no server at http://127.0.0.1:1" in ended.stderr
