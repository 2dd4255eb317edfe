"""Pieces of prompts, alone and together, leave in the caches what whole prompts leave there."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.utils import load_model

from mlx_serving.worker.prompts import Prompt, advance_all, begin_together

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3", "lfm2"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    """Those whose prompts may share a pass."""
    return load_model(request.getfixturevalue(request.param))[0]


def prompt_of(model: nn.Module, seed: int, length: int) -> Prompt:
    return Prompt(model, [(seed * 37 + index * index * 11 + index) % 250 for index in range(length)])


def logits(model: Any, prompt: Prompt) -> mx.array:
    """After the first token that was not computed."""
    return cast(mx.array, model(mx.array([[prompt.token_ids[prompt.done]]]), cache=prompt.caches))[0, -1]


def assert_like_alone(model: nn.Module, prompt: Prompt) -> None:
    twin = Prompt(model, prompt.token_ids)
    twin.advance(model, prompt.done)
    assert mx.allclose(logits(model, prompt), logits(model, twin), rtol=0, atol=TOLERANCE).item()


def test_pieces_of_any_size_are_the_whole(model: nn.Module) -> None:
    prompt = prompt_of(model, 1, 60)
    for end in (1, 2, 30, 30, 59):
        prompt.advance(model, end)
    assert prompt.done == 59
    assert_like_alone(model, prompt)


@pytest.mark.parametrize("ends", [(20, 20), (1, 40), (33, 7, 21, 2), (17,)])
def test_beginnings_that_share_a_pass_are_what_they_are_alone(model: nn.Module, ends: tuple[int, ...]) -> None:
    prompts = [prompt_of(model, seed, 60) for seed in range(len(ends))]
    begin_together(model, list(zip(prompts, ends, strict=True)))
    assert [prompt.done for prompt in prompts] == list(ends)
    for prompt, more in zip(prompts, (0, 1, 19, 5), strict=False):
        prompt.advance(model, prompt.done + more)
        assert_like_alone(model, prompt)


def test_only_beginnings_share_passes(model: nn.Module) -> None:
    begun, empty, *fresh = [prompt_of(model, seed, 60) for seed in range(4)]
    begun.advance(model, 10)
    pieces = [(begun, 20), (empty, 0), *((prompt, 20) for prompt in fresh)]
    advance_all(model, pieces, together=True)
    assert [prompt.done for prompt, _ in pieces] == [20, 0, 20, 20]
    for prompt, _ in pieces:
        assert_like_alone(model, prompt)
