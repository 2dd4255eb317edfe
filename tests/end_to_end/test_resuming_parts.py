"""Messages and responses that one server leaves unfinished: the next one finishes them, in the words of their APIs."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2

from mlx_serving.server.run import EXIT_UNFINISHED

from ..command_line import LIMIT_S
from .served_process import serving
from .test_resuming import KEYS, at_once
from .tiny_server import HELLO, config_of

SCHEMA: dict[str, Any] = {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 700, "maxItems": 700}
MESSAGE: dict[str, Any] = {
    "model": "tiny",
    "messages": HELLO,
    "max_tokens": 5000,
    "temperature": 0,
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
}
RESPONSE: dict[str, Any] = {
    "model": "tiny",
    "input": "Hello",
    "temperature": 0,
    "max_output_tokens": 5000,
    "text": {"format": {"type": "json_schema", "name": "long", "schema": SCHEMA}},
}
ENDPOINTS = {"/v1/messages": MESSAGE, "/v1/responses": RESPONSE}


async def _events(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    assert response.status_code == 200
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def _is_text(event: dict[str, Any]) -> bool:
    return event["type"] in ("content_block_delta", "response.output_text.delta")


def _text(events: list[dict[str, Any]]) -> str:
    deltas = [event["delta"] for event in events if _is_text(event)]
    return "".join(delta if isinstance(delta, str) else delta["text"] for delta in deltas)


def _path(failure: dict[str, Any]) -> str:
    """Where the error says that the rest will be."""
    found = re.search(r"GET (/v1/resumed/\w+)", json.dumps(failure))
    assert found is not None, failure
    return found[1]


async def test_streams_go_on_and_whole_answers_come(tmp_path: Path, random_llama: Path) -> None:
    config = at_once(config_of(random_llama))
    begun: dict[str, list[dict[str, Any]]] = {path: [] for path in ENDPOINTS}
    streaming = {path: asyncio.Event() for path in ENDPOINTS}

    async def stream(http: httpx2.AsyncClient, path: str) -> None:
        async with http.stream("POST", path, json={**ENDPOINTS[path], "stream": True}) as response:
            async for event in _events(response):
                begun[path].append(event)
                if _is_text(event):
                    streaming[path].set()

    async with serving(tmp_path, keys=KEYS, config=config) as served, served.http() as http:
        asking = [asyncio.create_task(stream(http, path)) for path in ENDPOINTS]
        refused = [asyncio.create_task(http.post(path, json=body)) for path, body in ENDPOINTS.items()]
        async with asyncio.timeout(LIMIT_S):
            for event in streaming.values():
                await event.wait()
            await served.healthy_when(lambda report: report["active_streams"] == 4)
            served.send_signal(signal.SIGTERM)
            await asyncio.gather(*asking)
            left = [_path((await response).json()) for response in refused]
        assert await served.ended() == EXIT_UNFINISHED

    async with serving(tmp_path, keys=KEYS, config=config) as served, served.http() as http:
        assert (await served.logged("requests resumed"))["requests"] == 4
        message, response = [(await http.get(path)).json() for path in left]
        assert (message["stop_reason"], response["status"]) == ("end_turn", "completed")
        said = message["content"][0]["text"]
        assert said == response["output"][0]["content"][0]["text"]
        assert len(json.loads(said)) == 700
        for path, events in begun.items():
            async with http.stream("GET", _path(events.pop())) as response:
                rest = [event async for event in _events(response)]
            assert not {event["type"] for event in rest} & {"message_start", "content_block_start", "response.created"}
            begun[path] = [*events, *rest]
        counted = message["usage"]["output_tokens"]
        message, response = begun.values()
        assert _text(message) == _text(response) == said
        assert [event["type"] for event in message[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
        assert message[-2]["usage"]["output_tokens"] == counted
        assert [event["sequence_number"] for event in response] == list(range(len(response)))
        done = response[-1]["response"]
        assert (done["status"], done["id"]) == ("completed", response[0]["response"]["id"])
        assert (await http.get(f"/v1/responses/{done['id']}")).json() == done
        listed = (await http.get(f"/v1/responses/{done['id']}/input_items")).json()
        assert listed["data"][0]["content"][0]["text"] == "Hello"
