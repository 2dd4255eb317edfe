from __future__ import annotations

import pytest

from mlx_serving.bench.prompts import make_prompts
from mlx_serving.bench.target import Count


async def _words(text: str) -> int:
    return len(text.split())


async def _bytes(text: str) -> int:
    return len(text)


async def _quarters(text: str) -> int:
    return -(-len(text) // 4)


@pytest.mark.parametrize("count", [_words, _bytes, _quarters])
@pytest.mark.parametrize("tokens", [1, 2, 7, 128, 500])
async def test_a_tokenizer_cuts_prompts_to_length(count: Count, tokens: int) -> None:
    prompts = await make_prompts(4, tokens, "seed", count_tokens=count)
    counts = [await count(prompt) for prompt in prompts]
    assert counts == [tokens] * 4
    assert tokens < 100 or len(set(prompts)) == 4


async def test_without_a_tokenizer_words_are_counted() -> None:
    prompts = await make_prompts(3, 100, "seed", count_tokens=None, words_per_token=0.5)
    assert [len(prompt.split()) for prompt in prompts] == [50, 50, 50]
    assert len(set(prompts)) == 3


async def test_the_same_seed_gives_the_same_prompts() -> None:
    first, again, other = [await make_prompts(2, 20, seed, count_tokens=None) for seed in ("a", "a", "b")]
    assert first == again
    assert set(first).isdisjoint(other)


async def test_a_tokenizer_that_no_text_suits_is_given_up() -> None:
    async def always_seven(_text: str) -> int:
        return 7

    assert len(await make_prompts(1, 40, "seed", count_tokens=always_seven)) == 1
