"""`Engine` as a program uses it: life, models, chunks, errors."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from mlx_serving import (
    Engine,
    EngineError,
    ErrorChunk,
    GeneratorChunk,
    MetadataChunk,
    TokenChunk,
    create_engine,
    with_engine,
)
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.errors import (
    Aborted,
    DeadlineExceeded,
    EngineClosed,
    InvalidRequest,
    ModelNotFound,
    ModelNotLoaded,
    WorkerDied,
)

from ..engine.harness import send
from ..event_log import until
from .embedding import configuration, endless, params


async def chunks_of(engine: Engine, asked: dict[str, object]) -> list[GeneratorChunk]:
    return [chunk async for chunk in engine.create_generator(asked)]


async def is_idle(core: EngineCore) -> bool:
    return (await core.runtime_state()).active_streams == 0


async def test_a_good_stream_is_token_chunks_and_one_metadata_chunk(engine: Engine) -> None:
    *tokens, last = await chunks_of(engine, params())
    assert len(tokens) >= 1
    ids: list[int] = []
    for chunk in tokens:
        assert isinstance(chunk, TokenChunk)
        assert not chunk.is_final
        assert chunk.token_id == (chunk.token_ids[0] if len(chunk.token_ids) == 1 else None)
        ids += chunk.token_ids
    assert isinstance(last, MetadataChunk)
    assert last.finish_reason == "length"
    assert last.stats.tokens_generated == len(ids) == 8
    assert last.stats.prompt_tokens == 5
    assert last.stats.model_id == "tiny"
    assert last.stats.total_time >= last.stats.time_to_first_token > 0


async def test_log_probabilities_come_with_the_chunk_of_their_token(engine: Engine) -> None:
    *tokens, _ = await chunks_of(engine, params(logprobs=2))
    for chunk in tokens:
        assert isinstance(chunk, TokenChunk)
        assert chunk.logprobs is not None
        [chosen] = chunk.logprobs
        assert (chosen.token_id, chosen.logprob) == (chunk.token_id, chunk.logprob)
        assert [other.logprob for other in chosen.top_logprobs] == sorted(
            (other.logprob for other in chosen.top_logprobs), reverse=True
        )
        assert len(chosen.top_logprobs) == 2
    without = (await chunks_of(engine, params()))[0]
    assert isinstance(without, TokenChunk)
    assert (without.logprob, without.logprobs) == (None, None)


async def test_generate_is_the_text_of_the_chunks(engine: Engine) -> None:
    text = "".join(chunk.token for chunk in await chunks_of(engine, params()) if isinstance(chunk, TokenChunk))
    assert await engine.generate(params()) == text


async def test_prompts_may_be_text_templates_tokens_and_messages(engine: Engine) -> None:
    text = await engine.generate(params())
    tokens = (await engine.tokenize({"model": "tiny", "text": "Hello", "add_bos": False})).tokens
    assert await engine.generate(params(prompt={"tokens": tokens})) == text
    template = {"template": "He{{middle}}o", "variables": {"middle": "ll"}}
    assert await engine.generate(params(prompt=template)) == text
    chat = {**params(), "messages": [{"role": "user", "content": "Hello"}]}
    del chat["prompt"]
    assert await engine.generate(chat) != text
    assert await engine.generate(params(cache_salt="mine")) == text


async def test_leaving_the_loop_early_aborts_the_stream(engine: Engine) -> None:
    async for _ in engine.create_generator(endless()):
        break
    await until(lambda: is_idle(engine.core))


async def test_closing_the_generator_aborts_the_stream(engine: Engine) -> None:
    chunks = engine.create_generator(endless())
    await anext(chunks)
    await chunks.aclose()
    assert await is_idle(engine.core)


async def test_an_error_is_the_last_chunk_of_a_stream_and_raised_by_generate(engine: Engine) -> None:
    too_long = params(max_tokens=100_000)
    (only,) = await chunks_of(engine, too_long)
    assert isinstance(only, ErrorChunk)
    assert isinstance(only.error, InvalidRequest)
    assert only.error.field == "max_tokens"
    with pytest.raises(InvalidRequest, match="100000"):
        await engine.generate(too_long)
    unknown = params(model="tinny")
    (only,) = await chunks_of(engine, unknown)
    assert isinstance(only, ErrorChunk)
    with pytest.raises(ModelNotFound, match="did you mean tiny"):
        await engine.generate(unknown)


async def test_a_timeout_ends_a_stream(engine: Engine) -> None:
    with pytest.raises(DeadlineExceeded):
        await engine.generate(endless(), {"timeout_ms": 50})
    assert await is_idle(engine.core)
    last = [chunk async for chunk in engine.create_generator(endless(), {"timeoutMs": 50})][-1]
    assert isinstance(last, ErrorChunk)
    assert isinstance(last.error, DeadlineExceeded)


async def test_models_are_loaded_listed_and_unloaded(engine: Engine, tiny_model: Path) -> None:
    handle = await engine.load_model(str(tiny_model))
    assert (handle.id, handle.state, handle.context_length) == (str(tiny_model), "ready", 4096)
    assert handle.descriptor.source == "local"
    assert handle.metadata["model_type"] == "llama"
    assert handle.metadata["capabilities"] == {
        "batch": True,
        "batch_prefill": True,
        "trim": True,
        "quantise_cache": False,
        "draft": True,
        "images": None,
    }
    assert engine.get_model_info(str(tiny_model)) == handle
    assert {model.id for model in engine.list_models()} == {"tiny", str(tiny_model)}
    assert engine.get_cache_stats().loaded_models == 2
    await engine.unload_model(str(tiny_model))
    assert engine.get_model_info(str(tiny_model)) is None
    with pytest.raises(ModelNotFound):
        await engine.unload_model("no-such-model")
    await engine.warmup_model("tiny")


async def test_tokens_go_back_and_forth(engine: Engine) -> None:
    response = await engine.tokenize({"model": "tiny", "text": "héllo"})
    assert len(response.token_strings) == len(response.tokens) == 6
    assert await engine.detokenize("tiny", response.tokens) == "héllo"
    assert await engine.count_tokens("tiny", "héllo") == 6
    with pytest.raises(ModelNotLoaded):
        await engine.tokenize({"model": "other", "text": "x"})
    with pytest.raises(ModelNotLoaded):
        await engine.detokenize("other", [1])


async def test_the_runtime_tells_what_it_is(engine: Engine) -> None:
    info = await engine.get_runtime_info()
    assert "generate" in info.capabilities
    health = await engine.health_check()
    assert (health.status, health.worker.pid) == ("healthy", info.pid)


async def test_a_death_in_mid_stream_is_a_pause(tiny_model: Path) -> None:
    asked = {**endless(), "max_tokens": 300}
    async with Engine(configuration(tiny_model)) as engine:
        expected = await engine.generate(asked)
        seen: list[GeneratorChunk] = []
        async for chunk in engine.create_generator(asked):
            if len(seen) == 3:
                send((await engine.health_check()).worker.pid, signal.SIGKILL)
            seen.append(chunk)
        assert "".join(chunk.token for chunk in seen if isinstance(chunk, TokenChunk)) == expected
        assert isinstance(seen[-1], MetadataChunk)
        assert (await engine.health_check()).worker.restarts == 1


async def test_an_engine_starts_with_its_first_call_and_ends_for_good(tiny_model: Path) -> None:
    engine = Engine(configuration(tiny_model))
    assert (await engine.health_check()).worker.state == "stopped"
    await engine.load_model("tiny")
    await engine.shutdown()
    await engine.shutdown()
    for work in (
        engine.start(),
        engine.generate(params()),
        engine.load_model("tiny"),
        engine.tokenize({"model": "tiny", "text": "x"}),
        engine.get_runtime_info(),
    ):
        with pytest.raises(EngineClosed):
            await work
    assert engine.list_models() == []
    await engine.dispose()


async def test_disposing_during_the_start_ends_cleanly(tiny_model: Path) -> None:
    engine = Engine(configuration(tiny_model))
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0)
    await engine.dispose()
    with pytest.raises(EngineClosed):
        await starting


async def test_whoever_gives_up_on_the_start_leaves_nothing_behind(tiny_model: Path) -> None:
    engine = Engine(configuration(tiny_model))
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await engine.dispose()


async def test_create_engine_starts_it_or_leaves_nothing_behind(tiny_model: Path, tmp_path: Path) -> None:
    engine = await create_engine(configuration(tiny_model))
    assert (await engine.health_check()).worker.state == "ready"
    await engine.dispose()
    config = {**configuration(tiny_model), "worker": {"max_restarts": 0}}
    with pytest.raises(WorkerDied, match="cannot be started"):
        await create_engine(config, python_path=str(tmp_path / "missing"))


async def test_with_engine_disposes_of_it_whatever_happens(tiny_model: Path) -> None:
    kept: list[Engine] = []

    async def use(engine: Engine) -> str:
        kept.append(engine)
        return await engine.generate(params())

    async def fail(engine: Engine) -> None:
        kept.append(engine)
        raise Aborted("no")

    assert len(await with_engine(use, configuration(tiny_model))) > 0
    with pytest.raises(Aborted):
        await with_engine(fail, configuration(tiny_model))
    for engine in kept:
        with pytest.raises(EngineClosed):
            await engine.start()


def test_a_configuration_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="workr"):
        Engine({"workr": {}})


def test_errors_have_a_plain_form() -> None:
    error = ModelNotLoaded("gone", model="m")
    assert isinstance(error, EngineError)
    assert error.to_object() == {"code": "ModelNotLoaded", "message": "gone", "details": {"model": "m"}}
    assert error.toObject() == error.to_object()


async def test_a_loaded_model_is_not_quietly_kept_when_it_is_asked_for_with_other_options(tiny_model: Path) -> None:
    async with Engine() as engine:
        await engine.load_model(str(tiny_model))
        with pytest.raises(InvalidRequest, match="other options"):
            await engine.load_model({"model": str(tiny_model), "context_length": 64})
        with pytest.raises(InvalidRequest, match=r"is loaded from .* with other options"):
            await engine.load_model({"model": "org/other", "name": str(tiny_model)})
        await engine.unload_model(str(tiny_model))
        assert (await engine.load_model({"model": str(tiny_model), "context_length": 64})).context_length == 64
        assert (await engine.load_model(str(tiny_model))).context_length == 64


async def test_a_generator_that_is_not_asked_for_more_is_paused(engine: Engine) -> None:
    async def is_paused() -> bool:
        return (await engine.core.runtime_state()).paused_streams == 1

    expected = await engine.generate(params(max_tokens=600))
    chunks = engine.create_generator(params(max_tokens=600))
    text = [await anext(chunks)]
    await until(is_paused)
    assert await engine.generate(params(max_tokens=600)) == expected
    text += [chunk async for chunk in chunks]
    assert "".join(chunk.token for chunk in text if isinstance(chunk, TokenChunk)) == expected


async def test_another_event_loop_is_told_so_and_does_not_wait_for_ever(engine: Engine) -> None:
    def elsewhere(use: Callable[[], Coroutine[object, object, object]]) -> None:
        with pytest.raises(InvalidRequest, match="lives in another event loop: use it within one"):
            asyncio.run(use())

    async def unload() -> None:
        await engine.unload_model("tiny")

    uses: list[Callable[[], Coroutine[object, object, object]]] = [
        lambda: engine.generate(params()),
        lambda: engine.load_model("tiny"),
        lambda: engine.tokenize({"model": "tiny", "text": "a"}),
        engine.get_telemetry,
        engine.shutdown,
        unload,
    ]
    for use in uses:
        await asyncio.to_thread(elsewhere, use)
    assert len(await engine.generate(params())) > 0


def test_a_loop_that_has_ended_is_called_that(tiny_model: Path) -> None:
    engine = Engine(configuration(tiny_model))

    async def begin_and_leave() -> None:
        await engine.start()
        await engine.shutdown()

    asyncio.run(begin_and_leave())
    with pytest.raises(InvalidRequest, match="another event loop, which has ended"):
        asyncio.run(engine.load_model("tiny"))


@pytest.mark.parametrize("wrong", [{"prompt": "a\ud800"}, {"prompt": "a", "stop": ["a\ud800"]}])
async def test_half_a_surrogate_pair_is_no_text(engine: Engine, wrong: dict[str, object]) -> None:
    name = "stop" if "stop" in wrong else "prompt"
    with pytest.raises(InvalidRequest, match=f"{name} is no text: it has '.ud800' at character 1") as caught:
        await engine.generate({"model": "tiny", "max_tokens": 1, **wrong})
    assert caught.value.field == name


async def test_what_json_cannot_say_is_refused(engine: Engine) -> None:
    messages = [{"role": "user", "content": object()}]
    with pytest.raises(InvalidRequest, match="cannot be sent as JSON"):
        await engine.generate({"model": "tiny", "messages": messages, "max_tokens": 1})
