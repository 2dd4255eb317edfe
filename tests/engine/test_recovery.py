"""Streams that survive their worker: the real one, killed, stopped, restarted and poisoned."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_serving.core.generation import Delta, GenerationRequest, Structure, TokenPrompt
from mlx_serving.core.speculation.request import Speculation
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.errors import InvalidRequest, RequestCrashedWorker
from mlx_serving.telemetry.events import ErrorOccurred, GenerationCompleted, GenerationStarted, StreamRecovered

from ..event_log import EventLog, until
from ..tiny_models import token_ids
from .harness import WATCHFUL, complete, request, running, send, serving, worker_pid
from .poisoned_worker import MARKER, as_python

TOKENS = 300


def crowd(count: int = 6, tokens: int = TOKENS) -> list[GenerationRequest]:
    """Greedy and seeded requests, with penalties and stop strings among them."""
    asked: list[GenerationRequest] = []
    for number in range(count):
        one = request(f"r{number}", max_tokens=tokens)
        if number % 3 == 1:
            one = replace(one, sampling=replace(one.sampling, temperature=0.9, top_p=0.95, seed=number))
        if number % 3 == 2:
            penalties = replace(one.sampling, temperature=0.7, seed=5, repetition_penalty=1.3, frequency_penalty=0.2)
            one = replace(one, sampling=replace(penalties, stop=("\x01\x02\x03",)))
        asked.append(one)
    return asked


def text_of(deltas: Iterable[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def ids_of(deltas: Iterable[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


async def disturbed(
    core: EngineCore, asked: list[GenerationRequest], disturb: Callable[[], Awaitable[None]]
) -> list[list[Delta]]:
    """Complete the requests together; `disturb` is called when each has delivered something, and again later."""
    moments = [asyncio.Event(), asyncio.Event()]
    begun = 0

    async def one(one: GenerationRequest) -> list[Delta]:
        nonlocal begun
        deltas: list[Delta] = []
        async with core.generate(one) as stream:
            async for delta in stream:
                deltas.append(delta)
                if len(deltas) == 2:
                    begun += 1
                    if begun == len(asked):
                        moments[0].set()
                if len(ids_of(deltas)) >= TOKENS // 2:
                    moments[1].set()
        return deltas

    async def trouble() -> None:
        for moment in moments:
            await moment.wait()
            await disturb()

    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        group.create_task(trouble())
        tasks = [group.create_task(one(each)) for each in asked]
    return [task.result() for task in tasks]


async def check(core: EngineCore, disturb: Callable[[], Awaitable[None]], *, all_recover: bool = True) -> None:
    asked = crowd()
    log = EventLog(core.events)
    expected = await asyncio.gather(*(complete(core, one) for one in asked))
    assert log.of(StreamRecovered) == []
    answers = await disturbed(core, asked, disturb)
    for deltas, undisturbed in zip(answers, expected, strict=True):
        assert ids_of(deltas) == ids_of(undisturbed)
        assert text_of(deltas) == text_of(undisturbed)
        stats, before = deltas[-1].stats, undisturbed[-1].stats
        assert stats is not None
        assert before is not None
        assert (stats.prompt_tokens, stats.tokens_generated) == (before.prompt_tokens, before.tokens_generated)
        assert stats.tokens_generated == len(ids_of(deltas))
    recovered = log.of(StreamRecovered)
    assert not all_recover or {event.stream_id for event in recovered} == {one.request_id for one in asked}
    assert all(event.delivered > 0 and event.pause_s > 0 for event in recovered)
    assert len(log.of(GenerationStarted)) == len(log.of(GenerationCompleted)) == 2 * len(asked)
    assert log.of(ErrorOccurred) == []


async def test_a_kill_is_a_pause(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core:

        async def kill() -> None:
            send(await worker_pid(core), signal.SIGKILL)

        await check(core, kill)
        health = await core.health()
        assert (health.worker.restarts, health.active_streams) == (2, 0)


async def test_drafted_answers_go_on_as_if_nothing_had_been_drafted(tiny_model: Path) -> None:
    """What was delivered is text to draft from again. Of so few letters, words come again and again."""
    letters = tuple(token_ids("abcd"))
    async with running(serving(tiny_model)) as core:
        off = [
            replace(one, speculation=Speculation("off"), sampling=replace(one.sampling, allowed_token_ids=letters))
            for one in crowd(4)
        ]
        expected = await asyncio.gather(*(complete(core, one) for one in off))

        async def kill() -> None:
            send(await worker_pid(core), signal.SIGKILL)

        asked = [replace(one, speculation=Speculation("ngram")) for one in off]
        answers = await disturbed(core, asked, kill)
        assert [ids_of(deltas) for deltas in answers] == [ids_of(deltas) for deltas in expected]
        assert [text_of(deltas) for deltas in answers] == [text_of(deltas) for deltas in expected]
        ends = [deltas[-1].stats for deltas in answers]
        assert {end.speculation for end in ends if end is not None} == {"ngram"}
        assert sum(end.accepted_tokens for end in ends if end is not None) > 0
        assert (await core.health()).worker.restarts == 2


async def test_answers_with_a_form_go_on_in_it(tiny_model: Path) -> None:
    forms = [
        Structure("regex", "([a-z]{1,9} ){200}"),
        Structure("json_schema", {"type": "array", "minItems": 150, "items": {"enum": ["north", "south", 1, None]}}),
        None,
    ]
    async with running(serving(tiny_model)) as core:
        asked = [
            replace(one, structure=form, sampling=replace(one.sampling, stop=(), temperature=0.8, seed=3))
            for one, form in zip(crowd(3), forms, strict=True)
        ]
        expected = await asyncio.gather(*(complete(core, one) for one in asked))

        async def kill() -> None:
            send(await worker_pid(core), signal.SIGKILL)

        answers = await disturbed(core, asked, kill)
        assert [ids_of(deltas) for deltas in answers] == [ids_of(deltas) for deltas in expected]
        assert [text_of(deltas) for deltas in answers] == [text_of(deltas) for deltas in expected]
        assert (await core.health()).worker.restarts == 2


async def test_a_stopped_process_is_a_pause(tiny_model: Path) -> None:
    async with running(serving(tiny_model, worker=WATCHFUL)) as core:

        async def stop() -> None:
            send(await worker_pid(core), signal.SIGSTOP)

        await check(core, stop)
        crash = (await core.health()).worker.last_crash
        assert crash is not None
        assert crash.cause == "no heartbeat"


async def test_a_planned_restart_is_a_pause(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core:

        async def restart() -> None:
            core.workers[0].supervisor.restart()

        await check(core, restart)
        assert (await core.health()).worker.last_crash is None


async def test_kills_during_a_recovery_are_a_longer_pause(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core:
        asked = crowd(2)
        expected = [text_of(await complete(core, one)) for one in asked]

        async def kill_on_and_on() -> None:
            killed: set[int] = set()
            while len(killed) < 4:
                pid = (await core.health()).worker.pid
                if pid is not None and pid not in killed:
                    send(pid, signal.SIGKILL)
                    killed.add(pid)
                await asyncio.sleep(0)

        answers = await disturbed(core, asked, kill_on_and_on)
        assert [text_of(deltas) for deltas in answers] == expected
        assert (await core.health()).worker.restarts == 8


async def test_calls_in_flight_survive_as_well(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core:
        await complete(core, request())
        pid = await worker_pid(core)
        calls = [asyncio.create_task(core.runtime_state()) for _ in range(20)]
        send(pid, signal.SIGKILL)
        states = await asyncio.gather(*calls)
        assert all(state.restart_count <= 1 for state in states)


async def test_a_poisonous_request_fails_alone(tmp_path: Path, tiny_model: Path) -> None:
    healthy = crowd(30, tokens=100)
    poison = replace(request("poison"), prompt=TokenPrompt((1, 2, MARKER)))
    async with running(serving(tiny_model)) as core:
        expected = [text_of(await complete(core, one)) for one in healthy]
    async with running(serving(tiny_model, worker={"python": as_python(tmp_path)})) as core:
        log = EventLog(core.events)
        asked = [*healthy[:7], poison, *healthy[7:]]  # among the first that get a slot, who then die with it
        results = await asyncio.gather(*(complete(core, one) for one in asked), return_exceptions=True)
        error = results.pop(7)
        assert isinstance(error, RequestCrashedWorker)
        assert error.details["signal"] == "SIGABRT"
        assert error.details["losses"] in (3, 4)  # one more if it was tried while somebody else was still there
        assert error.details["finding"]
        assert [text_of(deltas) for deltas in results if not isinstance(deltas, BaseException)] == expected
        health = await core.health()
        assert (health.status, health.worker.restarts) == ("healthy", error.details["losses"])
        assert [event.context for event in log.of(ErrorOccurred)] in ([], ["stream poison"])


async def test_a_stream_that_is_left_while_it_recovers_leaves_nothing_behind(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core:
        streaming = asyncio.Event()

        async def consume() -> None:
            async with core.generate(request(max_tokens=4000)) as deltas:
                async for _ in deltas:
                    streaming.set()

        async def no_worker() -> bool:
            return (await core.health()).worker.state != "ready"

        task = asyncio.create_task(consume())
        await streaming.wait()
        send(await worker_pid(core), signal.SIGKILL)
        await until(no_worker)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await core.health()).active_streams == 0
        assert len(await complete(core, request(max_tokens=2))) > 0
        assert (await core.runtime_state()).active_streams == 0


async def test_the_worker_goes_on_behind_what_was_delivered(core: EngineCore) -> None:
    for asked in crowd(3):
        whole = await complete(core, asked)
        ids = ids_of(whole)
        for delivered in (1, 11, len(ids) - 1):
            rest = await complete(core, replace(asked, delivered=tuple(ids[:delivered])))
            assert ids_of(rest) == ids[delivered:]
            assert text_of(whole).endswith(text_of(rest))
            assert rest[-1].stats is not None
            assert rest[-1].stats.tokens_generated == len(ids)


async def test_what_ends_the_answer_already_cannot_be_gone_on_behind(core: EngineCore) -> None:
    asked = request(max_tokens=3)
    ids = ids_of(await complete(core, asked))
    with pytest.raises(InvalidRequest, match="ends after 3 of the 3 tokens") as caught:
        await complete(core, replace(asked, delivered=tuple(ids)))
    assert caught.value.field == "delivered"
