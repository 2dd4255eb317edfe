"""What begins like something that was computed is not computed again, and gives the same tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_serving.core.generation import SamplingParams
from mlx_serving.core.prefix.index import PrefixCachePolicy
from mlx_serving.worker.loading.loaded_model import LoadedModel

from ...tiny_models import token_ids
from ..bench import POLICY, Bench, load
from ..test_model_runner import ARCHITECTURES

CUTTABLE = ["llama", "qwen3", "quantised"]
WHOLE = ["gemma3", "lfm2", "mamba", "llama4"]
KEEP = PrefixCachePolicy(block_tokens=16)
ENDLESS = SamplingParams(max_tokens=12, logit_bias={258: -100.0})
SAMPLED = replace(ENDLESS, temperature=1.0, top_p=0.95, frequency_penalty=0.3, seed=7)
SYSTEM = "You are a helpful assistant, and you answer briefly. "


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return load(request.getfixturevalue(request.param))


@pytest.fixture(scope="module", params=CUTTABLE)
def cuttable(request: pytest.FixtureRequest) -> LoadedModel:
    return load(request.getfixturevalue(request.param))


@pytest.fixture(scope="module", params=WHOLE)
def whole(request: pytest.FixtureRequest) -> LoadedModel:
    return load(request.getfixturevalue(request.param))


@cache
def copy_of(directory: str) -> LoadedModel:
    return load(Path(directory))


def alone(model: LoadedModel, prompt: list[int], params: SamplingParams = ENDLESS) -> list[int]:
    """What a model gives that keeps nothing."""
    return Bench(copy_of(model.facts.cached_path)).run(prompt, params).tokens


def keeping(model: LoadedModel, policy: PrefixCachePolicy = KEEP) -> Bench:
    return Bench(model, prefix_policy=policy)


def cached(bench: Bench, stream_id: str) -> int:
    return bench.streams[stream_id].completed.stats.cached_tokens


@pytest.mark.parametrize("params", [ENDLESS, SAMPLED], ids=["greedy", "sampled"])
def test_each_turn_of_a_conversation_computes_its_new_tokens_only(model: LoadedModel, params: SamplingParams) -> None:
    bench = keeping(model)
    history = token_ids(SYSTEM)
    for turn in range(5):
        prompt = [*history, *token_ids(f"Question {turn} is a little long?")]
        before = bench.prefilled
        stream = bench.start(str(turn), prompt, params)
        bench.finish()
        assert stream.tokens == alone(model, prompt, params)
        new = len(prompt) - len(history)
        # The last token of the answer may not have been computed.
        assert bench.prefilled - before <= (len(prompt) if turn == 0 else new + 2)
        assert cached(bench, str(turn)) == len(prompt) - (bench.prefilled - before)
        history = [*prompt, *stream.tokens]


def test_users_of_one_system_prompt_who_come_together_compute_it_once(model: LoadedModel) -> None:
    prompts = [token_ids(f"{SYSTEM}{name}?") for name in ("Anna", "Berta", "Carla", "Dora", "Emil", "Fritz")]
    expected = [alone(model, prompt) for prompt in prompts]
    bench = keeping(model)
    for number, prompt in enumerate(prompts):
        bench.start(str(number), prompt, ENDLESS)
    bench.finish()
    assert [bench.streams[str(number)].tokens for number in range(len(prompts))] == expected
    least = len(SYSTEM) + sum(len(prompt) - len(SYSTEM) for prompt in prompts)
    assert least <= bench.prefilled <= least * 1.05


def test_those_who_come_while_it_is_computed_wait_for_it(model: LoadedModel) -> None:
    first, second = token_ids(f"{SYSTEM}Who are you, and what for?"), token_ids(f"{SYSTEM}Tell!")
    bench = keeping(model)
    bench.start("first", first, ENDLESS)
    bench.step(2)
    bench.start("second", second, ENDLESS)
    bench.step()
    assert bench.scheduler.load().queued == 1
    bench.finish()
    assert bench.streams["first"].tokens == alone(model, first)
    assert bench.streams["second"].tokens == alone(model, second)
    assert bench.prefilled == len(first) + len("Tell!")


def test_one_who_waits_goes_on_alone_when_the_other_is_gone(model: LoadedModel) -> None:
    first, second = token_ids(f"{SYSTEM}Who are you, and what for?"), token_ids(f"{SYSTEM}Tell!")
    bench = keeping(model)
    bench.start("first", first, ENDLESS)
    bench.step(2)
    bench.start("second", second, ENDLESS)
    bench.step()
    bench.generation.abort("first")
    bench.finish()
    assert bench.streams["second"].tokens == alone(model, second)
    assert cached(bench, "second") >= 16  # what the other one had computed by then


def test_an_answer_that_goes_on_in_another_way_uses_what_is_the_same(cuttable: LoadedModel) -> None:
    bench = keeping(cuttable)
    bench.run(token_ids(f"{SYSTEM}One thing and another"), ENDLESS)
    prompt = token_ids(f"{SYSTEM}One thing or another")
    bench.start("b", prompt, ENDLESS)
    bench.finish()
    assert cached(bench, "b") == len(f"{SYSTEM}One thing ")
    assert bench.streams["b"].tokens == alone(cuttable, prompt)


def test_where_caches_cannot_be_cut_prompts_share_what_is_before_a_stop(whole: LoadedModel) -> None:
    bench = keeping(whole)
    stop = len(SYSTEM)
    bench.start("a", token_ids(f"{SYSTEM}One thing and another"), ENDLESS, stops=(stop,))
    bench.finish()
    prompt = token_ids(f"{SYSTEM}Two things")
    bench.start("b", prompt, ENDLESS)
    bench.finish()
    assert cached(bench, "b") == stop
    assert bench.streams["b"].tokens == alone(whole, prompt)


def test_the_same_prompt_again_computes_one_token(model: LoadedModel) -> None:
    bench = keeping(model)
    prompt = token_ids(f"{SYSTEM}Again")
    first = bench.run(prompt, replace(ENDLESS, max_tokens=1))
    before = bench.prefilled
    bench.start("b", prompt, replace(ENDLESS, max_tokens=1))
    bench.finish()
    assert bench.streams["b"].tokens == first.tokens
    assert bench.prefilled - before == 1


def test_an_aborted_sequence_leaves_what_it_has_computed(model: LoadedModel) -> None:
    bench = keeping(model)
    prompt = token_ids(f"{SYSTEM}Tell me a story")
    stream = bench.start("a", prompt, ENDLESS)
    while len(stream.tokens) < 5:
        bench.step()
    bench.generation.abort("a")
    again = [*prompt, *stream.tokens, *token_ids("or not")]
    bench.start("b", again, ENDLESS)
    bench.finish()
    assert cached(bench, "b") == len(prompt) + 5
    assert bench.streams["b"].tokens == alone(model, again)


def test_a_sequence_with_nothing_left_to_choose_leaves_what_its_tokens_have_made(model: LoadedModel) -> None:
    bench = keeping(model)
    prompt = token_ids(f"{SYSTEM}Tell me a story")
    only = token_ids("z")
    stuck = replace(ENDLESS, allowed_token_ids=tuple(only), bad_words=("zzz",))
    assert "no token to choose" in bench.run(prompt, stuck).failed.error.message
    again = [*prompt, *only * 2, *token_ids("and a song")]
    assert bench.run(again, ENDLESS).tokens == alone(model, again)


def test_a_preempted_sequence_does_not_compute_its_tokens_again(model: LoadedModel) -> None:
    bench = Bench(model, replace(POLICY, max_num_seqs=1), prefix_policy=KEEP)
    prompt = token_ids(f"{SYSTEM}Tell me a story")
    stream = bench.start("low", prompt, ENDLESS, priority="low")
    while len(stream.tokens) < 4:
        bench.step()
    bench.start("high", token_ids("zz"), replace(ENDLESS, max_tokens=3), priority="high")
    bench.finish()
    assert stream.tokens == alone(model, prompt)
    assert bench.prefilled <= len(prompt) + len("zz") + 2
    assert cached(bench, "low") == 0  # it is what it cost at first that counts


def test_tenants_share_nothing(model: LoadedModel) -> None:
    bench = keeping(model)
    prompt = token_ids(f"{SYSTEM}Secret")
    for number, salt in enumerate(("", "a", "b", "a")):
        bench.start(str(number), prompt, ENDLESS, salt=salt)
        bench.finish()
    assert [cached(bench, str(number)) for number in range(4)] == [0, 0, 0, len(prompt) - 1]


def test_no_more_is_kept_than_is_allowed(model: LoadedModel) -> None:
    texts = [f"{number} is where this prompt of some tokens begins, and others do not" for number in range(12)]
    prompts = [token_ids(text) for text in texts]
    expected = [alone(model, prompt) for prompt in prompts]
    measured = keeping(model)
    measured.run(prompts[0], ENDLESS)
    limit = 3 * measured.generation.prefix_telemetry().bytes
    del measured
    bench = keeping(model, replace(KEEP, memory_bytes=limit))
    base = mx.get_active_memory()
    excess: list[int] = []
    for prompt, tokens in zip(prompts, expected, strict=True):
        assert bench.run(prompt, ENDLESS).tokens == tokens
        telemetry = bench.generation.prefix_telemetry()
        assert 0 < telemetry.bytes <= limit
        excess.append(mx.get_active_memory() - base - telemetry.bytes)
    assert bench.generation.prefix_telemetry().evictions > 0
    assert max(excess[6:]) <= max(excess[:6]) + limit // 10  # nothing is held that is not counted


def test_running_sequences_need_the_memory_first(llama: Path) -> None:
    model = load(llama)
    size = model.kv_bytes_per_token
    bench = Bench(model, replace(POLICY, kv_budget_bytes=200 * size), prefix_policy=KEEP)
    bench.run(token_ids("a" * 100), ENDLESS)
    assert bench.generation.prefix_telemetry().bytes == 80 * size  # the rest was its own until it had ended
    other = bench.start("b", token_ids("b" * 120), ENDLESS)
    bench.step()
    assert bench.generation.prefix_telemetry().bytes <= (200 - 132) * size
    bench.finish()
    assert other.tokens == alone(model, token_ids("b" * 120))


def test_a_model_that_is_unloaded_takes_what_was_kept_with_it(model: LoadedModel) -> None:
    bench = keeping(model)
    bench.run(token_ids(SYSTEM), ENDLESS)
    assert bench.generation.prefix_telemetry().entries > 0
    bench.generation.models.remove(model.model_id)
    telemetry = bench.generation.prefix_telemetry()
    assert (telemetry.entries, telemetry.bytes) == (0, 0)


def test_it_tells_why_no_more_was_found(cuttable: LoadedModel) -> None:
    bench = keeping(cuttable)
    for number, prompt in enumerate((SYSTEM, f"{SYSTEM}More of it", f"Another{SYSTEM}", SYSTEM)):
        bench.start(str(number), token_ids(prompt), replace(ENDLESS, max_tokens=1))
        bench.finish()
    telemetry = bench.generation.prefix_telemetry()
    assert telemetry.miss_reasons == {"absent": 2, "differs": 1}
    assert (telemetry.hits, telemetry.misses) == (2, 2)
