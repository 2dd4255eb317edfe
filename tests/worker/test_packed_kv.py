"""Sequences whose KV caches are packed: together as alone, again from what is kept, and in less memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import QuantizedKVCache
from mlx_lm.utils import load_model

from mlx_serving.core.generation import SamplingParams, Structure
from mlx_serving.core.kv_form import KvForm
from mlx_serving.core.prefix.index import PrefixCachePolicy
from mlx_serving.core.scheduler import Scheduler
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.errors import InvalidRequest
from mlx_serving.worker.kv_cache import RowLengths
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.packed_kv import PackedSlotKVCache, make_caches, pack, parts_of

from ..tiny_models import make_llama, token_ids
from .bench import POLICY, Bench, load
from .prefix.disk_bench import on_disk
from .test_kv_cache import EVENTS, Crowd, prompt_of

FORMS = [KvForm(8, 32), KvForm(4, 32)]
ENDLESS = SamplingParams(max_tokens=12, logit_bias={258: -100.0})
SAMPLED = replace(ENDLESS, temperature=1.0, top_p=0.95, frequency_penalty=0.3, seed=7)
SYSTEM = "You are a helpful assistant, and you answer briefly. "


@pytest.fixture(scope="module")
def wide(models: Path) -> Path:
    """Its heads divide into groups."""
    return make_llama(models / "wide", head_dim=32, context_length=4096)


@pytest.fixture(scope="module")
def network(wide: Path) -> nn.Module:
    return load_model(wide)[0]


@pytest.fixture(scope="module", params=FORMS, ids=["8bit", "4bit"])
def form(request: pytest.FixtureRequest) -> KvForm:
    return request.param


@pytest.fixture
def model(wide: Path, form: KvForm) -> LoadedModel:
    return packed(wide, form)


def packed(directory: Path, form: KvForm | None) -> LoadedModel:
    return load(directory, options=WeightOptions(kv=form))


def alone(model: LoadedModel, prompt: list[int], params: SamplingParams = ENDLESS) -> list[int]:
    """What it gives by itself, keeping nothing."""
    return Bench(packed(Path(model.facts.cached_path), model.options.kv)).run(prompt, params).tokens


# -- the batch


@settings(max_examples=20, deadline=None)
@given(events=EVENTS, of=st.sampled_from(FORMS))
def test_rows_that_come_and_go_have_the_logits_they_have_alone(
    network: nn.Module, events: list[tuple[str, int]], of: KvForm
) -> None:
    crowd = Crowd(network, of)
    for count, (event, number) in enumerate(events):
        if event == "join":
            crowd.join(prompt_of(count, number))
        elif len(crowd) and event == "replace":
            crowd.join(prompt_of(count, number), number % len(crowd))
        elif len(crowd) and event == "leave":
            crowd.leave(*(index for index in range(len(crowd)) if number >> index & 1))
        elif len(crowd):
            for _ in range(number):
                crowd.step()
    if len(crowd):
        crowd.step()


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=4), steps=st.lists(st.integers(0, 255), max_size=6))
def test_rows_take_different_numbers_of_tokens_in_one_step(
    network: nn.Module, lengths: list[int], steps: list[int]
) -> None:
    crowd = Crowd(network, FORMS[0])
    for seed, length in enumerate(lengths):
        crowd.join(prompt_of(seed, length))
    for more in steps:
        crowd.step(more)
    crowd.leave(0)
    crowd.join(prompt_of(9, 5))
    crowd.step()


def test_a_cache_grows_past_its_first_tokens(network: nn.Module, form: KvForm) -> None:
    crowd = Crowd(network, form)
    for seed, length in enumerate((255, 4, 515)):
        crowd.join(prompt_of(seed, length))
        crowd.step()
    crowd.leave(0)
    crowd.step()


def test_a_cache_is_what_its_parts_are_and_an_empty_one_has_none(network: nn.Module, form: KvForm) -> None:
    cache, empty = make_caches(network, form)
    keys = mx.random.normal((1, 2, 5, 32))
    cache.update_and_fetch(keys, keys + 1)
    again = pack(parts_of(cache), form)
    assert [part.offset for part in parts_of(cache)] == [5, 5, 5]
    assert (again.offset, again.bits, again.group_size, again.nbytes) == (5, form.bits, 32, cache.nbytes)
    assert pack(parts_of(empty), form).keys is None
    lengths = RowLengths()
    lengths.put(0, 0)
    rows = PackedSlotKVCache(lengths, form)
    assert (rows.nbytes, rows.peek(0).keys, rows.extract(0).offset) == (0, None, 0)


# -- sequences


@pytest.mark.parametrize("params", [ENDLESS, SAMPLED], ids=["greedy", "sampled"])
def test_a_crowd_gets_what_each_gets_alone(model: LoadedModel, params: SamplingParams) -> None:
    prompts = [token_ids(f"{'long ' * number}question {number}?") for number in range(5)]
    expected = [alone(model, prompt, params) for prompt in prompts]
    bench = Bench(model)
    for number, prompt in enumerate(prompts):
        bench.start(str(number), prompt, params)
        bench.step(2)
    bench.pause("1")
    bench.step(3)
    bench.generation.resume("1")
    bench.finish()
    assert [bench.streams[str(number)].tokens for number in range(5)] == expected


def test_it_is_what_mlx_lm_computes_with_the_same_cache(model: LoadedModel) -> None:
    assert model.options.kv is not None
    prompt = token_ids("What is the capital of France?")
    caches = make_caches(model.model, model.options.kv)
    tokens: list[int] = []
    fed = prompt
    for _ in range(12):
        logits = cast(mx.array, model.model(mx.array([fed]), cache=caches))[0, -1]
        logits[258] = logits[258] - 100.0
        fed = [cast(int, mx.argmax(logits).item())]
        tokens += fed
    assert all(type(cache) is QuantizedKVCache for cache in caches)
    assert Bench(model).run(prompt, ENDLESS).tokens == tokens


def test_forks_and_forced_runs(model: LoadedModel) -> None:
    schema = Structure(
        "json_schema",
        {
            "type": "object",
            "properties": {"a_long_name": {"const": "always"}},
            "required": ["a_long_name"],
            "additionalProperties": False,
        },
    )
    prompt = token_ids("Give me an object, please.")
    bench = Bench(model)
    bench.start("first", prompt, ENDLESS)
    bench.start("second", prompt, SAMPLED, fork_of="first")
    bench.start("object", prompt, replace(ENDLESS, max_tokens=60), structure=schema)
    before = bench.prefilled
    bench.finish()
    bench.close()
    assert bench.prefilled - before < 3 * len(prompt)
    assert bench.streams["first"].tokens == alone(model, prompt)
    assert bench.streams["second"].tokens == alone(model, prompt, SAMPLED)
    assert bench.streams["object"].text.replace(" ", "").replace("\n", "") == '{"a_long_name":"always"}'


# -- what is kept


def test_each_turn_of_a_conversation_computes_its_new_tokens_only(model: LoadedModel) -> None:
    bench = Bench(model, prefix_policy=PrefixCachePolicy(block_tokens=16))
    history = token_ids(SYSTEM)
    for turn in range(4):
        prompt = [*history, *token_ids(f"Question {turn} is a little long?")]
        before = bench.prefilled
        stream = bench.start(str(turn), prompt, ENDLESS)
        bench.finish()
        assert stream.tokens == alone(model, prompt)
        assert bench.prefilled - before <= (len(prompt) if turn == 0 else len(prompt) - len(history) + 2)
        history = [*prompt, *stream.tokens]
    assert bench.prefixes.nbytes <= len(history) * model.kv_bytes_per_token


def test_a_conversation_goes_on_after_a_restart(model: LoadedModel, tmp_path: Path) -> None:
    prompt = token_ids(SYSTEM + "Who are you, and what is it that you are for?")
    with on_disk(model, tmp_path) as bench:
        bench.ask(prompt, ENDLESS)
    again = packed(Path(model.facts.cached_path), model.options.kv)
    with on_disk(again, tmp_path) as bench:
        stream = bench.ask(prompt, ENDLESS)
        assert bench.reports == []
    assert stream.completed.stats.cached_tokens >= len(prompt) - 1
    assert stream.tokens == alone(model, prompt)


def test_models_of_other_forms_find_nothing_of_each_other(wide: Path, tmp_path: Path) -> None:
    prompt = token_ids(SYSTEM + "Who are you?")
    prints = [packed(wide, form).fingerprint for form in (None, *FORMS, KvForm(8, 32))]
    assert len(set(prints)) == 3
    assert prints[1] == prints[3]
    for form in (None, *FORMS):
        with on_disk(packed(wide, form), tmp_path) as bench:
            assert bench.ask(prompt, ENDLESS).completed.stats.cached_tokens == 0
            assert bench.reports == []


# -- memory


def test_more_sequences_fit_into_the_same_memory(wide: Path) -> None:
    def most_together(form: KvForm | None) -> int:
        model = packed(wide, form)
        scheduler = Scheduler(replace(POLICY, min_prefill_chunk=4096, max_prefill_chunk=4096))
        bench = Bench(model, scheduler=scheduler)
        scheduler.memory.allow(kv_caches=600_000, ceiling=600_000, prefill=1 << 30)
        for number in range(8):
            bench.start(str(number), prompt_of(number, 280), replace(ENDLESS, max_tokens=20))
        most = 0
        while not bench.generation.is_idle:
            bench.step()
            most = max(most, scheduler.load().running)
        assert all(stream.completed for stream in bench.streams.values())
        return most

    assert [most_together(form) for form in (None, *FORMS)] == [1, 6, 8]


def test_what_a_token_takes_is_told(wide: Path) -> None:
    # Two layers of keys and values, two heads of 32 numbers in one group; a scale and a bias of four bytes each.
    told = [packed(wide, form).facts for form in (None, *FORMS)]
    numbers = 2 * 2 * 2 * 32
    assert [facts.kv_bytes_per_token for facts in told] == [4 * numbers, numbers + numbers // 4, numbers * 3 // 4]
    assert [(facts.kv_bits, facts.kv_group_size) for facts in told] == [(None, None), (8, 32), (4, 32)]


# -- what cannot be


@pytest.mark.parametrize("name", ["gemma3", "lfm2", "mamba", "llama4"])
def test_models_with_other_caches_are_refused_by_name(name: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(InvalidRequest, match="cannot be packed: it has layers with caches of other kinds") as refused:
        packed(request.getfixturevalue(name), KvForm(8, 32))
    assert refused.value.details["field"] == "kv_bits"


def test_heads_that_do_not_divide_are_told_with_the_groups_that_would_do(wide: Path, llama: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"are 32 wide.*kv_group_size can be 32"):
        packed(wide, KvForm(8, 64))
    with pytest.raises(InvalidRequest, match=r"are 16 wide.*no group size would do"):
        packed(llama, KvForm(8, 64))
