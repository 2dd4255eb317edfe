"""More requests than may wait: the rest is refused at once, and told when to come back."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2

from .served_process import serving
from .tiny_server import ENDLESS, HELLO, config_of

ASKED: dict[str, Any] = {"model": "tiny", "messages": HELLO, "stream": True, **ENDLESS}


async def test_who_is_too_much_is_refused_while_the_others_go_on(tmp_path: Path, random_llama: Path) -> None:
    config = config_of(random_llama, scheduler={"max_num_seqs": 1, "max_queue": 2})
    async with serving(tmp_path, config=config) as served, served.http() as http, AsyncExitStack() as others:
        # They are let in while the model is still being loaded, or later: it makes no difference.
        streams = [others.enter_async_context(http.stream("POST", "/v1/chat/completions", json=ASKED)) for _ in "123"]
        responses: list[httpx2.Response] = await asyncio.gather(*streams)
        assert [response.status_code for response in responses] == [200] * 3
        for _ in range(20):
            refused = await http.post("/v1/chat/completions", json=ASKED)
            assert refused.status_code == 503
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            error = refused.json()["error"]
            assert (error["code"], error["details"]["limit"]) == ("overloaded", 2)
        assert (await served.health())["active_streams"] == 3
        await responses[0].aclose()
        await served.healthy_when(lambda health: health["active_streams"] == 2)
        last = await others.enter_async_context(http.stream("POST", "/v1/chat/completions", json=ASKED))
        assert last.status_code == 200
