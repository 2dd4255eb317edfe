"""The worker stays below its bounds whatever is asked of it, and gives up in the right order what it has."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_serving.core.generation import SamplingParams
from mlx_serving.core.memory_budget import Bound, MemoryPolicy
from mlx_serving.core.prefix.index import PrefixCachePolicy
from mlx_serving.core.scheduler import Scheduler
from mlx_serving.errors import ContextLengthExceeded, InsufficientMemory, Overloaded
from mlx_serving.worker.generation import Generation
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.memory import MemoryGuard
from mlx_serving.worker.memory_bounds import MemoryBounds
from mlx_serving.worker.prefix.cache import PrefixCache
from mlx_serving.worker.vision.features import FeatureCache

from ..tiny_models import make_llama
from .bench import POLICY, Bench, load

MIB = 1 << 20
PLAIN = MemoryPolicy(share=1.0, buffer_cache_bytes=0, prefill_bytes=MIB)
LONG = SamplingParams(max_tokens=60, logit_bias={258: -100})


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """What a guard tells MLX holds for the process: the next test is to have what it had."""
    limit, cache = mx.get_memory_limit(), mx.set_cache_limit(0)
    yield
    mx.set_memory_limit(limit)
    mx.set_cache_limit(cache)


@dataclass
class Machine:
    """With that much memory, some of it taken by others."""

    size: int
    others: int = 0
    bounds: list[Bound] = field(default_factory=list[Bound])

    def read(self) -> list[Bound]:
        return [Bound("RAM", self.size, self.others), *self.bounds]


class Guarded(Bench):
    """Asks the guard before every step, which asks the machine every time."""

    def __init__(
        self,
        directory: Path,
        machine: Machine,
        policy: MemoryPolicy = PLAIN,
        *,
        kv_share: float = 1.0,
        interval_s: float = 0.0,
    ) -> None:
        gc.collect()
        self.base = mx.get_active_memory()
        scheduler = Scheduler(replace(POLICY, max_queue=100))
        generation = Generation(scheduler, PrefixCache(PrefixCachePolicy(enabled=False)), FeatureCache())
        self.guard = MemoryGuard(
            policy, kv_share, scheduler.memory, generation.models, machine.read, interval_s=interval_s
        )
        super().__init__(load(directory), scheduler=scheduler, generation=generation)
        self.guard.add_model(self.model.model_id, self.weights)

    @property
    def weights(self) -> int:
        return self.model.facts.memory_bytes

    @property
    def taken(self) -> int:
        return mx.get_active_memory() - self.base

    def turn(self) -> None:
        self.guard.refresh()
        self.step()

    def finish(self) -> None:
        while not self.generation.is_idle:
            self.turn()


def test_kv_caches_get_what_the_weights_leave(llama: Path) -> None:
    bench = Guarded(llama, Machine(8 * MIB))
    plan = bench.guard.plan
    assert plan.weights == bench.weights
    assert plan.kv_caches == 8 * MIB - MIB - plan.weights
    bench.guard.remove_model(bench.model.model_id)
    assert bench.guard.plan.weights == 0


def test_after_a_death_for_memory_they_get_a_share_of_it(llama: Path) -> None:
    whole = Guarded(llama, Machine(8 * MIB)).guard.plan.kv_caches
    assert Guarded(llama, Machine(8 * MIB), kv_share=0.75).guard.plan.kv_caches == int(0.75 * whole)


def test_an_overload_queues_and_stays_below_the_bound(llama: Path) -> None:
    alone = Bench(load(llama)).run("overload", LONG).text
    bench = Guarded(llama, Machine(4 * MIB))
    for number in range(40):
        bench.start(str(number), "overload", LONG)
    most = 0
    while not bench.generation.is_idle:
        bench.turn()
        most = max(most, bench.taken)
    assert most <= 4 * MIB
    assert {stream.text for stream in bench.streams.values()} == {alone}


@pytest.mark.parametrize("long", [400, 40])
def test_room_to_grow_and_padding_beside_longer_rows_stay_below_the_bound(tmp_path: Path, long: int) -> None:
    """Heads are wide, so that a token of a cache takes much beside the weights."""
    model = make_llama(tmp_path, head_dim=256)
    prompts = ["x" * long, *"abcdefg"]
    alone = [Bench(load(model)).run(prompt, LONG).text for prompt in prompts]
    bound = Bench(load(model)).model.facts.memory_bytes + MIB + (long + 300) * 8 * 1024
    bench = Guarded(model, Machine(bound))
    assert bench.model.kv_bytes_per_token == 8 * 1024
    for number, prompt in enumerate(prompts):
        bench.start(str(number), prompt, LONG)
    most = 0
    while not bench.generation.is_idle:
        bench.turn()
        most = max(most, bench.taken)
    assert most <= bound
    assert [bench.streams[str(number)].text for number in range(len(prompts))] == alone


def test_what_can_never_fit_is_refused_with_the_limit(llama: Path) -> None:
    bench = Guarded(llama, Machine(2 * MIB))
    with pytest.raises(ContextLengthExceeded) as refusal:
        bench.start("a", "a", SamplingParams(max_tokens=10_000))
    limit = refusal.value.details["limit"]
    assert limit == bench.guard.plan.kv_caches // bench.model.kv_bytes_per_token + 1


def test_when_others_take_memory_sequences_give_way_and_come_back(llama: Path) -> None:
    expected = Bench(load(llama)).run("others", LONG).text
    machine = Machine(8 * MIB)
    bench = Guarded(llama, machine)
    for number in range(4):
        bench.start(str(number), "others", LONG)
    for _ in range(20):
        bench.turn()
    before = bench.scheduler.memory.held
    machine.others = 8 * MIB - MIB - bench.weights - before // 2
    bench.turn()
    assert bench.scheduler.memory.held <= before // 2
    assert bench.scheduler.load().preemptions >= 2
    machine.others = 0
    bench.turn()
    bench.finish()
    assert [stream.text for stream in bench.streams.values()] == [expected] * 4


def test_others_may_take_all_there_is_and_give_it_back(llama: Path) -> None:
    machine = Machine(256 * MIB)
    bench = Guarded(llama, machine, MemoryPolicy(share=1.0))
    before = bench.run("text", LONG)
    machine.others = 2 * machine.size
    bench.guard.refresh()
    assert bench.guard.plan.capacity.size == 0
    machine.others = 0
    bench.guard.refresh()
    assert bench.run("text", LONG).tokens == before.tokens


def test_who_waits_for_memory_that_others_took_is_told_to_come_later(llama: Path) -> None:
    machine = Machine(8 * MIB)
    bench = Guarded(llama, machine)
    for number in range(9):  # one more than run at once
        bench.start(str(number), "a" * 100, SamplingParams(max_tokens=300, logit_bias={258: -100}))
    bench.turn()
    machine.others = 8 * MIB - MIB - bench.weights - 200 * bench.model.kv_bytes_per_token
    bench.turn()
    with pytest.raises(Overloaded, match="Memory is short"):
        bench.start("later", "a" * 100, SamplingParams(max_tokens=300))
    bench.start("small", "a", SamplingParams(max_tokens=3))
    bench.finish()
    assert bench.streams["8"].failed.error.data["type"] == "Overloaded"
    assert bench.streams["8"].failed.error.data["details"] == {"retry_after": 10.0}
    assert bench.streams["small"].completed.stats.tokens_generated == 3
    assert bench.guard.next_look is not None
    assert [bench.streams[str(number)].end for number in range(8)] == [None] * 8
    machine.others = 0
    bench.turn()
    bench.finish()
    assert [bench.streams[str(number)].completed.stats.tokens_generated for number in range(8)] == [300] * 8


def test_who_comes_while_caches_have_room_to_grow_is_served_after_those_who_run(llama: Path) -> None:
    machine = Machine(8 * MIB)
    bench = Guarded(llama, machine)
    alone = bench.run("a" * 100, LONG).text
    machine.size = bench.weights + MIB + 180 * bench.model.kv_bytes_per_token
    bench.start("runs", "a", LONG)  # its cache takes memory for more tokens than it has
    while not bench.streams["runs"].tokens:
        bench.turn()
    bench.guard.refresh()
    late = bench.start("late", "a" * 100, LONG)
    bench.turn()
    assert bench.scheduler.load().queued == 1
    bench.finish()
    assert bench.streams["runs"].completed.stats.tokens_generated == 60
    assert late.text == alone


def test_the_buffer_cache_is_given_up_before_a_sequence_waits(llama: Path) -> None:
    policy = replace(PLAIN, buffer_cache_bytes=4 * MIB)
    bench = Guarded(llama, Machine(8 * MIB), policy)
    own = bench.guard.plan.kv_caches
    assert bench.guard.plan.buffer_cache == 4 * MIB
    tokens = own // bench.model.kv_bytes_per_token // 3
    for number in range(4):
        bench.start(str(number), "a", SamplingParams(max_tokens=tokens, logit_bias={258: -100}))
    bench.turn()
    assert bench.guard.plan.buffer_cache == MIB // 2
    assert len(bench.scheduler.load().models) == 1
    assert bench.scheduler.load().prefilling + bench.scheduler.load().running == 4
    assert mx.get_cache_memory() <= MIB // 2


def test_the_buffer_cache_is_given_up_for_a_sequence_that_would_not_fit_beside_it(llama: Path) -> None:
    policy = replace(PLAIN, buffer_cache_bytes=4 * MIB)
    bench = Guarded(llama, Machine(5 * MIB + Bench(load(llama)).model.facts.memory_bytes), policy)
    assert bench.guard.plan.kv_caches == 0
    tokens = MIB // bench.model.kv_bytes_per_token
    bench.start("a", "a", SamplingParams(max_tokens=tokens, logit_bias={258: -100}))
    bench.finish()
    assert bench.streams["a"].completed.stats.tokens_generated == tokens
    assert bench.guard.plan.buffer_cache == MIB // 2


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(
    llama: Path, qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Guarded(llama, Machine(2 * MIB))
    plan = bench.guard.plan

    def must_not_be_read(*_: object, **__: object) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr("mlx_serving.worker.loading.weights.load_model", must_not_be_read)
    with pytest.raises(InsufficientMemory) as refusal:
        load(qwen3, require_memory=lambda weights: bench.guard.require("qwen3", 10 * weights))
    size = sum(file.stat().st_size for file in qwen3.glob("*.safetensors"))
    assert refusal.value.details["weights_bytes"] == 10 * size
    assert refusal.value.details["loaded_bytes"] == bench.weights
    assert refusal.value.details["limited_by"] == "RAM"
    assert bench.guard.plan == plan


def test_the_buffer_cache_makes_room_for_a_model(llama: Path) -> None:
    bench = Guarded(llama, Machine(64 * MIB), replace(PLAIN, buffer_cache_bytes=32 * MIB))
    freed = mx.zeros((16 * MIB,), dtype=mx.uint8)
    mx.eval(freed)  # pyright: ignore[reportUnknownMemberType]  untyped in MLX's stub
    del freed
    assert mx.get_cache_memory() >= 16 * MIB
    bench.guard.require("other", 58 * MIB)
    assert mx.get_cache_memory() == 0


def test_between_two_looks_nothing_is_asked_of_the_machine(llama: Path) -> None:
    machine = Machine(8 * MIB)
    seldom, always = Guarded(llama, machine, interval_s=3600.0).guard, Guarded(llama, machine).guard
    before = always.plan.kv_caches
    machine.others = 4 * MIB
    for guard in (seldom, always):
        guard.refresh()
    assert always.plan.kv_caches == before - 4 * MIB
    assert seldom.plan.kv_caches >= before


def test_this_machine_has_bounds() -> None:
    bounds = MemoryBounds(1).read()
    assert bounds
    assert all(bound.limit > 0 and bound.others >= 0 for bound in bounds)


def caches_after(model: LoadedModel, tokens: int) -> list[Any]:
    caches = make_prompt_cache(model.model)
    for _ in range(0, tokens, 64):
        compute(model, caches, 64)
    return caches


def compute(model: LoadedModel, caches: list[Any], count: int) -> None:
    forward: Any = model.model
    forward(mx.zeros((1, count), dtype=mx.uint32), cache=caches)
    evaluate: Any = mx.eval  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  as above
    evaluate([cache.state for cache in caches])
    mx.synchronize()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "lfm2", "mamba", "llama4", "quantised"])
@pytest.mark.parametrize(("start", "count"), [(0, 64), (0, 128), (192, 64), (128, 120)])
def test_a_chunk_of_a_prompt_takes_no_more_than_was_thought(
    request: pytest.FixtureRequest, name: str, start: int, count: int
) -> None:
    model = load(request.getfixturevalue(name))
    caches = caches_after(model, start)
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    compute(model, caches, count)
    kept = max(0, mx.get_active_memory() - before)
    needed = mx.get_peak_memory() - before - kept
    assert 0 < needed <= model.prefill_memory.size(start, count)
