from __future__ import annotations

import json

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from mlx_serving.errors import InvalidEnvelope, MalformedMessage
from mlx_serving.server.app import create_app
from mlx_serving.server.http import body
from mlx_serving.server.http.body import parse_json_object
from mlx_serving.server.http.listening import ListenAddress
from mlx_serving.server.settings import ServerSettings

from ..conftest import MAX_BODY_BYTES, running
from ..raw_http import chunked_post, connect, post, post_announcing
from ..scripted_engine import ScriptedEngine

PATH = "/v1/chat/completions"
BODY = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"{", "not valid JSON"),
        (b'{"a": 1,}', "trailing comma"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": 1e999}', "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 30_000, "nested too deeply"),
        (b"\x1f\x8b\x08", "not valid JSON"),
    ],
)
async def test_what_is_no_json_is_refused_and_the_server_goes_on(
    http: httpx2.AsyncClient, content: bytes, message: str
) -> None:
    response = await http.post(PATH, content=content)
    error = response.json()["error"]
    assert response.status_code == 400
    assert message in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_json")
    assert (await http.post(PATH, content=BODY)).status_code == 200


@pytest.mark.parametrize("content", [b"[]", b"5", b'"text"', b"null"])
def test_json_that_is_no_object_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidEnvelope, match="must be a JSON object"):
        parse_json_object(content)


def test_invalid_json_says_where() -> None:
    with pytest.raises(MalformedMessage, match="byte 8"):
        parse_json_object(b'{"a": 1 x}')


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "nonsense", ""])
async def test_json_is_taken_whatever_it_is_called(http: httpx2.AsyncClient, content_type: str) -> None:
    assert (await http.post(PATH, content=BODY, headers={"content-type": content_type})).status_code == 200


async def test_a_body_of_exactly_the_limit_is_taken(http: httpx2.AsyncClient) -> None:
    padded = BODY + b" " * (MAX_BODY_BYTES - len(BODY))
    assert (await http.post(PATH, content=padded)).status_code == 200


async def test_the_official_client_gets_a_typed_error_for_a_body_over_the_limit(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "x" * (20 * MAX_BODY_BYTES)}]
        )
    assert raised.value.status_code == 413
    assert raised.value.code == "request_too_large"
    assert f"at most {MAX_BODY_BYTES} bytes" in raised.value.message


async def test_an_announced_size_over_the_limit_is_refused_before_the_body_is_read(address: ListenAddress) -> None:
    async with connect(address) as connection:
        await connection.send(post_announcing(PATH, 10**12))
        head = await connection.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in head


async def test_a_refused_body_that_never_ends_is_not_awaited(
    address: ListenAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "_LINGER_S", 0.05)
    async with connect(address) as connection:
        await connection.send(post_announcing(PATH, 10**12) + b"x" * 1000)
        assert b'"code":"request_too_large"' in await connection.read_all()


async def test_of_a_refused_body_only_so_much_is_thrown_away(
    address: ListenAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "_LINGER_BYTES", 100_000)
    async with connect(address) as connection:
        await connection.send(post_announcing(PATH, 10**12))
        await connection.read_until(b"}}")
        with pytest.raises(ConnectionError):  # noqa: PT012  it is the first write after the server closed that fails
            while True:
                await connection.send(b"x" * 50_000)


async def test_chunks_over_the_limit_are_refused_without_their_end(address: ListenAddress) -> None:
    chunk = b"%x\r\n" % 50_000 + b" " * 50_000 + b"\r\n"
    async with connect(address) as connection:
        await connection.send(chunked_post(PATH) + chunk * (MAX_BODY_BYTES // 50_000 + 1))
        assert (await connection.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")


async def test_chunks_within_the_limit_are_one_body(address: ListenAddress) -> None:
    async with connect(address) as connection:
        await connection.send(chunked_post(PATH))
        for byte in BODY:
            await connection.send(b"1\r\n" + bytes([byte]) + b"\r\n")
        await connection.send(b"0\r\n\r\n")
        assert (await connection.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_a_body_that_does_not_arrive_in_time_is_given_up() -> None:
    engine = ScriptedEngine()
    settings = ServerSettings(body_timeout_s=0.05, access_log=False)
    async with running(create_app(engine, settings)) as address, connect(address) as connection:
        await connection.send(post_announcing(PATH, 100) + b"{")
        head = await connection.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
    assert engine.runs == []


async def test_a_client_that_leaves_in_the_middle_of_its_body_costs_nothing(
    address: ListenAddress, engine: ScriptedEngine, http: httpx2.AsyncClient
) -> None:
    async with connect(address) as connection:
        await connection.send(post_announcing(PATH, 100) + b"{")
        await connection.close()
    assert (await http.get("/health/live")).status_code == 200
    assert engine.runs == []


async def test_bytes_that_are_no_http_are_refused(address: ListenAddress, http: httpx2.AsyncClient) -> None:
    async with connect(address) as connection:
        await connection.send(b"\x16\x03\x01\x02\x00 not http\r\n\r\n")
        assert (await connection.read_all()).startswith(b"HTTP/1.1 400 ")
    assert (await http.get("/health/live")).status_code == 200


async def test_two_requests_on_one_connection_are_answered_in_order(address: ListenAddress) -> None:
    request = post(PATH, BODY).replace(b"connection: close\r\n", b"")
    async with connect(address) as connection:
        await connection.send(request + post(PATH, BODY))
        assert (await connection.read_all()).count(b"HTTP/1.1 200 OK") == 2
