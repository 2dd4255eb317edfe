"""Requests that lie about their size, and JSON that is nested as deep as it goes: a refusal each, and nobody else
notices."""

from __future__ import annotations

import httpx2
import pytest

from mlx_serving.server.http.listening import ListenAddress

from .raw_http import connect

PATH = "/v1/completions"
GOOD = b'{"model": "tiny", "prompt": "Hi"}'


def _request(*headers: str, body: bytes = GOOD) -> bytes:
    return "\r\n".join([f"POST {PATH} HTTP/1.1", "host: server", *headers, "", ""]).encode() + body


@pytest.mark.parametrize(
    "request_bytes",
    [
        _request(f"content-length: {len(GOOD) - 3}"),  # the rest is no request
        _request("content-length: -1"),
        _request("content-length: many"),
        _request("content-length: 99999999999999999999999"),
        _request(f"content-length: {len(GOOD)}", "content-length: 3"),
        _request(f"content-length: {len(GOOD)}", "transfer-encoding: chunked"),
        _request("transfer-encoding: chunked", body=b"zz\r\n" + GOOD + b"\r\n0\r\n\r\n"),
        _request("transfer-encoding: chunked", body=b"-5\r\n" + GOOD + b"\r\n0\r\n\r\n"),
        _request("transfer-encoding: chunked", body=b"ffffffffffffffffff\r\n" + GOOD),
        _request("transfer-encoding: chunked", body=b"3\r\n" + GOOD + b"\r\n0\r\n\r\n"),
    ],
)
async def test_a_header_that_lies_is_refused_and_its_connection_closed(
    address: ListenAddress, http: httpx2.AsyncClient, request_bytes: bytes
) -> None:
    async with connect(address) as connection:
        await connection.send(request_bytes)
        answer = await connection.read_all()
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"HTTP/1.1 2" not in answer
    assert (await http.post(PATH, content=GOOD)).status_code == 200


async def test_a_client_that_promises_more_than_it_sends_and_leaves_costs_nothing(
    address: ListenAddress, http: httpx2.AsyncClient
) -> None:
    async with connect(address) as connection:
        await connection.send(_request(f"content-length: {len(GOOD) + 1}"))
        connection.writer.write_eof()
        await connection.read_all()
    assert (await http.post(PATH, content=GOOD)).status_code == 200


@pytest.mark.parametrize("depth", [16, 200, 700, 950, 990, 10_000])
@pytest.mark.parametrize(
    ("path", "around"),
    [
        (PATH, '{"prompt": %s}'),
        (PATH, '{"prompt": "Hi", "temperature": %s}'),
        (PATH, '{"prompt": "Hi", "logit_bias": %s}'),
        (PATH, '{"prompt": "Hi", "metadata": %s}'),
        (PATH, '{"prompt": "Hi", "nonsense": %s}'),
        ("/v1/chat/completions", '{"messages": %s}'),
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": %s}]}'),
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "Hi"}], "tools": %s}'),
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "Hi"}], "response_format": %s}'),
        (
            "/v1/chat/completions",
            '{"messages": [{"role": "user", "content": "Hi"}], "chat_template_kwargs": {"a": %s}}',
        ),
        ("/tokenize", '{"messages": %s}'),
        ("/detokenize", '{"tokens": %s}'),
        ("/v1/embeddings", '{"model": "tiny", "input": %s}'),
    ],
)
async def test_nesting_is_refused_however_deep_it_is(
    http: httpx2.AsyncClient, path: str, around: str, depth: int
) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        content = around % (opening * depth + "1" + closing * depth)
        refused = await http.post(path, content=content.encode())
        assert refused.status_code == 400, refused.text
        assert len(refused.content) < 20_000
    assert (await http.post(PATH, content=GOOD)).status_code == 200


_KEYS = ",".join(f'"k{number}": 1' for number in range(15_000))
_CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PATH, f'{{"prompt": "Hi", {_KEYS}}}'),
        (PATH, '{{"prompt": "Hi", "logit_bias": {{{}}}}}'.format(_KEYS.replace("k", "").replace(": 1", ': "a"'))),
        (PATH, '{"prompt": "Hi", "stop": [%s1]}' % ("1," * 90_000)),
        (_CHAT, '{"messages": [%s1]}' % ("1," * 90_000)),
        (_CHAT, '{"messages": [%s{}]}' % ("{}," * 30_000)),
        (_CHAT, '{"messages": [%s{}]}' % ('{"a":1},' * 24_000)),
        (_CHAT, '{"messages": [%s{}]}' % ("{}," * 60_000)),
        (_CHAT, '{"messages": [{"role": "user", "content": [%s{}]}]}' % ('{"type":"x"},' * 15_000)),
        ("/detokenize", '{"tokens": [%s"a"]}' % ('"a",' * 45_000)),
        ("/tokenize", '{"messages": [%s{}]}' % ("{}," * 30_000)),
        ("/v1/embeddings", '{"model": "tiny", "input": [%s1]}' % ('"a",' * 45_000)),
    ],
)
async def test_a_body_of_many_mistakes_is_answered_with_a_few(http: httpx2.AsyncClient, path: str, body: str) -> None:
    refused = await http.post(path, content=body.encode())
    assert refused.status_code == 400
    assert len(refused.content) < 100_000
