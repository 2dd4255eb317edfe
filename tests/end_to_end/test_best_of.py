"""The best of several answers: OpenAI's own client, a real server, a real worker."""

from __future__ import annotations

from statistics import fmean
from typing import Any, cast

from openai import AsyncOpenAI
from openai.types import Completion

_ASKED: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "temperature": 1.0, "seed": 5}


async def _completion(client: AsyncOpenAI, **params: Any) -> Completion:
    return cast("Completion", await client.completions.create(**_ASKED, **params))


async def test_the_best_are_those_of_the_highest_log_probability_per_token(client: AsyncOpenAI) -> None:
    prompts = ["Once upon", "Hi"]
    candidates = await _completion(client, prompt=prompts, n=4, logprobs=0)
    best = await _completion(client, prompt=prompts, n=2, best_of=4)

    expected: list[str] = []
    for first in (0, 4):
        scores: dict[str, float] = {}
        for choice in candidates.choices[first : first + 4]:
            assert choice.logprobs is not None
            assert choice.logprobs.token_logprobs is not None
            scores[choice.text] = fmean(choice.logprobs.token_logprobs)
        assert len(scores) == 4
        expected += sorted(scores, key=scores.__getitem__, reverse=True)[:2]
    assert [choice.text for choice in best.choices] == expected
    assert all(choice.logprobs is None for choice in best.choices)
    assert best.usage == candidates.usage  # all four of each were generated


async def test_a_ranked_answer_shows_its_log_probabilities_when_they_are_asked_for(client: AsyncOpenAI) -> None:
    (best,) = (await _completion(client, prompt="Hi", best_of=3, logprobs=1)).choices
    assert best.logprobs is not None
    assert best.logprobs.tokens is not None
    assert len(best.logprobs.tokens) == 12
