"""Answers that are given again, in memory and on disk."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_serving.core.generation import (
    Delta,
    FinishReason,
    GenerationRequest,
    GenerationStats,
    Logprobs,
    SamplingParams,
    Served,
    TokenLogprob,
    ToolCallDelta,
)
from mlx_serving.core.response_index import ResponseCachePolicy
from mlx_serving.engine import response_store
from mlx_serving.engine.response_cache import MemoryBodies, ResponseBodies, ResponseCacheBackend
from mlx_serving.engine.response_store import DiskBodies
from mlx_serving.engine.sharing import SharingBackend
from mlx_serving.errors import WorkerDied

from .harness import collect
from .scripted import WHOLE, Script, ScriptedBackend, request

GREEDY = replace(request(), sampling=SamplingParams(temperature=0))
STATS = GenerationStats(3, 2, 0.5, 10.0, 0.7)
RICH = (
    Delta("é", (1,), logprobs=(Logprobs(TokenLogprob(1, -0.5, b"\xc3"), (TokenLogprob(2, -1.5, b"\xff", True),)),)),
    Delta("", (2,), reasoning="hm", tool_calls=(ToolCallDelta(0, "id", "name", "{}"),)),
    Delta("", (), FinishReason.TOOL_CALLS, STATS),
)

Bodies = Callable[[], ResponseBodies]


@pytest.fixture(params=["memory", "disk"])
def bodies(request: pytest.FixtureRequest, tmp_path: Path) -> Bodies:
    return MemoryBodies if request.param == "memory" else lambda: DiskBodies(tmp_path / "deep" / "answers.db")


@asynccontextmanager
async def _cache(
    inner: ScriptedBackend,
    bodies: ResponseBodies,
    version_of: Callable[[str], str | None] = lambda model: f"{model}@1",
    **policy: float,
) -> AsyncGenerator[ResponseCacheBackend]:
    cache = ResponseCacheBackend(inner, replace(ResponseCachePolicy(), **policy), bodies, version_of)
    try:
        yield cache
    finally:
        await cache.close()


async def _ask(cache: ResponseCacheBackend, asked: GenerationRequest = GREEDY) -> tuple[list[Delta], str | None]:
    asked = replace(asked, served=Served())
    async with cache.generate(asked) as deltas:
        got = await collect(deltas)
    assert asked.served is not None
    return got, asked.served.cache


async def test_the_same_request_gets_the_same_deltas_without_a_computation(bodies: Bodies) -> None:
    inner = ScriptedBackend([Script(deltas=RICH)])
    async with _cache(inner, bodies()) as cache:
        assert await _ask(cache) == (list(RICH), "miss")
        got, outcome = await _ask(cache)
        assert (await _ask(cache, replace(GREEDY, request_id="x", caller="y", priority="low")))[1] == "hit"
        stats = cache.stats
    assert outcome == "hit"
    assert got[:-1] == list(RICH[:-1])
    assert got[-1] == replace(RICH[-1], stats=GenerationStats(3, 2, 0.0, 0.0, 0.0))
    assert len(inner.requests) == 1
    assert (stats.entries, stats.tokens, stats.hits, stats.misses) == (1, 2, 2, 1)


async def test_another_request_is_another_answer(bodies: Bodies) -> None:
    async with _cache(inner := ScriptedBackend(), bodies()) as cache:
        await _ask(cache)
        assert (await _ask(cache, replace(GREEDY, sampling=SamplingParams(temperature=0, max_tokens=2))))[1] == "miss"
    assert len(inner.requests) == 2


async def test_what_is_left_to_chance_is_not_kept_unless_asked_for() -> None:
    async with _cache(ScriptedBackend(), MemoryBodies()) as cache:
        assert [(await _ask(cache, request()))[1] for _ in range(2)] == ["miss", "miss"]
        assert cache.stats.entries == 0
    async with _cache(ScriptedBackend(), MemoryBodies(), unseeded=True) as cache:
        assert [(await _ask(cache, request()))[1] for _ in range(2)] == ["miss", "hit"]


async def test_each_caller_may_have_a_cache_of_its_own() -> None:
    async with _cache(ScriptedBackend(), MemoryBodies(), per_caller=True) as cache:
        outcomes = [(await _ask(cache, replace(GREEDY, caller=caller)))[1] for caller in "abab"]
    assert outcomes == ["miss", "miss", "hit", "hit"]


async def test_a_replaced_model_never_answers_from_the_old_one(bodies: Bodies) -> None:
    version = "1"
    async with _cache(ScriptedBackend(), bodies(), lambda _: version) as cache:
        await _ask(cache)
        version = "2"
        assert (await _ask(cache))[1] == "miss"
        version = "1"
        assert (await _ask(cache))[1] == "hit"


async def test_an_answer_of_two_versions_is_not_kept() -> None:
    version = "1"
    async with _cache(ScriptedBackend(), MemoryBodies(), lambda _: version) as cache:
        async with cache.generate(GREEDY) as deltas:
            await anext(deltas)
            version = "2"
            await collect(deltas)
        assert cache.stats.entries == 0


async def test_without_a_version_nothing_is_kept() -> None:
    async with _cache(ScriptedBackend(), MemoryBodies(), lambda _: None) as cache:
        assert [(await _ask(cache))[1] for _ in range(2)] == ["miss", "miss"]


@pytest.mark.parametrize(
    "script",
    [
        Script(deltas=WHOLE[:1], after=WorkerDied("gone")),
        Script(deltas=(WHOLE[0], Delta("", (), FinishReason.ABORT))),
        Script(deltas=WHOLE[:1]),
    ],
)
async def test_what_does_not_end_well_is_not_kept(script: Script) -> None:
    async with _cache(ScriptedBackend([script, Script()]), MemoryBodies()) as cache:
        with suppress(WorkerDied):
            await _ask(cache)
        assert await _ask(cache) == (list(WHOLE), "miss")


async def test_what_is_left_half_way_is_not_kept() -> None:
    async with _cache(ScriptedBackend(), MemoryBodies()) as cache:
        async with cache.generate(GREEDY) as deltas:
            await anext(deltas)
        assert cache.stats.entries == 0


async def test_answers_that_are_too_long_pass_through() -> None:
    async with _cache(ScriptedBackend(), MemoryBodies(), max_tokens=1) as cache:
        assert await _ask(cache) == (list(WHOLE), "miss")
        assert cache.stats.entries == 0


async def test_what_was_evicted_or_is_too_old_is_computed_again(
    bodies: Bodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("mlx_serving.engine.response_cache.time.time", lambda: now)
    other = replace(GREEDY, model="other")
    async with _cache(ScriptedBackend(), bodies(), max_entries=1, ttl_s=60) as cache:
        outcomes = [(await _ask(cache, asked))[1] for asked in (GREEDY, GREEDY, other, GREEDY)]
        now += 60
        outcomes.append((await _ask(cache))[1])
    assert outcomes == ["miss", "hit", "miss", "miss", "miss"]


async def test_all_of_it_can_be_cleared(bodies: Bodies) -> None:
    async with _cache(ScriptedBackend(), bodies()) as cache:
        await _ask(cache)
        assert await cache.clear() == 1
        assert (await _ask(cache))[1] == "miss"


async def test_over_shared_computations_they_say_what_it_cost() -> None:
    gate = asyncio.Event()
    inner = ScriptedBackend([Script(deltas=WHOLE[:1], delta_gate=gate, last=WHOLE[2])])
    cache = ResponseCacheBackend(SharingBackend(inner, str), ResponseCachePolicy(), MemoryBodies(), str)
    both = [asyncio.create_task(_ask(cache)) for _ in range(2)]
    await inner.asked(1)
    gate.set()
    assert [outcome for _, outcome in await asyncio.gather(*both)] == ["miss", "shared"]
    assert (await _ask(cache))[1] == "hit"
    await cache.close()


async def test_a_replay_lets_others_have_their_turn() -> None:
    many = (*(Delta("a", (1,)) for _ in range(100)), WHOLE[-1])
    async with _cache(ScriptedBackend([Script(deltas=many)]), MemoryBodies()) as cache:
        await _ask(cache)
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        await _ask(cache)
        task.cancel()
    assert turns >= 3


# -- on disk


async def test_answers_outlive_the_process_and_stay_bounded(tmp_path: Path) -> None:
    path = tmp_path / "answers.db"
    others = [replace(GREEDY, model=name) for name in "abc"]
    async with _cache(ScriptedBackend(), DiskBodies(path)) as cache:
        for each in others:
            await _ask(cache, each)
    async with _cache(ScriptedBackend(), DiskBodies(path)) as cache:
        assert (await _ask(cache, others[0]))[1] == "hit"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with _cache(ScriptedBackend(), DiskBodies(path), max_entries=2) as cache:
        assert await _ask(cache, others[0]) == (list(WHOLE), "hit")
        assert cache.stats.entries == 2
        assert (await _ask(cache, others[1]))[1] == "miss"  # the least recently used of three
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM answers").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def _damage(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\x00" + b"\xff" * 5000)


def _write_nonsense(path: Path) -> None:
    path.write_bytes(b"this is no database at all, but it is long enough to look at" * 20)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _come_from_the_future(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {response_store.SCHEMA_VERSION + 1}")
    connection.close()


def _be_somebody_elses(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE answers (question TEXT)")
    connection.close()


def _files(directory: Path) -> list[Path]:
    return list(directory.iterdir())


@pytest.mark.parametrize("harm", [_damage, _write_nonsense, _truncate, _come_from_the_future, _be_somebody_elses])
async def test_a_damaged_file_is_moved_aside_and_told(
    tmp_path: Path, harm: Callable[[Path], None], warnings: list[dict[str, object]]
) -> None:
    path = tmp_path / "answers.db"
    async with _cache(ScriptedBackend([Script(deltas=RICH)]), DiskBodies(path)) as cache:
        for number in range(50):
            await _ask(cache, replace(GREEDY, model=str(number)))
    harm(path)
    async with _cache(ScriptedBackend(), DiskBodies(path)) as cache:
        assert await _ask(cache) == (list(WHOLE), "miss")
        assert (await _ask(cache))[1] == "hit"
    (told,) = warnings
    assert told["event"] == "response cache begun anew"
    assert told["moved_to"] in [str(each) for each in _files(tmp_path)]


async def test_a_body_that_somebody_else_changed_is_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.db"
    async with _cache(ScriptedBackend(), DiskBodies(path)) as cache:
        await _ask(cache)
    async with _cache(ScriptedBackend(), DiskBodies(path)) as cache:
        assert (await _ask(cache))[1] == "hit"
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE answers SET body = x'00'")
        connection.close()
        assert (await _ask(cache))[1] == "miss"
        assert (await _ask(cache))[1] == "hit"


async def test_a_file_that_cannot_be_used_costs_the_cache_only(
    tmp_path: Path, warnings: list[dict[str, object]]
) -> None:
    (tmp_path / "file").touch()
    async with _cache(ScriptedBackend(), DiskBodies(tmp_path / "file" / "answers.db")) as cache:
        for _ in range(3):
            assert (await _ask(cache))[0] == list(WHOLE)
    (told,) = warnings
    assert told["event"] == "response cache cannot use its file"


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    told: list[dict[str, object]] = []

    class Log:
        def warning(self, event: str, **facts: object) -> None:
            told.append({"event": event, **facts})

    monkeypatch.setattr(response_store, "_log", Log())
    return told
