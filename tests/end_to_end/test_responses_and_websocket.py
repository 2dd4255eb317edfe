"""The Responses API with OpenAI's own client, and chats over a WebSocket, against a real server with a real worker."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import connect

from .served_process import ServedProcess
from .tiny_server import ENDLESS, FORCED, HELLO, KEYS


async def test_a_conversation_goes_on_from_a_stored_response(client: AsyncOpenAI) -> None:
    first = await client.responses.create(model="tiny", input="Hello", max_output_tokens=8, temperature=0)
    assert first.status == "incomplete"
    assert first.usage is not None
    async with client.responses.stream(
        model="tiny", input="And now?", previous_response_id=first.id, max_output_tokens=8, temperature=0
    ) as stream:
        deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
    assert deltas
    given: Any = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And now?"},
    ]
    stateless = await client.responses.create(
        model="tiny", input=given, max_output_tokens=8, temperature=0, store=False
    )
    assert stateless.output_text == "".join(deltas)
    assert (await client.responses.retrieve(first.id)).output_text == first.output_text
    await client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError, match="not stored"):
        await client.responses.create(model="tiny", input="Hi", previous_response_id=first.id)


async def test_chats_over_a_websocket_stream_beside_each_other_and_are_cancelled(tiny: ServedProcess) -> None:
    url = f"{tiny.url.replace('http', 'ws')}/v1/ws"
    headers = {"authorization": f"Bearer {KEYS['api_key']}"}
    async with asyncio.timeout(60), connect(url, additional_headers=headers) as connection:

        async def ask(request_id: str, **fields: object) -> None:
            body = {"model": "tiny", "messages": HELLO, **FORCED, **fields}
            await connection.send(json.dumps({"type": "request", "id": request_id, "body": body}))

        await ask("endless", **ENDLESS, stream=True)
        assert json.loads(await connection.recv())["id"] == "endless"
        await ask("short", max_tokens=5)
        while (message := json.loads(await connection.recv()))["id"] != "short":
            assert message["type"] == "chunk"
        assert message["data"]["choices"][0]["message"]["content"] == "aaaaa"
        await connection.send(json.dumps({"type": "cancel", "id": "endless"}))
        while (message := json.loads(await connection.recv()))["type"] == "chunk":
            pass
        assert message == {"type": "cancelled", "id": "endless"}
    await tiny.healthy_when(lambda report: report["active_streams"] == 0)
