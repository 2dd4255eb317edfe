"""The short ways, and the one-model engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mlx_serving import (
    Engine,
    MetadataChunk,
    MLXEngine,
    TokenChunk,
    batch_tokenize,
    collect_chunks,
    create_mlx_engine,
    ensure_model_loaded,
    generate_text,
    generate_text_streaming,
    get_total_token_count,
    is_engine_healthy,
    retry_load_model,
    wait_for_model_ready,
)
from mlx_serving.errors import DeadlineExceeded, EngineError, InvalidRequest, ModelNotFound, ModelNotLoaded
from mlx_serving.telemetry.events import Event

from ..tiny_models import make_llama
from .embedding import configuration, params


async def test_text_whole_and_in_pieces_is_the_same(engine: Engine) -> None:
    pieces: list[str] = []
    text = await generate_text_streaming(engine, params(), pieces.append)
    assert text == "".join(pieces) == await generate_text(engine, params())
    assert len(text) > 0


async def test_chunks_are_collected_and_errors_raised(engine: Engine) -> None:
    *tokens, last = await collect_chunks(engine, params())
    assert all(isinstance(chunk, TokenChunk) for chunk in tokens)
    assert isinstance(last, MetadataChunk)
    with pytest.raises(ModelNotFound):
        await collect_chunks(engine, params(model="nobody"))
    with pytest.raises(ModelNotFound):
        await generate_text_streaming(engine, params(model="nobody"), print)


async def test_a_model_is_loaded_only_if_it_is_not_there(engine: Engine) -> None:
    loads: list[object] = []
    engine.on("model:loaded", loads.append)
    handle = await ensure_model_loaded(engine, "tiny")
    assert loads == []
    await engine.unload_model("tiny")
    assert await ensure_model_loaded(engine, {"model_id": "tiny"}) == handle
    assert len(loads) == 1
    engine.off("model:loaded")


async def test_a_load_is_tried_again_until_the_model_is_there(engine: Engine, tmp_path: Path) -> None:
    directory = make_llama(tmp_path / "late")
    weights = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(b"not yet")

    def mend(_: Event) -> None:
        (directory / "model.safetensors").write_bytes(weights)

    engine.once("error", mend)
    handle = await retry_load_model(engine, str(directory), max_retries=1, initial_delay_s=0)
    assert handle.id == str(directory)
    await engine.unload_model(handle.id)


async def test_a_load_that_keeps_failing_raises_in_the_end(engine: Engine, tmp_path: Path) -> None:
    directory = make_llama(tmp_path / "broken")
    (directory / "model.safetensors").write_bytes(b"never")
    failures: list[object] = []
    engine.on("error", failures.append)
    with pytest.raises(EngineError):
        await retry_load_model(engine, str(directory), max_retries=2, initial_delay_s=0)
    engine.off("error")
    assert len(failures) == 3


async def test_an_error_of_the_caller_is_not_tried_again(engine: Engine) -> None:
    with pytest.raises(InvalidRequest):
        await retry_load_model(engine, {"model": ""}, initial_delay_s=3600)


async def test_waiting_for_a_model_ends_when_somebody_has_loaded_it(engine: Engine) -> None:
    await engine.unload_model("tiny")
    waiting = asyncio.create_task(wait_for_model_ready(engine, "tiny"))
    await asyncio.sleep(0)
    assert not waiting.done()
    handle = await engine.load_model("tiny")
    assert await waiting == handle
    assert await wait_for_model_ready(engine, "tiny") == handle


async def test_waiting_for_a_model_that_never_comes_ends_with_the_time(engine: Engine) -> None:
    with pytest.raises(DeadlineExceeded, match=r"nobody was not ready after 0\.01 s"):
        await wait_for_model_ready(engine, "nobody", timeout_s=0.01)


async def test_texts_are_tokenized_and_counted(engine: Engine) -> None:
    ids = await batch_tokenize(engine, "tiny", ["a", "bcd", ""])
    assert [len(one) for one in ids] == [1, 3, 0]
    assert await get_total_token_count(engine, "tiny", ["a", "bcd"]) == 4
    assert await is_engine_healthy(engine)


async def test_the_one_model_engine(tiny_model: Path) -> None:
    one = MLXEngine("tiny", configuration(tiny_model))
    assert not one.is_initialized()
    with pytest.raises(ModelNotLoaded, match="init"):
        await one.generate("Hello")
    await one.init()
    assert one.is_initialized()
    assert one.get_model_handle().id == "tiny"
    greedy = {"max_tokens": 4, "temperature": 0}
    text = await one.generate("Hello", greedy)
    chunks = [chunk async for chunk in one.generate_stream("Hello", greedy)]
    assert "".join(chunk.token for chunk in chunks if isinstance(chunk, TokenChunk)) == text
    assert len(await one.tokenize("abc")) == 3
    assert (await one.get_engine().health_check()).status == "healthy"
    await one.dispose()


async def test_a_one_model_engine_that_cannot_load_leaves_no_worker(tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        await create_mlx_engine(str(tmp_path / "nothing"))


async def test_a_one_model_engine_can_be_made_ready_in_one_go(tiny_model: Path) -> None:
    one = await create_mlx_engine(str(tiny_model))
    assert one.is_initialized()
    await one.dispose()
