"""Who may not, who sends too much, who lies, who asks for what nobody can compute: each is refused at once, and the
streams of the others go on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anthropic
import httpx2
import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from mlx_serving.config.api_keys import hash_key

from ..command_line import LIMIT_S
from .served_process import ServedProcess, serving
from .tiny_server import ENDLESS, FORCED, HELLO, KEYS, config_of

MAX_BODY_BYTES = 8 * 1024**2
CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 1}
CLIENTS: dict[str, dict[str, object]] = {
    "other": {"models": ["short"]},
    "spent": {"daily_tokens": 1},
    "single": {"max_concurrent": 1},
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(tmp_path_factory: pytest.TempPathFactory, random_llama: Path) -> AsyncGenerator[ServedProcess]:
    keys = {"keys": [{"name": name, "hash": hash_key(name), **limits} for name, limits in CLIENTS.items()]}
    config = config_of(random_llama, server={"max_body_bytes": MAX_BODY_BYTES}, keys={"inline": json.dumps(keys)})
    async with serving(tmp_path_factory.mktemp("hostile"), keys=KEYS, config=config) as process:
        yield process


class Others:
    """A stream of somebody else's, which is read all the time."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self._read = 0
        self._more = asyncio.Event()

    async def follow(self) -> None:
        async for line in self._lines:
            assert not line.startswith('data: {"error"')
            self._read += line.startswith("data: {")
            self._more.set()

    async def go_on(self) -> None:
        """Returns when more has come than is there now."""
        before = self._read
        async with asyncio.timeout(LIMIT_S):
            while self._read == before:
                self._more.clear()
                await self._more.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def others(served: ServedProcess) -> AsyncGenerator[Others]:
    async with served.http() as http, http.stream("POST", CHAT, json={**ASKED, **ENDLESS, "stream": True}) as stream:
        followed = Others(stream.aiter_lines())
        task = asyncio.create_task(followed.follow())
        yield followed
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])


def _with_key(served: ServedProcess, key: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=served.url, headers={"authorization": f"Bearer {key}"}, timeout=LIMIT_S)


# -- who may not


async def test_a_key_that_may_not_use_a_model_is_refused(served: ServedProcess, others: Others) -> None:
    async with _with_key(served, "other") as http:
        refused = await http.post(CHAT, json=ASKED)
        listed = (await http.get("/v1/models")).json()
        allowed = await http.post(CHAT, json={**ASKED, "model": "short"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
    assert "tiny" in refused.json()["error"]["message"]
    assert [model["id"] for model in listed["data"]] == ["short"]
    assert allowed.status_code == 200
    await others.go_on()


async def test_a_spent_budget_is_refused_with_the_time_to_come_again(served: ServedProcess, others: Others) -> None:
    async with _with_key(served, "spent") as http:
        assert (await http.post(CHAT, json=ASKED)).status_code == 200
        refused = await http.post(CHAT, json=ASKED)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
    assert 1 <= int(refused.headers["retry-after"]) <= 86_400
    async with AsyncAnthropic(base_url=served.url, api_key="spent", max_retries=0) as claude:
        with pytest.raises(anthropic.RateLimitError, match="tokens per day"):
            await claude.messages.create(model="tiny", max_tokens=1, messages=HELLO)
    await others.go_on()


async def test_the_clients_come_again_when_they_are_told_to(served: ServedProcess) -> None:
    async with _with_key(served, "single") as http, _clients(served, "single") as (client, claude):
        for ask in (_ask_openai(client), _ask_anthropic(claude)):
            asked = len(served.log)
            async with http.stream("POST", CHAT, json={**ASKED, **ENDLESS, "stream": True}) as first:
                lines = first.aiter_lines()
                await anext(lines)
                waiting = asyncio.create_task(ask)
                async with asyncio.timeout(LIMIT_S):
                    while not any(line.get("status") == 429 for line in served.log[asked:]):
                        await asyncio.wait([waiting], timeout=0.05)
            assert await waiting == "a"


async def _ask_openai(client: AsyncOpenAI) -> str | None:
    done = await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1, extra_body=FORCED)
    return done.choices[0].message.content


async def _ask_anthropic(claude: AsyncAnthropic) -> str:
    await claude.messages.create(model="tiny", messages=HELLO, max_tokens=1)
    return "a"


@asynccontextmanager
async def _clients(served: ServedProcess, key: str) -> AsyncGenerator[tuple[AsyncOpenAI, AsyncAnthropic]]:
    async with (
        AsyncOpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=8) as client,
        AsyncAnthropic(base_url=served.url, api_key=key, max_retries=8) as claude,
    ):
        yield client, claude


# -- what is too much


def _schema(value: object) -> dict[str, object]:
    return {**ASKED, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": value}}}


def _form(**fields: object) -> dict[str, object]:
    return {**ASKED, "structured_outputs": fields}


_DEEP = "[" * 10_000 + "]" * 10_000
_EXPLODING = "(a{1,9}){1,9}" * 5000
_EXPLODING_ALL = [{"type": "string", "pattern": f".*(a|b){{{count}}}.*"} for count in range(40)]
_LARGE = {f"property {number:04} {'x' * 4000}": {"type": "string"} for number in range(1250)}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        pytest.param(b'{"model": "tiny", "prompt": "' + b"a" * MAX_BODY_BYTES + b'"}', 413, "at most", id="body"),
        pytest.param(b'{"messages": %s}' % _DEEP.encode(), 400, "nested", id="10,000 arrays"),
        pytest.param(json.dumps(_schema({"enum": ["a" * 5 * 1024**2]})).encode(), 400, "", id="5 MB of one string"),
        pytest.param(json.dumps(_schema({"properties": _LARGE})).encode(), 400, "", id="5 MB of properties"),
        pytest.param(json.dumps(_form(regex=_EXPLODING)).encode(), 400, "regex", id="a regex that explodes"),
        pytest.param(json.dumps(_schema({"allOf": _EXPLODING_ALL})).encode(), 400, "schema", id="schemas that explode"),
        pytest.param(json.dumps(_form(grammar="start: " + "a " * 50_000)).encode(), 400, "grammar", id="grammar"),
        pytest.param(b'{"messages": "\xff\xfe"}', 400, "UTF-8", id="bad characters"),
        pytest.param('{"messages": []}'.encode("utf-16"), 400, "JSON", id="UTF-16"),
        pytest.param(b"model=tiny&messages=hello", 400, "JSON", id="a form"),
        pytest.param(b"[]", 400, "object", id="no object"),
        pytest.param(b"", 400, "empty", id="nothing"),
    ],
)
async def test_what_nobody_can_serve_is_refused_and_the_others_go_on(
    served: ServedProcess, others: Others, body: bytes, status: int, words: str
) -> None:
    async with served.http() as http:
        refusing = asyncio.create_task(http.post(CHAT, content=body, headers={"content-type": "application/json"}))
        await others.go_on()
        refused = await refusing
    assert refused.status_code == status, refused.text[:500]
    assert words in refused.json()["error"]["message"]
    assert len(refused.content) < 20_000
    await others.go_on()


# -- who lies


@pytest.mark.parametrize(
    "headers",
    [
        "content-length: 5",
        "content-length: 9999999999",
        "content-length: -5",
        "content-length: 10\r\ncontent-length: 20",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "content-encoding: gzip",
        "x-long: " + "a" * 200_000,
    ],
)
async def test_a_header_that_lies_is_refused_and_the_others_go_on(
    served: ServedProcess, others: Others, headers: str
) -> None:
    body = json.dumps(ASKED).encode()
    if "content-length" not in headers:
        headers += f"\r\ncontent-length: {len(body)}"
    address = urlsplit(served.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: server\r\nauthorization: Bearer {KEYS['api_key']}\r\n{headers}\r\n\r\n"
    try:
        writer.write(head.encode() + body)
        async with asyncio.timeout(LIMIT_S):
            status = await reader.readline()
    finally:
        writer.close()
    assert status.startswith(b"HTTP/1.1 4"), status
    await others.go_on()


async def test_the_server_is_as_before(served: ServedProcess, others: Others) -> None:
    async with served.http() as http:
        assert (await http.post(CHAT, json=ASKED)).status_code == 200
    report = await served.health()
    assert (report["status"], report["worker"]["restarts"]) == ("healthy", 0)
    await others.go_on()
