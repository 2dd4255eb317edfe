from __future__ import annotations

import asyncio

import pytest

from mlx_serving.bench.http_client import ConnectionFailed, HttpClient

from .canned_server import CLOSE, answer, canned, chunked


async def _get(client: HttpClient, body: bytes = b"") -> tuple[int, bytes]:
    received = bytearray()
    status = await client.exchange("POST" if body else "GET", "/x", body, lambda _, data: received.extend(data))
    return status, bytes(received)


async def test_a_request_has_its_headers_and_its_body() -> None:
    async with canned([answer(b"ok")]) as server:
        client = HttpClient(server.origin, {"authorization": "Bearer secret"})
        assert await _get(client, b'{"a": 1}') == (200, b"ok")
        client.close()
    [request] = server.requests
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /x HTTP/1.1"
    assert {b"authorization: Bearer secret", b"content-length: 8", b"content-type: application/json"} <= set(lines)
    assert body == b'{"a": 1}'


async def test_the_headers_of_an_answer_are_told() -> None:
    async with canned([b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\ncontent-length: 0\r\n\r\n"], [answer(b"ok")]) as server:
        client, told = HttpClient(server.origin, {}), list[tuple[bytes, bytes]]()

        def on_header(name: bytes, value: bytes) -> None:
            told.append((name, value))

        assert await client.exchange("GET", "/x", b"", lambda _, __: None, on_header) == 503
        assert told == [(b"retry-after", b"7"), (b"content-length", b"0")]
        await _get(client)
        assert len(told) == 2  # nobody asked for the next ones
        client.close()


async def test_a_connection_is_used_again() -> None:
    async with canned([answer(b"one")], chunked(b"t", b"wo"), [answer(b"three", "404 Not Found")]) as server:
        client = HttpClient(server.origin, {})
        assert [await _get(client) for _ in range(3)] == [(200, b"one"), (200, b"two"), (404, b"three")]
        assert server.connections == 1
        client.close()


async def test_requests_at_once_have_connections_of_their_own() -> None:
    async with canned([answer(b"a")], [answer(b"a")], [answer(b"a")]) as server:
        client = HttpClient(server.origin, {})
        assert await asyncio.gather(*(_get(client) for _ in range(3))) == [(200, b"a")] * 3
        assert server.connections == 3
        client.close()


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    async with canned([b"HTTP/1.0 200 OK\r\n\r\nup to ", b"the end", CLOSE], [answer(b"next")]) as server:
        client = HttpClient(server.origin, {})
        assert await _get(client) == (200, b"up to the end")
        assert await _get(client) == (200, b"next")
        assert server.connections == 2
        client.close()


async def test_a_connection_that_was_closed_while_idle_is_replaced() -> None:
    async with canned([answer(b"one")], [CLOSE], [answer(b"two")]) as server:
        client = HttpClient(server.origin, {})
        assert await _get(client) == (200, b"one")
        assert await _get(client) == (200, b"two")  # the second request was answered by closing
        assert (server.connections, len(server.requests)) == (2, 3)
        client.close()


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([CLOSE], "ended before the answer"),
        ([answer(b"long")[:-2], CLOSE], "ended before the answer"),
        ([b"HTTP/1.1 200 OK\r\n", CLOSE], "ended before the answer"),
        ([b"SSH-2.0-server\r\n"], "no HTTP"),
    ],
)
async def test_an_answer_that_is_cut_off_or_none_fails(parts: list[bytes], told: str) -> None:
    async with canned(parts) as server:
        client = HttpClient(server.origin, {})
        with pytest.raises(ConnectionFailed, match=told):
            await _get(client)
        client.close()


async def test_where_nobody_listens_it_says_so() -> None:
    async with canned() as server:
        origin = server.origin
    with pytest.raises(ConnectionFailed, match=r"cannot connect to 127\.0\.0\.1"):
        await _get(HttpClient(origin, {}))


async def test_what_the_reader_of_the_body_raises_ends_the_request_and_its_connection() -> None:
    def refuse(_status: int, _data: bytes) -> None:
        raise LookupError("not that")

    async with canned([answer(b"one")], [answer(b"two")]) as server:
        client = HttpClient(server.origin, {})
        with pytest.raises(LookupError, match="not that"):
            await client.exchange("GET", "/", b"", refuse)
        assert await _get(client) == (200, b"two")
        assert server.connections == 2
        client.close()


async def test_leaving_early_closes_the_connection() -> None:
    async with canned([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"], [answer(b"whole")]) as server:
        client = HttpClient(server.origin, {})
        began = asyncio.Event()
        leaving = asyncio.create_task(client.exchange("GET", "/", b"", lambda _status, _data: began.set()))
        await began.wait()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert await _get(client) == (200, b"whole")
        assert server.connections == 2
        client.close()
