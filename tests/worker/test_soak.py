"""Hundreds of short requests that come, share, fork, wait and are cancelled at random leave nothing behind."""

from __future__ import annotations

import gc
import random
from dataclasses import replace
from typing import get_args

import mlx.core as mx
import psutil
import pytest

from mlx_serving.core.generation import Priority, SamplingParams
from mlx_serving.errors import Overloaded

from .bench import POLICY, Bench, load

PRIORITIES: tuple[Priority, ...] = get_args(Priority)
REQUESTS = 100
KV_BUDGET_TOKENS = 400


class Crowd:
    """Clients of one worker. Every one of them hears of its end once: the bench sees to that."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self._bench = bench
        self._random = random.Random(seed)
        self._live: list[str] = []
        self._prompts: dict[str, list[int]] = {}
        self.refused = 0

    def request(self, number: int) -> None:
        chance, name = self._random, str(number)
        parent = chance.choice(self._live) if self._live and chance.random() < 0.3 else None
        prompt = self._prompts[parent] if parent else [chance.randrange(256) for _ in range(chance.randint(1, 60))]
        params = SamplingParams(
            max_tokens=chance.randint(1, 20),
            temperature=chance.choice([0.0, 1.0]),
            top_p=chance.choice([1.0, 0.9]),
            repetition_penalty=chance.choice([None, 1.2]),
            seed=number,
        )
        try:
            self._bench.start(name, prompt, params, priority=chance.choice(PRIORITIES), fork_of=parent)
        except Overloaded:
            self.refused += 1
        else:
            self._live.append(name)
            self._prompts[name] = prompt

    def cancel(self) -> None:
        name = self._random.choice(self._live)
        row = self._bench.generation.abort(name)
        assert row is not None
        self._bench.streams[name].end = row.end

    def act(self, number: int) -> None:
        for offset in range(self._random.randint(0, 3)):
            self.request(3 * number + offset)
        if self._live and self._random.random() < 0.3:
            self.cancel()
        self._bench.step(self._random.randint(0, 4))
        self._live = [name for name in self._live if self._bench.streams[name].end is None]


@pytest.mark.parametrize("name", ["llama", "gemma3", "mamba", "llama4"])
def test_nothing_is_left_of_requests_that_are_over(name: str, request: pytest.FixtureRequest) -> None:
    model = load(request.getfixturevalue(name))
    budget = KV_BUDGET_TOKENS * model.kv_bytes_per_token
    bench = Bench(model, replace(POLICY, max_num_seqs=6, max_queue=10, kv_budget_bytes=budget or None, ageing_s=1e9))
    bench.run("warm", SamplingParams(max_tokens=3))
    gc.collect()
    mx.synchronize()
    memory, handles = mx.get_active_memory(), psutil.Process().num_fds()
    crowd = Crowd(bench, seed=1)
    number = 0
    while len(bench.streams) < REQUESTS:
        crowd.act(number)
        number += 1
    bench.finish()
    assert crowd.refused > 0
    assert all(stream.end is not None for stream in bench.streams.values())
    left = bench.scheduler.load()
    assert (left.queued, left.running, left.prefilling, left.paused) == (0, 0, 0, 0)
    assert (left.kv_held_bytes, left.kv_reserved_bytes, len(bench.scheduler)) == (0, 0, 0)
    assert left.preemptions > 0
    assert list(model.runner.kept) == []
    gc.collect()
    mx.synchronize()
    assert mx.get_active_memory() <= memory + 4096
    assert psutil.Process().num_fds() == handles
