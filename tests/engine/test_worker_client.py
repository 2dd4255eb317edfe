"""The parent's end of the pipe, with a test at the other end of it."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.engine.worker_client import WorkerClient
from mlx_serving.errors import DeadlineExceeded, MessageTooLarge, ModelNotLoaded, WorkerDied
from mlx_serving.wire import methods
from mlx_serving.wire.notifications import Heartbeat, ModelProgress, Row, StepFrame, encode_binary

from .peer import Peer, connected

STATE: dict[str, object] = {"loaded_models": [], "active_streams": 0, "restart_count": 0}


def ask(client: WorkerClient, **options: Any) -> asyncio.Task[methods.RuntimeStateResult]:
    return asyncio.create_task(client.call(methods.RUNTIME_STATE, methods.NoParams(), **options))


async def test_answers_find_their_calls_in_any_order() -> None:
    async with connected() as (client, peer):
        calls = [ask(client) for _ in range(3)]
        requests = [await peer.request() for _ in calls]
        for count, asked in reversed(list(enumerate(requests))):
            peer.answer(asked, result={**STATE, "restart_count": count})
        assert [result.restart_count for result in await asyncio.gather(*calls)] == [0, 1, 2]


async def test_an_error_is_raised_as_its_class() -> None:
    async with connected() as (client, peer):
        call = ask(client)
        data = {"type": "ModelNotLoaded", "details": {"model": "m"}}
        peer.answer(await peer.request(), error={"code": -32005, "message": "not there", "data": data})
        with pytest.raises(ModelNotLoaded, match="not there") as caught:
            await call
        assert caught.value.details == {"model": "m"}


async def test_a_message_over_the_limit_is_refused_without_being_sent() -> None:
    async with connected(max_message_bytes=200) as (client, peer):
        params = methods.TokenizeParams(model_id="m", text="x" * 200)
        with pytest.raises(MessageTooLarge) as caught:
            await client.call(methods.TOKENIZE, params)
        assert caught.value.details["limit"] == 200
        call = ask(client)
        asked = await peer.request()
        assert asked["method"] == "runtime/state"
        peer.answer(asked, result=STATE)
        await call


async def test_a_call_that_takes_too_long_ends_and_its_answer_is_passed_over() -> None:
    async with connected() as (client, peer):
        with pytest.raises(DeadlineExceeded, match=r"runtime/state took longer than 0\.01 s"):
            await ask(client, timeout_s=0.01)
        peer.answer(await peer.request(), result=STATE)
        call = ask(client)
        peer.answer(await peer.request(), result={**STATE, "restart_count": 7})
        assert (await call).restart_count == 7
        assert peer.broken == []


async def test_a_call_that_is_cancelled_leaves_the_connection_usable() -> None:
    async with connected() as (client, peer):
        cancelled = ask(client)
        asked = await peer.request()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        peer.answer(asked, result=STATE)
        call = ask(client)
        peer.answer(await peer.request(), result=STATE)
        await call


async def test_a_loss_fails_what_is_under_way_and_all_that_comes_later() -> None:
    async with connected() as (client, peer):
        calls = [ask(client) for _ in range(3)]
        for _ in calls:
            await peer.request()
        loss = WorkerDied("gone")
        client.abandon(loss)
        client.abandon(WorkerDied("twice"))
        assert await asyncio.gather(*calls, return_exceptions=True) == [loss] * 3
        with pytest.raises(WorkerDied) as caught:
            await ask(client)
        assert caught.value is loss
        client.post(methods.SHUTDOWN, methods.NoParams())  # nobody is there to hear it


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_what_is_asked_between_the_end_of_the_connection_and_the_news_of_it_is_lost_as_well(
    run: Callable[[Coroutine[None, None, None]], None],
) -> None:
    async def ask_too_late() -> None:
        async with connected() as (client, peer):
            transport = client._transport  # pyright: ignore[reportPrivateUsage]
            assert transport is not None
            peer.close()
            async with asyncio.timeout(30):
                while not transport.is_closing():  # noqa: ASYNC110  nobody tells of it
                    await asyncio.sleep(0)
            call = ask(client)
            client.post(methods.ABORT, methods.AbortParams(stream_id="a"))
            await asyncio.sleep(0)
            client.abandon(WorkerDied("it has ended"))
            with pytest.raises(WorkerDied, match="it has ended"):
                await call

    run(ask_too_late())


async def test_who_is_cancelled_at_the_moment_of_a_loss_leaves_no_unread_error() -> None:
    async with connected() as (client, peer):
        call = ask(client)
        await peer.request()
        client.abandon(WorkerDied("gone"))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_rows_go_to_their_streams_until_these_are_closed() -> None:
    async with connected() as (client, peer):
        rows: list[Row] = []
        client.open_stream("a", rows.append)
        client.open_stream("b", lambda _: pytest.fail("b was closed"))
        client.close_stream("b")
        assert client.active_streams == 1
        peer.say(encode_binary(StepFrame([Row("a", [1], "x"), Row("b", [2], "y"), Row("never", [3], "z")])))
        await answered(client, peer)
        assert rows == [Row("a", [1], "x")]


async def answered(client: WorkerClient, peer: Peer) -> None:
    """Until everything said so far was read: an answer that comes after it was."""
    call = ask(client)
    peer.answer(await peer.request(), result=STATE)
    await call


async def test_beats_and_progress_are_handed_on() -> None:
    async with connected() as (client, peer):
        beat, progress = Heartbeat(3, True), ModelProgress("m", "weights", 1, 2)
        peer.say(encode_binary(beat) + encode_binary(progress))
        await answered(client, peer)
        assert (peer.beats, peer.progress) == ([beat], [progress])


@pytest.mark.parametrize("garbage", [b"nonsense\n", b"\xc1\x00\x00\x00\x01\x00", b'{"jsonrpc": 2, "id": []}\n'])
async def test_garbage_breaks_the_connection(garbage: bytes) -> None:
    async with connected() as (client, peer):
        call = ask(client)
        await peer.request()
        peer.say(garbage)
        await asyncio.wait_for(peer.broke.wait(), 30)
        client.abandon(WorkerDied("replaced"))
        with pytest.raises(WorkerDied):
            await call


async def test_nothing_that_comes_after_garbage_is_delivered() -> None:
    """Rows were lost with the garbage: those behind it would leave a gap in what their reader gets."""
    async with connected() as (client, peer):
        rows: list[Row] = []
        client.open_stream("a", rows.append)
        sound = [encode_binary(StepFrame([Row("a", [number], str(number))])) for number in range(4)]
        client.data_received(sound[0] + sound[1][:-1] + b"\xc1" + sound[2])
        client.data_received(sound[3])
        assert [row.token_ids for row in rows] == [[0]]
        assert len(peer.broken) == 1


async def test_answers_to_nobody_and_notifications_in_json_are_passed_over() -> None:
    async with connected() as (client, peer):
        peer.say(b'{"jsonrpc":"2.0","id":999,"result":{}}\n{"jsonrpc":"2.0","method":"stream.chunk","params":{}}\n')
        peer.say(b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"what?"}}\n')
        await answered(client, peer)
        assert peer.broken == []


@given(cuts=st.lists(st.integers(0, 200), max_size=8))
def test_messages_may_come_in_any_pieces(cuts: list[int]) -> None:
    async def run() -> None:
        async with connected() as (client, peer):
            rows: list[Row] = []
            client.open_stream("a", rows.append)
            call = ask(client)
            asked = await peer.request()
            answer = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": STATE}).encode() + b"\n"
            data = encode_binary(StepFrame([Row("a", [1], "é\n")])) + answer
            edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
            for start, end in itertools.pairwise(edges):
                client.data_received(data[start:end])
            await call
            assert rows == [Row("a", [1], "é\n")]
            assert peer.broken == []

    asyncio.run(run())
