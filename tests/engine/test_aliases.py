"""Names that are moved from one model to another while requests come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mlx_serving.assembly import assemble
from mlx_serving.config.changes import plan
from mlx_serving.config.schema import Config
from mlx_serving.core.generation import ChatPrompt, Delta, GenerationRequest, SamplingParams
from mlx_serving.core.model_profile import ModelProfile
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.errors import InvalidConfig, InvalidRequest, MemoryInUse, ModelLoadError, ModelNotFound, NotFound
from mlx_serving.telemetry.events import AliasMoved, ModelEvicted, StreamRecovered

from ..event_log import LIMIT_S, EventLog, until
from ..tiny_models import make_llama
from .harness import collect, complete, request, running

LENGTH = 150


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("aliases")
    return {name: make_llama(home / name, seed=seed, context_length=4096) for seed, name in enumerate(("one", "two"))}


def config_of(models: Mapping[str, Path], section: Any = None, **sections: Any) -> Config:
    served = [{"model": str(path), "name": name, "preload": False} for name, path in models.items()]
    return Config.model_validate({"models": {"served": served, **(section or {})}, **sections})


CHAT = {"aliases": [{"name": "chat", "model": "one"}]}


def tokens_of(deltas: list[Delta]) -> tuple[int, ...]:
    return tuple(token for delta in deltas for token in delta.token_ids)


async def answer(core: EngineCore, model: str, request_id: str = "r", length: int = LENGTH) -> tuple[int, ...]:
    return tokens_of(await complete(core, request(request_id, model=model, max_tokens=length)))


async def test_streams_stay_with_their_model_and_who_comes_later_gets_the_other(models: dict[str, Path]) -> None:
    async with running(config_of(models, CHAT)) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        one, two = await answer(core, "one"), await answer(core, "two")
        assert one != two
        seen: set[tuple[int, ...]] = set()
        moving = True

        async def client(number: int) -> None:
            turn = 0
            while moving or turn < 2:
                got = await answer(core, "chat", f"{number}-{turn}")
                assert got in (one, two)
                seen.add(got)
                turn += 1

        clients = [asyncio.create_task(client(number)) for number in range(8)]
        for model in ("two", "one", "two"):
            async with core.generate(request(f"across to {model}", model="chat", max_tokens=LENGTH)) as deltas:
                first = await anext(deltas)
                before = core.aliases.resolve("chat")[0]
                await core.set_alias("chat", model)
                rest = await collect(deltas)
            assert tokens_of([first, *rest]) == (one if before == "one" else two)
            assert await answer(core, "chat", f"after {model}") == (one if model == "one" else two)
        moving = False
        await asyncio.gather(*clients)
        assert seen == {one, two}
        assert log.of(StreamRecovered) == []
        assert [event.model_id for event in log.of(AliasMoved)] == ["two", "one", "two"]


async def test_a_stream_that_is_recovered_stays_with_its_model(models: dict[str, Path]) -> None:
    async with running(config_of(models, CHAT)) as core, asyncio.timeout(LIMIT_S):
        one = await answer(core, "one")
        async with core.generate(request("r", model="chat", max_tokens=LENGTH)) as deltas:
            first = await anext(deltas)
            await core.set_alias("chat", "two")
            await core.restart_workers()
            assert tokens_of([first, *await collect(deltas)]) == one


async def test_a_model_is_loaded_by_the_names_that_it_is_served_under(models: dict[str, Path]) -> None:
    async with running(config_of(models, CHAT)) as core, asyncio.timeout(LIMIT_S):
        await core.unload_served("one", force=False)
        for given in ("one", "chat"):
            served = await core.load_served(given, name=None, revision=None, pinned=given == "chat")
            assert (served.name, served.reference, served.state) == ("one", str(models["one"]), "ready")
            assert served.pinned == (given == "chat")
        packed = await core.load_served("one", name="packed", revision=None, weights=WeightOptions("4bit"))
        assert (packed.name, packed.reference) == ("packed", str(models["one"]))
        with pytest.raises(InvalidRequest, match=r"one is the name of .* already"):
            await core.load_served("one", name=None, revision=None, weights=WeightOptions("4bit"))


async def test_what_an_alias_is_not_is_told(models: dict[str, Path]) -> None:
    async with running(config_of(models, CHAT)) as core, asyncio.timeout(LIMIT_S):
        with pytest.raises(InvalidRequest, match="chat is an alias of one: give another name, or remove") as refused:
            await core.load_served(str(models["two"]), name="chat", revision=None)
        assert refused.value.field == "name"
        with pytest.raises(ModelNotFound, match="chat is an alias: unload the model that it means, one"):
            await core.unload_served("chat", force=False)
        with pytest.raises(InvalidRequest, match="a revision is for repositories of the hub") as refused:
            await core.set_alias("chat", "two", revision="main")
        assert refused.value.field == "revision"
        for name, shown in (("a b", "got 'a b'"), ("x" * 257, "1 to 256 .* got 257 characters")):
            with pytest.raises(InvalidRequest, match=shown):
                await core.set_alias(name, "two")
        with pytest.raises(
            InvalidRequest, match=r"profile.draft_model: the model tow is .*; did you mean two\?"
        ) as refused:
            await core.set_alias("chat", "one", profile=ModelProfile(draft_model="tow"))
        assert refused.value.field == "profile.draft_model"
        await core.set_alias("two", "one")  # the model of that name is still there
        await core.unload_served("two", force=False)


async def test_a_roll_back_is_as_easy(models: dict[str, Path]) -> None:
    async with running(config_of(models, CHAT)) as core, asyncio.timeout(LIMIT_S):
        await core.set_alias("chat", "two")
        await core.set_alias("chat", "two", profile=ModelProfile(temperature=0.5))
        back = await core.roll_back_alias("chat")
        assert back is not None
        assert (back.target.model, back.target.profile.given()) == ("two", {})
        back = await core.roll_back_alias("chat")
        assert back is not None
        assert (back.target.model, back.is_set) == ("one", False)
        with pytest.raises(InvalidRequest, match="no way back"):
            await core.roll_back_alias("chat")
        await core.set_alias("one", "two")  # the name of a model
        assert core.aliases.resolve("one")[0] == "two"
        assert await core.roll_back_alias("one") is None
        assert core.aliases.resolve("one")[0] == "one"
        with pytest.raises(NotFound):
            core.remove_alias("one")


async def test_a_model_that_is_not_served_is_loaded_for_the_alias(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    async with running(config_of({"one": models["one"]})) as core, asyncio.timeout(LIMIT_S):
        view = await core.set_alias("chat", str(models["two"]))
        assert view.target.model == "two"
        served = {model.name: model for model in core.served_models()}
        assert served.keys() == {"one", "two", "chat"}
        assert (served["chat"].alias_of, served["chat"].state) == ("two", "ready")
        assert (await core.set_alias("other", "chat")).target.model == "two"
        for model, error in (("no/such/place", ModelNotFound), (str(tmp_path / "broken"), ModelLoadError)):
            with pytest.raises(error):
                await core.set_alias("chat", model)
        assert core.aliases.resolve("chat")[0] == "two"
        assert {model.name for model in core.served_models()} == {"one", "two", "chat", "other"}
        for name in ("", "a b", "x" * 257):
            with pytest.raises(InvalidRequest, match="name of an alias"):
                await core.set_alias(name, "one")


async def test_where_memory_holds_one_of_them_who_comes_meanwhile_waits(tmp_path: Path) -> None:
    large = {f"large{n}": make_llama(tmp_path / f"large{n}", layers=16, seed=n, context_length=512) for n in (1, 2)}
    weights = sum(file.stat().st_size for file in large["large1"].glob("*.safetensors"))
    memory = {"limit_bytes": int(1.9 * weights), "prefill_bytes": weights // 10, "buffer_cache_bytes": weights // 10}
    alias = {"aliases": [{"name": "chat", "model": "large1"}]}
    async with running(config_of(large, alias, memory=memory)) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        async with core.generate(request("old", model="chat", max_tokens=200)) as deltas:
            first = await anext(deltas)
            moving = asyncio.create_task(core.set_alias("chat", "large2"))
            await log.wait_for(ModelEvicted)
            meanwhile = asyncio.create_task(complete(core, request("new", model="chat")))
            assert len(tokens_of([first, *await collect(deltas)])) == 200
        assert (await moving).target.model == "large2"
        assert len(tokens_of(await meanwhile)) == 8
        assert log.of(StreamRecovered) == []


async def test_who_waits_for_a_model_that_gets_no_room_is_served_by_the_old_one(tmp_path: Path) -> None:
    """Streams outlast the time that the new model may wait for them: the name is moved back, and nobody is refused."""
    large = {f"large{n}": make_llama(tmp_path / f"large{n}", layers=16, head_dim=4, seed=n) for n in (1, 2)}
    weights = sum(file.stat().st_size for file in large["large1"].glob("*.safetensors"))
    memory = {"limit_bytes": int(1.9 * weights), "prefill_bytes": weights // 10, "buffer_cache_bytes": weights // 10}
    section = {"aliases": [{"name": "chat", "model": "large1"}], "drain_timeout_s": 1}
    async with running(config_of(large, section, memory=memory)) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        alone = await answer(core, "large1", length=8)
        # It is not read, so it does not end.
        async with core.generate(request("old", model="chat", max_tokens=300)) as deltas:
            first = await anext(deltas)
            moving = asyncio.create_task(core.set_alias("chat", "large2"))
            await log.wait_for(ModelEvicted)
            meanwhile = [asyncio.create_task(answer(core, "chat", f"new {n}", 8)) for n in range(3)]
            direct = asyncio.create_task(answer(core, "large2", "direct", 8))
            with pytest.raises(
                MemoryInUse, match="large2 needs memory that those who use large1 have, and they were not done"
            ):
                await moving
            assert core.aliases.resolve("chat")[0] == "large1"
            assert await asyncio.gather(*meanwhile) == [alone] * 3
            with pytest.raises(MemoryInUse) as refused:
                await direct
            assert refused.value.retry_after > 0
            assert len(tokens_of([first, *await collect(deltas)])) == 300
        assert len(await answer(core, "large2", "later", 8)) == 8
        assert log.of(StreamRecovered) == []


async def test_who_gives_up_waiting_for_a_move_has_moved_nothing(tmp_path: Path) -> None:
    large = {f"large{n}": make_llama(tmp_path / f"large{n}", layers=16, head_dim=4, seed=n) for n in (1, 2)}
    weights = sum(file.stat().st_size for file in large["large1"].glob("*.safetensors"))
    memory = {"limit_bytes": int(1.9 * weights), "prefill_bytes": weights // 10, "buffer_cache_bytes": weights // 10}
    alias = {"aliases": [{"name": "chat", "model": "large1"}]}
    async with running(config_of(large, alias, memory=memory)) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        # It is not read, so it does not end.
        async with core.generate(request("old", model="chat", max_tokens=300)) as deltas:
            await anext(deltas)
            moving = asyncio.create_task(core.set_alias("chat", "large2"))
            await log.wait_for(ModelEvicted)
            assert core.aliases.resolve("chat")[0] == "large2"
            moving.cancel()
            await asyncio.wait((moving,))
            assert moving.cancelled()
            assert core.aliases.resolve("chat")[0] == "large1"


async def test_a_profile_holds_where_a_request_is_silent(models: dict[str, Path]) -> None:
    section = {
        "served": [{"model": str(models["one"]), "name": "one", "profile": {"temperature": 0, "max_tokens": 5}}],
        "aliases": [{"name": "long", "model": "one", "profile": {"max_tokens": 9, "max_tokens_limit": 20}}],
    }
    async with running(config_of({}, section)) as core, asyncio.timeout(LIMIT_S):
        special = dict.fromkeys(range(256, 259), -100.0)

        def ask(model: str, **sampling: Any) -> GenerationRequest:
            prompt = ChatPrompt(({"role": "user", "content": "Hello"},))
            return GenerationRequest("r", model, prompt, SamplingParams(logit_bias=special, **sampling))

        short = tokens_of(await complete(core, ask("one")))
        long = tokens_of(await complete(core, ask("long")))
        assert (len(short), long[:5]) == (5, short)  # greedy, both of them
        assert len(long) == 9
        assert len(tokens_of(await complete(core, ask("long", max_tokens=12)))) == 12
        with pytest.raises(InvalidRequest, match="at most 20 for long, got 21"):
            await complete(core, ask("long", max_tokens=21))
        shown = {model.name: model.profile for model in core.served_models()}
        assert shown == {
            "one": {"temperature": 0, "max_tokens": 5},
            "long": {"temperature": 0, "max_tokens": 9, "max_tokens_limit": 20},
        }


async def test_prompts_are_made_as_the_profile_says(models: dict[str, Path]) -> None:
    async with running(config_of(models)) as core, asyncio.timeout(LIMIT_S):
        prompt = ChatPrompt(({"role": "user", "content": "Hello"},))
        plain = len((await core.tokenize_chat("one", prompt)).tokens)
        await core.set_alias("terse", "one", profile=ModelProfile(system_prompt="Be brief."))
        await core.set_alias("bare", "one", profile=ModelProfile(chat_template="{{ messages[0].content }}{{ mark }}"))
        await core.set_alias("marked", "one", profile=core.aliases.resolve("bare")[1].over(ModelProfile()))
        assert len((await core.tokenize_chat("terse", prompt)).tokens) > plain
        assert (await core.detokenize("bare", (await core.tokenize_chat("bare", prompt)).tokens)) == "Hello"
        asked = GenerationRequest("r", "bare", prompt, SamplingParams(max_tokens=1))
        stats = (await complete(core, asked))[-1].stats
        assert stats is not None
        assert stats.prompt_tokens == len("Hello")
        system = {"role": "system", "content": f"x-anthropic-billing-header: cch=1;\nTime: 12:01\n{'Be brief. ' * 20}"}
        await core.set_alias("timeless", "one", profile=ModelProfile(volatile_lines=("Time:",)))
        lengths = [
            len((await core.tokenize_chat(name, ChatPrompt((system, *prompt.messages)))).tokens)
            for name in ("one", "timeless")
        ]
        assert lengths[0] - lengths[1] == len("Time: 12:01\n")


async def test_what_was_set_survives_a_restart_and_a_reload(models: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "state" / "aliases.json"
    section = {"alias_file": str(file), **CHAT}
    only_one = {"one": models["one"]}
    async with running(config_of(only_one, section)) as core:
        await core.set_alias("chat", str(models["two"]), profile=ModelProfile(temperature=0.5, stop=("x",)))
    assert [target["model"] for target in json.loads(file.read_text())["aliases"]["chat"]] == ["two"]
    config = config_of(only_one, section)
    stack = assemble(config)
    try:
        core = stack.core
        [view] = core.list_aliases()
        assert (view.target.model, view.target.profile) == ("two", ModelProfile(temperature=0.5, stop=("x",)))
        assert len(await answer(core, "chat", length=3)) == 3
        # A reload that moves the alias moves what is configured, and what was set wins.
        wanted = config_of(
            models, {**section, "aliases": [{"name": "chat", "model": "two"}, {"name": "n", "model": "two"}]}
        )
        stack.adopt(plan(config, wanted))
        await stack.carry_out(plan(config, wanted))
        assert (core.aliases.resolve("chat")[1].temperature, core.aliases.resolve("n")[0]) == (0.5, "two")
        core.remove_alias("chat")
        assert core.aliases.resolve("chat") == ("two", ModelProfile())
        assert json.loads(file.read_text())["aliases"] == {}
    finally:
        await stack.core.stop()


async def test_servers_that_share_a_file_leave_each_other_their_aliases(
    models: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "aliases.json"
    config = config_of(models, {"alias_file": str(file)})

    def kept() -> dict[str, list[str]]:
        aliases = json.loads(file.read_text())["aliases"]
        return {name: [target["model"] for target in targets] for name, targets in aliases.items()}

    async with running(config) as one, running(config) as other:
        await asyncio.gather(one.set_alias("a", "one"), other.set_alias("b", "two"))
        assert kept() == {"a": ["one"], "b": ["two"]}
        await one.set_alias("a", "two")
        other.remove_alias("b")
        assert kept() == {"a": ["one", "two"]}
        file.write_text("damaged")
        await other.set_alias("c", "one")
        assert kept() == {"c": ["one"]}
        await one.set_alias("b", "one")
        assert kept() == {"b": ["one"], "c": ["one"]}
    file.write_text("damaged")
    one.remove_alias("b")
    assert kept() == {"a": ["one", "two"]}


@pytest.mark.parametrize("content", ["", "[]", '{"format": 2, "aliases": {}}', '{"format": 1, "aliases": {"a": [1]}}'])
async def test_a_file_that_is_not_ours_is_refused(models: dict[str, Path], tmp_path: Path, content: str) -> None:
    file = tmp_path / "aliases.json"
    file.write_text(content)
    with pytest.raises(InvalidConfig, match=r"models\.alias_file"):
        assemble(config_of(models, {"alias_file": str(file)}))


@pytest.mark.parametrize("set_before", [(), ("two",), ("two", "one")])
async def test_a_name_is_not_moved_to_a_model_that_a_reload_takes_away(
    models: dict[str, Path], set_before: tuple[str, ...]
) -> None:
    before = config_of(models, CHAT)
    stack = assemble(before)
    try:
        core = stack.core
        for model in set_before:
            await core.set_alias("chat", model)
        await core.unload_served("two", force=True)
        moving = asyncio.create_task(core.set_alias("chat", "two"))

        async def is_loading() -> bool:
            return any(model.name == "two" and model.state == "loading" for model in core.served_models())

        await until(is_loading)
        wanted = plan(before, config_of({"one": models["one"]}, CHAT))
        stack.adopt(wanted)
        await stack.carry_out(wanted)
        with pytest.raises(ModelNotFound, match="two is not served any more: the configuration has changed"):
            await moving
        assert core.aliases.resolve("chat")[0] == "one"
        assert all(target.model == "one" for view in core.list_aliases() for target in view.history)
        assert len(await answer(core, "chat", length=3)) == 3
    finally:
        await stack.core.stop()


async def test_a_reload_changes_aliases_and_profiles_at_once(models: dict[str, Path]) -> None:
    before = config_of(models, CHAT)
    stack = assemble(before)
    try:
        await stack.core.set_alias("mine", "two")
        section = {
            "served": [{"model": str(models["one"]), "name": "one", "preload": False, "profile": {"top_k": 3}}],
            "aliases": [{"name": "talk", "model": "one"}],
        }
        wanted = plan(before, config_of({}, section))
        assert wanted.changed == ("models.aliases", "models.served (one)")
        assert (wanted.replaced, [model.name for model in wanted.removed]) == ((), ["two"])
        stack.adopt(wanted)
        await stack.carry_out(wanted)
        core = stack.core
        assert core.aliases.resolve("talk") == ("one", ModelProfile(top_k=3))
        assert core.aliases.resolve("chat")[0] == "chat"
        assert core.aliases.resolve("mine")[0] == "mine"  # its model is gone
    finally:
        await stack.core.stop()
