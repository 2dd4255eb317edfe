"""The hint that a stream shares the prompt of another one, on its way to the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mlx_serving.core.flow_control import FlowPolicy
from mlx_serving.core.generation import GenerationRequest
from mlx_serving.core.inquest import Inquest, InquestPolicy
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.engine.worker_backend import WorkerBackend
from mlx_serving.errors import GenerationError

from .harness import complete, request, supervised
from .stand_ins import stand_in

# It accepts the first stream, and refuses the others by saying what came with them.
_TELLTALE = """
handshake()
for message in messages:
    match message["method"]:
        case "shutdown":
            sys.exit(0)
        case "generate":
            params = message["params"]
            if params["stream_id"].endswith("-first"):
                result = {"stream_id": params["stream_id"], "started_at": 0.0, "prompt_tokens": 1}
                say_json({"id": message["id"], "result": result})
            else:
                told = "it forks " + params.get("fork_of", "nobody")
                say_json({"id": message["id"], "error": {"code": -32002, "message": told}})
"""


@asynccontextmanager
async def telltale(directory: Path) -> AsyncGenerator[WorkerBackend]:
    async with supervised(stand_in(directory, _TELLTALE)) as (supervisor, _):
        yield WorkerBackend(supervisor, Inquest(InquestPolicy()), FlowPolicy())


async def _told(streams: WorkerBackend, asked: GenerationRequest) -> str:
    with pytest.raises(GenerationError) as caught:
        async with streams.generate(asked):
            pytest.fail("the block must not begin")
    return caught.value.message


async def test_the_worker_learns_the_stream_that_is_forked_by_its_id_on_the_pipe(tmp_path: Path) -> None:
    async with telltale(tmp_path) as streams, streams.generate(request("first")):
        assert await _told(streams, request("second", fork_of="first")) == "it forks 1-first"


async def test_a_fork_may_come_right_behind_the_other_while_nobody_is_accepted(tmp_path: Path) -> None:
    async def first() -> None:
        async with streams.generate(request("first")):
            await told.wait()

    async def second() -> str:
        try:
            return await _told(streams, request("second", fork_of="first"))
        finally:
            told.set()

    told = asyncio.Event()
    async with telltale(tmp_path) as streams:  # which has yet to start
        _, words = await asyncio.gather(first(), second())
    assert words == "it forks 1-first"


async def test_what_is_not_open_any_more_is_forked_by_nobody(tmp_path: Path) -> None:
    async with telltale(tmp_path) as streams:
        async with streams.generate(request("first")):
            assert await _told(streams, request("second")) == "it forks nobody"
        assert await _told(streams, request("second", fork_of="first")) == "it forks nobody"
        assert await _told(streams, request("second", fork_of="second")) == "it forks nobody"


async def test_forks_have_the_text_that_they_have_alone(core: EngineCore) -> None:
    alone = [await complete(core, request("alone"))]
    asked = [request("a"), *(request(f"b{n}", fork_of="a") for n in range(3))]
    together = await asyncio.gather(*(complete(core, each) for each in asked))
    texts = {"".join(delta.text for delta in deltas) for deltas in [*alone, *together]}
    assert len(texts) == 1
