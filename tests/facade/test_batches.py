"""Many requests in one call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mlx_serving import BatchEntry, Engine
from mlx_serving.core.generation import FinishReason
from mlx_serving.errors import Aborted, EngineClosed, GenerationError, InvalidRequest, ModelNotFound, ModelNotLoaded
from mlx_serving.facade.batches import each_of, whole_answer
from mlx_serving.facade.shapes import ErrorChunk, GeneratorChunk, TokenChunk

from ..event_log import until
from .embedding import endless, params


async def test_answers_come_in_the_order_of_the_requests(engine: Engine) -> None:
    lengths = [3, 1, 8, 2, 5] * 4
    answers = await engine.batch_generate([params(max_tokens=length) for length in lengths])
    assert [entry.unwrap().stats.tokens_generated for entry in answers] == lengths
    for entry, length in zip(answers[:5], lengths, strict=False):
        assert entry.unwrap().text == await engine.generate(params(max_tokens=length))
        assert entry.unwrap().finish_reason is FinishReason.LENGTH
    assert len({entry.unwrap().stream_id for entry in answers}) == len(lengths)


async def test_a_wrong_request_fails_alone(engine: Engine) -> None:
    answers = await engine.batch_generate([params(), params(max_tokens=0), params(model="nobody"), {}, params()])
    assert [entry.success for entry in answers] == [True, False, False, False, True]
    assert [type(entry.error) for entry in answers[1:4]] == [InvalidRequest, ModelNotFound, InvalidRequest]
    assert all(entry.result is None for entry in answers[1:4])
    with pytest.raises(InvalidRequest, match="max_tokens"):
        answers[1].unwrap()


async def test_the_options_hold_for_each_request(engine: Engine) -> None:
    answers = await engine.batch_generate([params(), params()], {"timeoutMs": 1e-3})
    assert [entry.error.code for entry in answers if entry.error is not None] == ["Timeout", "Timeout"]
    cancelled = asyncio.Event()
    cancelled.set()
    (answer,) = await engine.batch_generate([params()], {"signal": cancelled})
    assert isinstance(answer.error, Aborted)


async def test_a_stream_id_is_for_one_stream_only(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="stream_id"):
        await engine.batch_generate([params()], {"stream_id": "mine"})


async def test_cancelling_the_call_ends_its_streams(engine: Engine) -> None:
    async def running() -> bool:
        return (await engine.core.runtime_state()).active_streams == 3

    async def idle() -> bool:
        return (await engine.core.runtime_state()).active_streams == 0

    async with asyncio.TaskGroup() as group:
        calling = group.create_task(engine.batch_generate([endless() for _ in range(3)]))
        await until(running)
        calling.cancel()
    await until(idle)


async def test_texts_are_tokenized_together_and_each_has_its_own_error(engine: Engine) -> None:
    before = engine.get_batch_stats()
    good, empty = {"model": "tiny", "text": "abc"}, {"model": "tiny", "text": ""}
    answers = await engine.batch_tokenize([good, {"model": "other", "text": "x"}, {"text": "x"}, empty])
    assert [entry.success for entry in answers] == [True, False, False, True]
    assert answers[0].unwrap() == await engine.tokenize({"model": "tiny", "text": "abc"})
    assert [type(entry.error) for entry in answers[1:3]] == [ModelNotLoaded, InvalidRequest]
    after = engine.get_batch_stats()
    assert after.tokenize_requests - before.tokenize_requests == 3  # two of these, and the one alone
    assert after.tokenize_batches - before.tokenize_batches == 2


async def test_no_requests_are_no_answers(engine: Engine) -> None:
    assert await engine.batch_generate([]) == await engine.batch_tokenize([]) == []


async def test_entries_have_a_plain_form() -> None:
    assert BatchEntry(success=True, result=1).to_object() == {"success": True, "result": 1}
    failed: BatchEntry[int] = BatchEntry(success=False, error=EngineClosed("over"))
    assert failed.toObject() == {
        "success": False,
        "error": {"code": "EngineClosed", "message": "over", "details": {}},
    }


async def test_no_more_jobs_than_allowed_are_under_way() -> None:
    running, most = 0, 0

    async def job() -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1
        return most

    entries = await each_of([job] * 10, width=3)
    assert len(entries) == 10
    assert most == 3


async def test_a_failed_stream_is_an_error_and_not_a_short_answer() -> None:
    async def chunks() -> AsyncIterator[GeneratorChunk]:
        yield TokenChunk("half an ")
        yield ErrorChunk(GenerationError("no"))

    with pytest.raises(GenerationError):
        await whole_answer("s", chunks())


async def test_telemetry_and_statistics_are_at_hand(engine: Engine) -> None:
    await engine.generate(params())
    told = await engine.get_telemetry()
    assert told.runtime is not None
    assert told.runtime.generation.total_tokens >= 8
    engine.flush_batches()
    assert await engine.count_tokens("tiny", "abc") == 3
    assert engine.get_batch_stats().tokenize_requests > 0
    engine.reset_batch_stats()
    assert engine.get_batch_stats().tokenize_requests == 0
