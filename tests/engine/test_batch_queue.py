"""Small calls that share messages, with a test at the worker's end of the pipe."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from mlx_serving.core.batch_queue import BatchQueuePolicy
from mlx_serving.engine.batch_queue import BatchQueue
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.engine.worker_client import WorkerClient
from mlx_serving.errors import DeadlineExceeded, InvalidRequest, ModelNotLoaded, ProtocolError, WorkerDied
from mlx_serving.wire.methods import TokenizeParams, TokenizeResult

from .harness import complete, request, running, send, serving, worker_pid
from .peer import Peer, connected

Message = dict[str, Any]


class Callers:
    """Many who tokenize texts over one connection; `answer` plays the worker, for which a text is its length."""

    def __init__(self, client: WorkerClient, peer: Peer, *, timeout_s: float = 30, **policy: int) -> None:
        self.queue = BatchQueue(BatchQueuePolicy(**policy), timeout_s)
        self._client = client
        self._peer = peer

    def ask(self, *texts: str) -> list[asyncio.Task[TokenizeResult]]:
        params = [TokenizeParams(model_id="m", text=text) for text in texts]
        return [asyncio.create_task(self.queue.tokenize(self._client, each)) for each in params]

    async def answer(self) -> int:
        """Answer the next message; returns how many calls it carried."""
        message = await self._peer.request()
        if message["method"] == "tokenize":
            self._peer.answer(message, result=result_of(message["params"]["text"]))
            return 1
        entries = message["params"]["requests"]
        results = [{"success": True, "result": result_of(entry["text"])} for entry in entries]
        self._peer.answer(message, result={"results": results})
        return len(entries)


def result_of(text: str) -> Message:
    return {"tokens": [len(text)], "token_strings": [text]}


async def test_calls_of_one_turn_are_one_message_and_each_gets_its_own_answer() -> None:
    async with connected() as (client, peer):
        callers = Callers(client, peer)
        tasks = callers.ask(*("x" * count for count in range(50)))
        assert await callers.answer() == 50
        assert [result.tokens for result in await asyncio.gather(*tasks)] == [[count] for count in range(50)]
        stats = callers.queue.stats()
        assert (stats.tokenize_batches, stats.tokenize_requests, stats.average_batch_size) == (1, 50, 50.0)


async def test_a_lone_call_is_a_plain_one() -> None:
    async with connected() as (client, peer):
        (task,) = Callers(client, peer).ask("abc")
        message = await peer.request()
        assert (message["method"], message["params"]) == ("tokenize", {"model_id": "m", "text": "abc"})
        peer.answer(message, result=result_of("abc"))
        assert (await task).token_strings == ["abc"]


async def test_calls_that_come_while_a_message_is_under_way_gather_for_the_next() -> None:
    async with connected() as (client, peer):
        callers = Callers(client, peer)
        tasks = callers.ask("first")
        first = await peer.request()
        for text in "abcd":
            tasks += callers.ask(text)
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert callers.queue.stats().tokenize_queue_size == 4
        peer.answer(first, result=result_of("first"))
        assert await callers.answer() == 4
        assert [result.token_strings[0] for result in await asyncio.gather(*tasks)] == ["first", *"abcd"]


async def test_a_message_has_no_more_calls_than_allowed_and_a_full_one_does_not_wait() -> None:
    async with connected() as (client, peer):
        callers = Callers(client, peer, max_batch_size=4)
        tasks = callers.ask(*"abcdefghij")
        messages = [await peer.request(), await peer.request()]  # neither is answered yet
        assert [len(message["params"]["requests"]) for message in messages] == [4, 4]
        for message in messages:
            results = [{"success": True, "result": result_of("")} for _ in range(4)]
            peer.answer(message, result={"results": results})
        assert await callers.answer() == 2
        await asyncio.gather(*tasks)


async def test_with_messages_of_one_every_call_goes_alone() -> None:
    async with connected() as (client, peer):
        callers = Callers(client, peer, max_batch_size=1)
        tasks = callers.ask(*"abc")
        assert [await callers.answer() for _ in tasks] == [1, 1, 1]
        await asyncio.gather(*tasks)


async def test_a_long_text_goes_alone_and_at_once() -> None:
    async with connected() as (client, peer):
        callers = Callers(client, peer, max_text_chars=5)
        tasks = callers.ask("short")
        held = await peer.request()
        tasks += callers.ask("longer", "wait")
        assert (await peer.request())["params"]["text"] == "longer"
        peer.answer(held, result=result_of("short"))
        assert (await peer.request())["params"]["text"] == "wait"
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_an_error_is_that_of_its_own_call_only() -> None:
    async with connected() as (client, peer):
        good, bad, strange = Callers(client, peer).ask("a", "b", "c")
        message = await peer.request()
        error = {"code": -32005, "message": "gone", "type": "ModelNotLoaded", "details": {"model": "m"}}
        results = [{"success": True, "result": result_of("a")}, {"success": False, "error": error}, {"success": True}]
        peer.answer(message, result={"results": results})
        assert (await good).tokens == [1]
        with pytest.raises(ModelNotLoaded, match="gone") as caught:
            await bad
        assert caught.value.details == {"model": "m"}
        with pytest.raises(ProtocolError, match="neither result nor error"):
            await strange


async def test_an_error_of_the_whole_message_is_that_of_all_its_calls() -> None:
    async with connected() as (client, peer):
        tasks = Callers(client, peer).ask("a", "b")
        peer.answer(await peer.request(), error={"code": -32602, "message": "no", "data": {"type": "InvalidParams"}})
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, InvalidRequest)


async def test_an_answer_of_another_length_is_a_broken_promise() -> None:
    async with connected() as (client, peer):
        tasks = Callers(client, peer).ask("a", "b")
        peer.answer(await peer.request(), result={"results": [{"success": True, "result": result_of("a")}]})
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, ProtocolError)


async def test_a_message_that_takes_too_long_fails_its_calls_and_makes_way_for_the_next() -> None:
    async with connected() as (client, peer):
        callers = Callers(client, peer, timeout_s=0.01)
        late = callers.ask("a", "b")
        await peer.request()
        later = callers.ask("c")
        for outcome in await asyncio.gather(*late, return_exceptions=True):
            assert isinstance(outcome, DeadlineExceeded)
        assert (await peer.request())["params"]["text"] == "c"
        await asyncio.gather(*later, return_exceptions=True)


async def test_a_message_too_large_for_the_pipe_is_sent_call_by_call() -> None:
    async with connected(max_message_bytes=300) as (client, peer):
        callers = Callers(client, peer)
        tasks = callers.ask("a" * 100, "b" * 100, "c" * 100)
        assert [await callers.answer() for _ in tasks] == [1, 1, 1]
        assert [result.tokens for result in await asyncio.gather(*tasks)] == [[100]] * 3
        assert callers.queue.stats().tokenize_fallbacks == 1


async def test_a_text_that_cannot_be_sent_fails_alone() -> None:
    async with connected() as (client, peer):
        callers = Callers(client, peer)
        bad, good = callers.ask("\ud800", "a")
        with pytest.raises(UnicodeEncodeError):
            await bad
        assert await callers.answer() == 1
        assert (await good).tokens == [1]


async def test_who_leaves_before_the_message_is_not_in_it() -> None:
    async with connected() as (client, peer):
        callers = Callers(client, peer)
        held = callers.ask("held")
        message = await peer.request()
        leaves, stays = callers.ask("leaves", "stays")
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.wait([leaves])
        peer.answer(message, result=result_of("held"))
        assert (await peer.request())["params"]["text"] == "stays"
        stays.cancel()
        await asyncio.wait([stays, *held])


async def test_who_leaves_while_the_message_is_under_way_takes_nobody_along() -> None:
    async with connected() as (client, peer):
        callers = Callers(client, peer)
        leaves, stays = callers.ask("leaves", "stays")
        message = await peer.request()
        leaves.cancel()
        await asyncio.wait([leaves])
        results = [{"success": True, "result": result_of(text)} for text in ("leaves", "stays")]
        peer.answer(message, result={"results": results})
        assert (await stays).tokens == [5]


async def test_the_loss_of_the_worker_fails_who_waits_and_who_was_sent() -> None:
    async with connected() as (client, peer):
        callers = Callers(client, peer)
        sent = callers.ask("sent")
        await peer.request()
        waiting = callers.ask("a", "b")
        await asyncio.sleep(0)
        loss = WorkerDied("gone")
        client.abandon(loss)
        assert await asyncio.gather(*sent, *waiting, return_exceptions=True) == [loss] * 3


async def test_calls_to_the_next_worker_do_not_wait_for_the_last_one() -> None:
    async with connected() as (old, old_peer), connected() as (new, new_peer):
        callers = Callers(old, old_peer)
        stuck = callers.ask("stuck")
        await old_peer.request()
        next_call = asyncio.create_task(callers.queue.tokenize(new, TokenizeParams(model_id="m", text="abc")))
        new_peer.answer(await new_peer.request(), result=result_of("abc"))
        assert (await next_call).tokens == [3]
        old.abandon(WorkerDied("gone"))
        await asyncio.wait(stuck)
        assert isinstance(stuck[0].exception(), WorkerDied)


async def test_a_flush_sends_who_waits_and_stats_can_begin_anew() -> None:
    async with connected() as (client, peer):
        callers = Callers(client, peer)
        callers.queue.flush()  # nobody waits
        tasks = callers.ask("held")
        held = await peer.request()
        tasks += callers.ask("a", "b")
        await asyncio.sleep(0)
        callers.queue.flush()
        assert await callers.answer() == 2
        assert callers.queue.stats().tokenize_batches == 2
        callers.queue.reset_stats()
        stats = callers.queue.stats()
        assert (stats.tokenize_batches, stats.tokenize_requests, stats.average_batch_size) == (0, 0, 0.0)
        peer.answer(held, result=result_of("held"))
        await asyncio.gather(*tasks)


async def test_a_hundred_calls_of_an_engine_are_a_few_messages(core: EngineCore) -> None:
    await complete(core, request())  # the model is loaded
    before = (await worker_calls(core)), core.batch_stats().tokenize_batches
    texts = ["x" * count for count in range(100)]
    results = await asyncio.gather(*(core.tokenize("tiny", text, add_special_tokens=False) for text in texts))
    assert [len(result.tokens) for result in results] == list(range(100))
    after = (await worker_calls(core)), core.batch_stats().tokenize_batches
    assert after[0] - before[0] == after[1] - before[1] == 2


async def test_calls_survive_the_death_of_the_worker(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core:
        await core.tokenize("tiny", "load it")
        pid = await worker_pid(core)
        send(pid, signal.SIGSTOP)
        calls = [asyncio.create_task(core.tokenize("tiny", "x" * count)) for count in range(1, 11)]
        await asyncio.sleep(0)  # they wait
        await asyncio.sleep(0)  # and are sent
        calls.append(asyncio.create_task(core.tokenize("tiny", "late")))
        send(pid, signal.SIGKILL)
        results = await asyncio.gather(*calls)
        assert results[-1].token_strings == list("late")
        assert all(result.tokens for result in results)
        assert (await core.runtime_state()).restart_count == 1


async def worker_calls(core: EngineCore) -> int:
    """What the worker's tokenizer thread was given to do so far."""
    runtime = (await core.telemetry()).runtime
    assert runtime is not None
    return runtime.tokenization.calls
