from __future__ import annotations

import httpx2
import pytest

from mlx_serving.server.http import http_protocol
from mlx_serving.server.http.http_protocol import MAX_HEADERS_BYTES
from mlx_serving.server.http.listening import ListenAddress

from ..raw_http import connect


async def test_headers_without_end_are_refused(address: ListenAddress, http: httpx2.AsyncClient) -> None:
    async with connect(address) as connection:
        await connection.send(b"GET / HTTP/1.1\r\nx: " + b"x" * (MAX_HEADERS_BYTES + 1))
        answer = await connection.read_all()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert str(MAX_HEADERS_BYTES).encode() in answer
    assert (await http.get("/health/live")).status_code == 200


@pytest.mark.parametrize("beginning", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: server\r\n"])
async def test_headers_that_do_not_come_in_time_close_the_connection(
    address: ListenAddress, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(http_protocol, "HEADERS_TIMEOUT_S", 0.05)
    async with connect(address) as connection:
        if beginning:
            await connection.send(beginning)
        assert await connection.read_all() == b""


async def test_a_kept_connection_may_send_many_large_requests(address: ListenAddress) -> None:
    request = b"GET /health/live HTTP/1.1\r\nhost: server\r\nx: " + b"x" * (MAX_HEADERS_BYTES // 2) + b"\r\n\r\n"
    async with connect(address) as connection:
        for _ in range(4):
            await connection.send(request)
            assert (await connection.read_until(b"}")).startswith(b"HTTP/1.1 200 ")
