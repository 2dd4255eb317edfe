from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.choices import MAX_SEQUENCES, Choices, Completion, ToolCall, Transcript, Usage, seed_of
from mlx_serving.core.generation import (
    Delta,
    FinishReason,
    GenerationRequest,
    GenerationStats,
    Logprobs,
    SamplingParams,
    TextPrompt,
    TokenLogprob,
    ToolCallDelta,
)
from mlx_serving.core.sampling_defaults import MAX_SEED
from mlx_serving.core.schedule.scheduling import SchedulerPolicy

REQUEST = GenerationRequest("r", "m", TextPrompt("a"), SamplingParams(max_tokens=5, seed=7), "low", "bob", 1.5)
A, B = TextPrompt("a"), TextPrompt("b")


def _stats(prompt_tokens: int, tokens: int) -> GenerationStats:
    return GenerationStats(prompt_tokens, tokens, 0.0, 0.0, 0.0)


def _completion(text: str, *logprobs: float) -> Completion:
    places = tuple(_logprob(logprob) for logprob in logprobs)
    return Completion(text, FinishReason.STOP, _stats(1, len(logprobs)), places)


def _logprob(logprob: float) -> Logprobs:
    return Logprobs(TokenLogprob(0, logprob, b"x"))


# --- limits


def _problems(n: int = 1, best_of: int | None = None, prompts: int = 1) -> list[tuple[str | None, object, object]]:
    found = Choices(n, n if best_of is None else best_of).problems(prompts)
    return [(one.field, one.details["limit"], one.details["given"]) for one in found]


@pytest.mark.parametrize(("n", "best_of", "prompts"), [(1, 1, 1), (128, 128, 1), (1, 128, 1), (4, 8, 16), (1, 1, 128)])
def test_what_is_within_the_limits_has_no_problems(n: int, best_of: int, prompts: int) -> None:
    assert _problems(n, best_of, prompts) == []


@pytest.mark.parametrize("n", [0, -1, 129])
def test_n_has_limits(n: int) -> None:
    assert _problems(n) == [("n", "a whole number of at least 1 and at most 128", n)]


def test_of_fewer_candidates_than_answers_none_can_be_the_best() -> None:
    assert _problems(3, 2) == [("best_of", "at least n, which is 3", 2)]


def test_candidates_are_limited_too() -> None:
    assert _problems(3, 129) == [("best_of", "at most 128", 129)]


@pytest.mark.parametrize(
    ("n", "prompts", "words"),
    [(1, 129, "at most 128 answers in one request, got 129 prompts"), (43, 3, "got 3 prompts of 43 answers each")],
)
def test_all_sequences_of_a_request_are_limited_together(n: int, prompts: int, words: str) -> None:
    (problem,) = Choices(n, n).problems(prompts)
    assert problem.message.endswith(words)
    assert (problem.field, problem.details["limit"], problem.details["given"]) == ("prompt", 128, n * prompts)


def test_no_request_takes_more_than_half_of_the_default_queue() -> None:
    assert SchedulerPolicy().max_queue // 2 >= MAX_SEQUENCES


# --- sequences


def test_one_answer_is_the_request_itself() -> None:
    assert Choices().expand(REQUEST, (A,)) == (REQUEST,)


def test_the_sequences_of_a_prompt_differ_in_id_seed_and_sibling_only() -> None:
    first, second, third = Choices(3, 3).expand(REQUEST, (A,))
    assert first == REQUEST
    assert (second.request_id, third.request_id) == ("r-1", "r-2")
    assert (second.fork_of, third.fork_of) == ("r", "r")
    assert len({each.sampling.seed for each in (first, second, third)}) == 3
    for each in (second, third):
        same = replace(each, request_id="r", fork_of=None, sampling=replace(each.sampling, seed=7))
        assert same == REQUEST


def test_several_prompts_come_prompt_by_prompt_and_fork_the_first_of_their_own() -> None:
    requests = Choices(2, 2).expand(REQUEST, (A, B))
    assert [(each.request_id, each.prompt, each.fork_of) for each in requests] == [
        ("r", A, None), ("r-1", A, "r"), ("r-2", B, None), ("r-3", B, "r-2"),
    ]  # fmt: skip


def test_a_prompt_among_others_has_the_seeds_that_it_has_alone() -> None:
    alone = Choices(2, 2).expand(REQUEST, (B,))
    among = Choices(2, 2).expand(REQUEST, (A, B))[2:]
    assert [each.sampling for each in among] == [each.sampling for each in alone]


def test_without_a_seed_every_sequence_draws_its_own() -> None:
    unseeded = replace(REQUEST, sampling=SamplingParams())
    assert {each.sampling.seed for each in Choices(3, 3).expand(unseeded, (A, B))} == {None}


@pytest.mark.parametrize(("asked", "sent"), [(None, 0), (0, 0), (3, 3)])
def test_ranking_needs_the_log_probabilities_of_what_was_chosen(asked: int | None, sent: int) -> None:
    request = replace(REQUEST, sampling=SamplingParams(logprobs=asked))
    assert [each.sampling.logprobs for each in Choices(1, 2).expand(request, (A,))] == [sent, sent]
    assert [each.sampling.logprobs for each in Choices(2, 2).expand(request, (A,))] == [asked, asked]


# --- seeds


@given(st.integers(0, MAX_SEED))
def test_candidates_have_different_seeds_of_the_allowed_range_and_the_first_has_its_own(seed: int) -> None:
    seeds = [seed_of(seed, candidate) for candidate in range(MAX_SEQUENCES)]
    assert seeds[0] == seed
    assert len(set(seeds)) == MAX_SEQUENCES
    assert all(0 <= each <= MAX_SEED for each in seeds)


def test_neighbouring_seeds_share_no_candidates() -> None:
    seeds = [seed_of(seed, candidate) for seed in range(1000) for candidate in range(8)]
    assert len(set(seeds)) == len(seeds)


def test_seeds_stay_what_they_are_so_that_texts_can_be_had_again() -> None:
    # The first is the first number of the published generator, which starts from 0 as well.
    assert [seed_of(0, 1), seed_of(1, 1), seed_of(MAX_SEED, 127)] == [
        0xE220A8397B1DCDAF, 0xBFEF8030DDC2D772, 0x3576A3BD03A4F744,
    ]  # fmt: skip


# --- the best


def test_unranked_answers_keep_their_order() -> None:
    completions = [_completion("a", -9.0), _completion("b", -1.0)]
    assert Choices(2, 2).select(completions) == completions


def test_the_best_has_the_highest_log_probability_per_token() -> None:
    short, long, worst = _completion("short", -1.0), _completion("long", -0.9, -0.9), _completion("worst", -2.0)
    assert Choices(2, 3).select([short, worst, long]) == [long, short]


def test_each_prompt_has_its_own_best() -> None:
    a = [_completion("a0", -3.0), _completion("a1", -2.0)]
    b = [_completion("b0", -0.5), _completion("b1", -0.6)]
    assert [each.text for each in Choices(1, 2).select([*a, *b])] == ["a1", "b0"]


def test_of_equals_the_earlier_one_is_the_better_and_one_without_tokens_the_worst() -> None:
    completions = [_completion("empty"), _completion("first", -1.0), _completion("second", -1.0, -1.0)]
    assert [each.text for each in Choices(2, 3).select(completions)] == ["first", "second"]
    assert _completion("empty").score() == -math.inf


# --- costs


def test_a_prompt_counts_once_and_every_token_that_was_generated() -> None:
    stats = [_stats(10, 3), _stats(10, 5), _stats(20, 1), _stats(20, 2)]
    usage = Choices(1, 2).usage(stats)
    assert usage == Usage(prompt_tokens=30, completion_tokens=11)
    assert usage.total_tokens == 41


def test_a_transcript_collects_text_and_log_probabilities() -> None:
    first, second = _logprob(-0.5), _logprob(-0.25)
    transcript = Transcript()
    transcript.add(Delta("He", (1,), logprobs=(first,)))
    transcript.add(Delta("llo", (2,), FinishReason.LENGTH, logprobs=(second,)))
    stats = _stats(1, 2)
    assert transcript.completed(FinishReason.LENGTH, stats) == Completion(
        "Hello", FinishReason.LENGTH, stats, (first, second)
    )


def test_a_transcript_collects_reasoning_and_calls_in_their_order() -> None:
    transcript = Transcript()
    transcript.add(Delta("", (1,), reasoning="hm", tool_calls=(ToolCallDelta(1, "b", "g", "{"),)))
    transcript.add(
        Delta("", (2,), reasoning="m", tool_calls=(ToolCallDelta(0, "a", "f", "{}"), ToolCallDelta(1, arguments="}")))
    )
    done = transcript.completed(FinishReason.TOOL_CALLS, _stats(1, 2))
    assert done.reasoning == "hmm"
    assert done.tool_calls == (ToolCall("a", "f", "{}"), ToolCall("b", "g", "{}"))
