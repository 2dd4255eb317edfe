"""What one server leaves unfinished, the next one finishes: the same bytes as if nothing had happened."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mlx_serving.server.run import EXIT_UNFINISHED

from ..command_line import LIMIT_S, run
from .served_process import ServedProcess, serving
from .tiny_server import config_of

LENGTH = 500
KEYS = {"api_key": "key-of-the-clients", "admin_key": "key-of-the-operator"}
GREEDY: dict[str, Any] = {"temperature": 0}
SEEDED: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "seed": 11}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def asked(path: str, number: int, **fields: Any) -> dict[str, Any]:
    """A request for a text that no end of the turn cuts short."""
    prompt = (
        {"messages": [{"role": "user", "content": f"Hello {number}"}]} if path == CHAT else {"prompt": f"Go {number}"}
    )
    return {"model": "tiny", "max_tokens": LENGTH, "ignore_eos": True, **prompt, **fields}


async def events(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """Those of a stream, without the last `[DONE]`, which must come unless an error does."""
    done = failed = False
    rest = b""
    async for part in response.aiter_bytes():
        *blocks, rest = (rest + part).split(b"\n\n")
        for data in (block.removeprefix(b"data: ") for block in blocks if block.startswith(b"data: ")):
            assert not done
            done = data == b"[DONE]"
            if not done:
                document = json.loads(data)
                failed = "error" in document
                yield document
    assert done or failed


def text_of(document: Mapping[str, Any]) -> str:
    """Of all choices, in their order."""
    parts: list[str] = []
    for choice in document["choices"]:
        message = choice.get("message") or choice.get("delta")
        parts.append((message.get("content") or "") if message is not None else choice["text"])
    return "".join(parts)


async def whole(http: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from one time to the next: what was in the cache, and what was drafted."""
    usage = {name: count for name, count in answer["usage"].items() if not name.endswith("_details")}
    return {**answer, "id": 0, "created": 0, "usage": usage}


class Client:
    """One client, that reads its stream until it is cut off, and later the rest."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        self.path = path
        self.body = body
        self.documents: list[dict[str, Any]] = []
        self.error: dict[str, Any] = {}
        self.begun = asyncio.Event()

    @property
    def text(self) -> str:
        return "".join(text_of(document) for document in self.documents)

    async def ask(self, http: httpx2.AsyncClient) -> None:
        if not self.body.get("stream"):
            self.begun.set()
            refused = await http.post(self.path, json=self.body)
            assert refused.status_code == 503
            self.error = refused.json()["error"]
            return
        async with http.stream("POST", self.path, json=self.body) as response:
            assert response.status_code == 200
            await self._take(response)
        assert self.error

    async def fetch(self, http: httpx2.AsyncClient) -> None:
        path = self.error["details"]["resume"]["path"]
        if not self.body.get("stream"):
            answer = await http.get(path)
            assert answer.status_code == 200, answer.text
            self.documents = [answer.json()]
            return
        self.error = {}
        async with http.stream("GET", path) as response:
            assert response.status_code == 200
            await self._take(response)

    async def _take(self, response: httpx2.Response) -> None:
        async for document in events(response):
            if "error" in document:
                self.error = document["error"]
            else:
                self.documents.append(document)
                if text_of(document):
                    self.begun.set()


def at_once(config: dict[str, Any]) -> dict[str, Any]:
    """Shutdowns wait for nobody."""
    return {**config, "server": {**config["server"], "drain_timeout_s": 0, "resume_file": "unfinished"}}


async def cut_off(served: ServedProcess, clients: list[Client]) -> int:
    """Ask, stop the server while all are being answered, return its exit status."""
    async with served.http() as http, asyncio.timeout(LIMIT_S):
        asking = [asyncio.create_task(client.ask(http)) for client in clients]
        for client in clients:
            await client.begun.wait()
        await served.healthy_when(lambda report: report["active_streams"] >= len(clients))
        served.send_signal(signal.SIGTERM)
        await asyncio.gather(*asking)
    return await served.ended()


async def test_greedy_and_seeded_streamed_and_whole_answers_go_on_to_the_same_byte(
    tmp_path: Path, random_llama: Path
) -> None:
    config = at_once(config_of(random_llama))
    clients = [
        Client(path, asked(path, number, stream=stream, **sampling))
        for number, (path, stream, sampling) in enumerate(
            (path, stream, sampling)
            for path in (CHAT, TEXT)
            for stream in (True, False)
            for sampling in (GREEDY, SEEDED)
        )
    ]
    async with serving(tmp_path, keys=KEYS, config=config) as served:
        assert await cut_off(served, clients) == EXIT_UNFINISHED
        left = await served.logged("requests left")
        assert (left["requests"], left["unfinished"]) == (len(clients), len(clients))
    file = tmp_path / "unfinished"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    data = file.read_bytes()
    assert not any(key.encode() in data for key in KEYS.values())
    assert all(client.error["code"] == "shutting_down" for client in clients)
    for client in clients:
        if client.body["stream"]:
            assert client.error["details"]["resume"]["id"] == client.documents[0]["id"]
            assert len(client.text) > 0

    async with serving(tmp_path, keys=KEYS, config=config) as served, served.http() as http:
        assert (await served.logged("requests resumed"))["requests"] == len(clients)
        assert not file.exists()
        async with served.http("admin_key") as other:  # it may ask, but did not
            refused = await other.get(clients[0].error["details"]["resume"]["path"])
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
        await asyncio.gather(*(client.fetch(http) for client in clients))
        for client in clients:
            expected = await whole(http, client.path, {**client.body, "stream": False})
            assert client.text == text_of(expected)
            last = client.documents[-1]
            assert last["choices"][0]["finish_reason"] == "length"
            assert len({document["id"] for document in client.documents}) == 1
            if not client.body["stream"]:
                assert comparable(last) == comparable(expected)
            elif client.path == CHAT:
                roles = [document["choices"][0]["delta"].get("role") for document in client.documents]
                assert roles == ["assistant"] + [None] * (len(roles) - 1)
        again = await http.get(f"/v1/resumed/{clients[0].documents[0]['id']}")
        assert again.status_code == 404  # it was fetched
        log = json.dumps(served.log)
        assert "Hello 0" not in log
        assert KEYS["api_key"] not in log
        served.send_signal(signal.SIGTERM)
        assert await served.ended() == 0
    assert not file.exists()


async def test_choices_logprobs_usage_and_requests_without_a_seed_go_on(tmp_path: Path, random_llama: Path) -> None:
    config = at_once(config_of(random_llama))
    several = Client(CHAT, asked(CHAT, 1, stream=True, n=2, stream_options={"include_usage": True}, **SEEDED))
    told = Client(TEXT, asked(TEXT, 2, stream=True, logprobs=1, **GREEDY))
    unseeded = Client(TEXT, asked(TEXT, 3, stream=True, temperature=1.0))
    clients = [several, told, unseeded]
    async with serving(tmp_path, config=config) as served:
        assert await cut_off(served, clients) == EXIT_UNFINISHED
    async with serving(tmp_path, config=config) as served, served.http() as http:
        await asyncio.gather(*(client.fetch(http) for client in clients))
        expected = await whole(http, CHAT, {**several.body, "stream": False, "stream_options": None})
        for index in range(2):
            parts = [
                document["choices"][0]["delta"].get("content") or ""
                for document in several.documents
                if document["choices"] and document["choices"][0]["index"] == index
            ]
            assert "".join(parts) == expected["choices"][index]["message"]["content"]
        assert comparable(several.documents[-1])["usage"] == comparable(expected)["usage"]
        expected = (await whole(http, TEXT, {**told.body, "stream": False}))["choices"][0]["logprobs"]
        for name in ("tokens", "text_offset"):
            told_of = [one["choices"][0]["logprobs"] for one in told.documents]
            assert [each for logprobs in told_of if logprobs for each in logprobs[name]] == expected[name]
        assert unseeded.documents[-1]["choices"][0]["finish_reason"] == "length"


async def test_an_answer_may_be_cut_off_again_and_again_and_be_had_whole(tmp_path: Path, random_llama: Path) -> None:
    config = at_once(config_of(random_llama))
    length = {"max_tokens": 1500}
    reader = Client(CHAT, asked(CHAT, 1, stream=True, **length, **SEEDED))
    late = Client(TEXT, asked(TEXT, 2, stream=True, **length, **SEEDED))
    async with serving(tmp_path, config=config) as served:
        assert await cut_off(served, [reader, late]) == EXIT_UNFINISHED
    before = reader.text
    async with serving(tmp_path, config=config) as served, served.http() as http:
        reader.begun.clear()
        reading = asyncio.create_task(reader.fetch(http))
        await reader.begun.wait()
        served.send_signal(signal.SIGTERM)
        await reading
        assert reader.error["details"]["resume"]["id"] == reader.documents[0]["id"]
        assert await served.ended() == EXIT_UNFINISHED
    assert len(before) < len(reader.text)
    async with serving(tmp_path, config=config) as served, served.http() as http:
        http.timeout = 3 * LIMIT_S
        await reader.fetch(http)
        assert reader.text == text_of(await whole(http, CHAT, {**reader.body, "stream": False}))
        bad = await http.get(late.error["details"]["resume"]["path"], params={"whole": "perhaps"})
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, "whole")
        answer = await http.get(late.error["details"]["resume"]["path"], params={"whole": "true"})
        assert answer.json()["object"] == "text_completion"
        assert text_of(answer.json()) == text_of(await whole(http, TEXT, {**late.body, "stream": False}))


async def test_a_second_signal_leaves_them_too(tmp_path: Path, random_llama: Path) -> None:
    config = config_of(random_llama, server={"resume_file": "unfinished"})
    client = Client(TEXT, asked(TEXT, 1, stream=True, max_tokens=50_000, **GREEDY))
    async with serving(tmp_path, config=config) as served, served.http() as http:
        asking = asyncio.create_task(client.ask(http))
        await client.begun.wait()
        served.send_signal(signal.SIGTERM)
        await served.logged("draining", in_flight=1)
        served.send_signal(signal.SIGTERM)
        await asking
        assert await served.ended() == 128 + signal.SIGTERM
    assert client.error["details"]["resume"]["id"] == client.documents[0]["id"]
    assert (tmp_path / "unfinished").exists()


async def test_what_is_too_old_is_forgotten(tmp_path: Path, random_llama: Path) -> None:
    config = at_once(config_of(random_llama))
    config["server"]["resume_max_age_s"] = 1
    client = Client(TEXT, asked(TEXT, 1, stream=True, max_tokens=50_000, **GREEDY))
    async with serving(tmp_path, config=config) as served:
        assert await cut_off(served, [client]) == EXIT_UNFINISHED
    async with serving(tmp_path, config=config) as served, served.http() as http, asyncio.timeout(LIMIT_S):
        while (await http.get(client.error["details"]["resume"]["path"], params={"whole": "x"})).status_code != 404:
            pass  # every answer takes a round trip, which is wait enough
        await served.healthy_when(lambda report: report["active_streams"] == 0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"my diary", "something else"), (None, "it is a directory")],
)
def test_a_file_that_is_not_ours_is_told_and_left_alone(
    tmp_path: Path, random_llama: Path, content: bytes | None, problem: str
) -> None:
    file = tmp_path / "unfinished"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    arguments = ("--model", str(random_llama), "--port", "0", "--resume-file", str(file))
    ended = run(tmp_path, "serve", *arguments)
    assert ended.returncode == 2
    assert problem in ended.stderr
    assert str(file) in ended.stderr
    assert content is None or file.read_bytes() == content


async def test_a_damaged_file_is_kept_aside_and_told(tmp_path: Path, random_llama: Path) -> None:
    config = at_once(config_of(random_llama))
    client = Client(TEXT, asked(TEXT, 1, stream=True, max_tokens=50_000, **GREEDY))
    async with serving(tmp_path, config=config) as served:
        await cut_off(served, [client])
    file = tmp_path / "unfinished"
    damaged = file.read_bytes()[:-10]
    file.write_bytes(damaged)
    async with serving(tmp_path, config=config) as served, served.http() as http:
        told = await served.logged("resume file damaged")
        assert (told["file"], told["kept_as"]) == (str(file), f"{file}.damaged")
        assert file.with_name("unfinished.damaged").read_bytes() == damaged
        assert not file.exists()
        assert (await http.get(client.error["details"]["resume"]["path"])).status_code == 404
