from __future__ import annotations

import asyncio

import pytest

from mlx_serving.bench.load import Generator
from mlx_serving.bench.records import Answer, Failure
from mlx_serving.bench.target import Count, TargetFacts
from mlx_serving.bench.workload import GREEDY, SAMPLED, Ask, Closed, Endpoint, Open, Sampling, Workload, asks_of

from .scripted import ScriptedTarget


def asks(count: int) -> list[Ask]:
    return asks_of(Workload(output_tokens=3), [f"prompt {index}" for index in range(count)])


async def test_a_closed_loop_keeps_so_many_under_way_and_asks_everything_once() -> None:
    target, done = ScriptedTarget(), list[int]()
    generator = Generator(target, timeout_s=None, on_done=lambda: done.append(1))
    records = await generator.run(asks(10), Closed(3), seed=0)
    assert target.most == 3
    assert sorted(ask.prompt for ask in target.asked) == sorted(ask.prompt for ask in asks(10))
    assert len(records) == len(done) == 10
    assert all(record.due_s == record.sent_s <= record.ended_s for record in records)


async def test_more_clients_than_requests_are_no_more_than_requests() -> None:
    target = ScriptedTarget()
    assert len(await Generator(target, timeout_s=None).run(asks(2), Closed(50), seed=0)) == 2
    assert target.most == 2


async def test_an_open_loop_sends_when_it_is_due_whatever_is_under_way() -> None:
    target, load = ScriptedTarget(), Open(2000.0)
    records = await Generator(target, timeout_s=None).run(asks(20), load, seed=4)
    assert [ask.prompt for ask in target.asked] == [ask.prompt for ask in asks(20)]
    due = [record.due_s - records[0].due_s for record in records]
    times = load.times(20, 4)
    assert due == pytest.approx([time - times[0] for time in times])
    assert all(record.sent_s >= record.due_s for record in records)


def test_arrivals_are_those_of_their_seed() -> None:
    assert Open(3.0).times(5, 1) == Open(3.0).times(5, 1) != Open(3.0).times(5, 2)


async def test_failures_are_records_and_the_others_go_on() -> None:
    target = ScriptedTarget(fails=lambda ask: ask.prompt.endswith("1"))
    records = await Generator(target, timeout_s=None).run(asks(3), Closed(2), seed=0)
    assert [type(record.outcome) for record in records] == [Answer, Failure, Answer]
    failure = records[1].outcome
    assert isinstance(failure, Failure)
    assert (failure.code, failure.message) == ("refused", "this prompt is refused")


class _Silent:
    about = TargetFacts("silent", "none")
    count_tokens: Count | None = None
    cancelled = False

    async def send(self, ask: Ask) -> Answer:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        raise AssertionError


async def test_what_takes_too_long_is_ended_and_fails() -> None:
    target = _Silent()
    [record] = await Generator(target, timeout_s=0.01).run(asks(1), Closed(1), seed=0)
    assert isinstance(record.outcome, Failure)
    assert (record.outcome.code, record.outcome.message) == ("timeout", "not answered within 0.01 s")
    assert target.cancelled


def test_a_mix_is_sampled_three_times_in_four() -> None:
    assert [Sampling.MIXED.params(index) for index in range(5)] == [SAMPLED, SAMPLED, SAMPLED, GREEDY, SAMPLED]
    assert Sampling.GREEDY.params(0) == GREEDY
    assert Sampling.SAMPLED.params(3) == SAMPLED


def test_an_ask_is_what_the_workload_says() -> None:
    workload = Workload(output_tokens=9, endpoint=Endpoint.CHAT, sampling=Sampling.SAMPLED)
    assert asks_of(workload, ["Hi"]) == [Ask("Hi", 9, Endpoint.CHAT, SAMPLED)]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Workload(requests=0), "requests must be at least 1, got 0"),
        (lambda: Workload(prompt_tokens=0), "prompt_tokens must be at least 1"),
        (lambda: Workload(output_tokens=-1), "output_tokens must be at least 1"),
        (lambda: Closed(0), "concurrency must be at least 1"),
        (lambda: Open(0.0), "rate must be greater than 0"),
    ],
)
def test_numbers_out_of_range_are_refused(make: type, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()
