"""Draft models beside the models they draft for, in real workers: answers are the same, and nothing is lost."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_serving.config.schema import Config
from mlx_serving.core.generation import Delta, GenerationRequest, GenerationStats, TextPrompt
from mlx_serving.core.speculation.request import Speculation
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.errors import InvalidRequest, ModelNotFound
from mlx_serving.telemetry.events import ModelUnloaded, StreamRecovered

from ..event_log import LIMIT_S, EventLog
from ..tiny_models import SPELLED, make_llama, make_mamba, make_printable_llama, make_speller
from .harness import collect, complete, request, running, send, worker_pid

PLAIN = Speculation("off")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`large` and `small` of one vocabulary, `words` of another one, `mamba`, which cannot take tokens back; `speller`,
    and `light`, which says the same at a small part of the cost."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("large", "small", "words", "mamba", "speller", "light"):
        (folder / name).mkdir()
    make_speller(folder / "speller", weight=8192)
    make_speller(folder / "light")
    make_llama(folder / "large", layers=3, context_length=2048)
    make_llama(folder / "small", seed=5, layers=1, context_length=2048)
    make_printable_llama(folder / "words")
    make_mamba(folder / "mamba")
    return folder


def serving_all(folder: Path, profile: Mapping[str, object] | None = None, **sections: Any) -> Config:
    served = [
        {
            "model": str(path),
            "name": path.name,
            "preload": False,
            "warm_up": False,
            "profile": dict(profile or {}) if path.name == "large" else {},
        }
        for path in sorted(folder.iterdir())
    ]
    aliases = [{"name": "helper", "model": "small"}]
    return Config.model_validate(
        {
            "models": {"served": served, "default": "large", "aliases": aliases},
            "worker": {"backoff": {"initial_delay_s": 0.01, "max_delay_s": 0.02}},
            **sections,
        }
    )


def asked(*, seed: int | None = None, speculation: Speculation = PLAIN, **fields: Any) -> GenerationRequest:
    one = request(model="large", max_tokens=fields.pop("max_tokens", 40), speculation=speculation, **fields)
    return one if seed is None else replace(one, sampling=replace(one.sampling, temperature=1.0, seed=seed))


def drafted_by(model: str) -> Speculation:
    return Speculation("auto", model, 4)


def ids_of(deltas: Sequence[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def stats_of(deltas: Sequence[Delta]) -> GenerationStats:
    stats = deltas[-1].stats
    assert stats is not None
    return stats


def loaded(core: EngineCore) -> set[str]:
    return {name for worker in core.workers for name in worker.models.loaded()}


@pytest.mark.parametrize("seed", [None, 7])
async def test_drafts_change_nothing_but_the_counters(folder: Path, seed: int | None) -> None:
    async with running(serving_all(folder)) as core:
        plain = await complete(core, asked(seed=seed))
        assert (stats_of(plain).speculation, stats_of(plain).drafted_tokens) == (None, 0)
        other = await complete(core, asked(seed=seed, speculation=drafted_by("small")))
        assert ids_of(other) == ids_of(plain)
        assert stats_of(other).speculation == "draft"
        itself = await complete(core, asked(seed=seed, speculation=drafted_by("large")))
        assert ids_of(itself) == ids_of(plain)
        assert stats_of(itself).accepted_tokens == stats_of(itself).drafted_tokens


async def test_who_always_agrees_has_all_its_drafts_accepted(folder: Path) -> None:
    spelling = replace(asked(), model="speller", prompt=TextPrompt("a"))
    async with running(serving_all(folder)) as core:
        plain = await complete(core, spelling)
        drafted = await complete(core, replace(spelling, speculation=drafted_by("light")))
        assert ids_of(drafted) == ids_of(plain)
        assert 0 < stats_of(drafted).accepted_tokens == stats_of(drafted).drafted_tokens


async def test_what_an_answer_is_thought_to_be_is_drafted_from(folder: Path) -> None:
    spelling = replace(asked(), model="speller", prompt=TextPrompt("a"))
    async with running(serving_all(folder, {"draft_model": "light"})) as core:
        plain = await complete(core, spelling)
        told = await complete(core, replace(spelling, speculation=Speculation(prediction=f"It is: {SPELLED}")))
        assert ids_of(told) == ids_of(plain)
        assert stats_of(told).speculation == "ngram"
        assert stats_of(told).accepted_tokens > 0
        assert stats_of(await complete(core, replace(spelling, speculation=Speculation("ngram")))).accepted_tokens == 0


async def test_a_profile_says_who_drafts_where_a_request_is_silent(folder: Path) -> None:
    async with running(serving_all(folder, {"draft_model": "helper", "num_draft_tokens": 3})) as core:
        silent = await complete(core, asked(speculation=Speculation()))
        assert stats_of(silent).speculation == "draft"
        assert stats_of(await complete(core, asked(speculation=PLAIN))).speculation is None
        assert stats_of(await complete(core, asked(speculation=Speculation("ngram")))).speculation == "ngram"


@pytest.mark.parametrize(
    ("draft", "told"),
    [
        ("words", "words cannot draft for large: The vocabularies differ"),
        ("mamba", "mamba cannot draft for large: The draft model cannot take tokens back"),
        ("smal", "the model smal is not served here; did you mean small?"),
    ],
)
async def test_a_pair_that_does_not_fit_is_refused_before_anything_runs(folder: Path, draft: str, told: str) -> None:
    async with running(serving_all(folder)) as core:
        with pytest.raises(InvalidRequest, match="draft_model") as caught:
            await complete(core, asked(speculation=drafted_by(draft)))
        assert caught.value.field == "draft_model"
        assert told in caught.value.message


async def test_nobody_fails_for_want_of_a_draft_model_that_a_profile_names(folder: Path) -> None:
    async with running(serving_all(folder)) as core:
        plain = await complete(core, asked(speculation=PLAIN))
        without = await complete(core, asked(speculation=drafted_by("gone").if_there()))
        assert ids_of(without) == ids_of(plain)
        assert stats_of(without).speculation != "draft"


async def test_a_draft_model_in_use_stays(folder: Path) -> None:
    async with running(serving_all(folder)) as core:
        log = EventLog(core.events)
        async with core.generate(asked(speculation=drafted_by("small"), max_tokens=400)) as deltas:
            await anext(deltas)
            unloading = asyncio.create_task(core.unload_served("small", force=False))
            rest = await collect(deltas)
            assert log.of(ModelUnloaded) == []
        assert stats_of(rest).speculation == "draft"
        async with asyncio.timeout(LIMIT_S):
            await unloading
        assert loaded(core) == {"large"}


async def test_who_is_turned_out_by_force_goes_on_without(folder: Path) -> None:
    async with running(serving_all(folder)) as core:
        plain = await complete(core, asked(max_tokens=300))
        async with core.generate(asked(speculation=drafted_by("small"), max_tokens=300)) as deltas:
            begun = [await anext(deltas)]
            await core.unload_served("small", force=True)
            assert ids_of([*begun, *await collect(deltas)]) == ids_of(plain)


async def killed(core: EngineCore, one: GenerationRequest, *, before: Path | None = None) -> list[Delta]:
    """The answer of a stream whose worker is killed when it has begun, and `before` that, a folder is removed."""
    async with asyncio.timeout(LIMIT_S), core.generate(one) as deltas:
        begun = [await anext(deltas)]
        if before is not None:
            shutil.rmtree(before)
        send(await worker_pid(core), signal.SIGKILL)
        return [*begun, *await collect(deltas)]


async def test_a_drafted_stream_survives_its_worker(folder: Path) -> None:
    async with running(serving_all(folder)) as core:
        log = EventLog(core.events)
        plain = await complete(core, asked(seed=3, max_tokens=300))
        deltas = await killed(core, asked(seed=3, max_tokens=300, speculation=drafted_by("small")))
        assert ids_of(deltas) == ids_of(plain)
        assert len(log.of(StreamRecovered)) == 1
        assert stats_of(deltas).speculation == "draft"
        assert loaded(core) == {"large", "small"}


async def test_a_stream_goes_on_without_a_draft_model_that_does_not_come_back(folder: Path, tmp_path: Path) -> None:
    for name in ("large", "small"):
        shutil.copytree(folder / name, tmp_path / name)
    async with running(serving_all(tmp_path)) as core:
        plain = await complete(core, asked(seed=3, max_tokens=300))
        drafted = asked(seed=3, max_tokens=300, speculation=drafted_by("small"))
        deltas = await killed(core, drafted, before=tmp_path / "small")
        assert ids_of(deltas) == ids_of(plain)
        assert stats_of(deltas).speculation == "ngram"
        with pytest.raises(ModelNotFound):  # who insists on it is told
            await complete(core, asked(speculation=drafted_by("small")))


async def test_a_draft_model_that_only_the_profile_names_is_done_without(folder: Path, tmp_path: Path) -> None:
    for name in ("large", "small"):
        shutil.copytree(folder / name, tmp_path / name)
    config = serving_all(tmp_path, {"draft_model": "small"})
    shutil.rmtree(tmp_path / "small")
    async with running(config) as core:
        assert stats_of(await complete(core, asked(speculation=Speculation()))).speculation == "ngram"


async def test_a_pair_is_in_one_worker(folder: Path) -> None:
    async with running(serving_all(folder, workers=2)) as core:
        await core.start_workers()  # one that is still starting would be passed over
        await complete(core, asked())  # the first worker has the model now
        await complete(core, request(model="small"))  # and the second one the draft
        assert [set(worker.models.loaded()) for worker in core.workers] == [{"large"}, {"small"}]
        drafted = await complete(core, asked(speculation=drafted_by("small")))
        assert stats_of(drafted).speculation == "draft"
        report = await core.check_draft("large", "small")
        assert report.compatible
        assert [set(worker.models.loaded()) for worker in core.workers] == [{"large", "small"}, {"small"}]
