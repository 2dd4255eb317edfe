"""Attention on a CPU is what mlx-lm's is, and only the models that are given to it use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias, cast

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.llama import Attention
from mlx_lm.utils import load_model

from mlx_serving.core.generation import SamplingParams
from mlx_serving.worker.cpu_attention import attend, speed_up
from mlx_serving.worker.prompts import Prompt

from .bench import Bench, Reference
from .bench import load as load_ours

Shape: TypeAlias = tuple[int, int, int, int, int, int]
"""Rows, heads, kv heads, tokens, how many are before them, head_dim."""

TOLERANCE = 5e-6  # of outputs whose size is about one
LOGITS = 1e-4
LONG = "A prompt that is long enough for its attention to be worth the trouble. " * 6

SHAPES: list[Shape] = [
    (1, 9, 3, 98, 300, 64),
    (1, 9, 3, 98, 0, 64),
    (1, 4, 4, 200, 1500, 16),
    (3, 8, 1, 50, 40, 32),
    (2, 4, 2, 700, 3, 16),
    (1, 9, 3, 1, 2000, 64),
    (16, 9, 3, 1, 130, 64),
    (1, 4, 2, 9, 20000, 16),
]


def seen_by(kind: Any) -> Any:
    """The function that its attention calls."""
    return kind.__call__.__globals__["scaled_dot_product_attention"]


def library(*arrays: mx.array, **more: Any) -> mx.array:
    """mlx-lm's function, told of as its models are."""
    return seen_by(Attention)(*arrays, **more)


def nobody(*_: mx.array, **__: Any) -> mx.array:
    raise AssertionError("left to the library")


def tensors(shape: Shape, spread: float = 1.0) -> tuple[mx.array, mx.array, mx.array]:
    rows, heads, groups, tokens, before, head_dim = shape
    mx.random.seed(7)
    queries = mx.random.normal((rows, heads, tokens, head_dim)) * spread
    room = (rows, groups, tokens + before + 20, head_dim)  # a cache has more room than it needs
    keys, values = mx.random.normal(room), mx.random.normal(room)
    return queries, keys[:, :, : tokens + before], values[:, :, : tokens + before]


def alike(shape: Shape, mask: mx.array | str | None, spread: float = 1.0) -> bool:
    arrays = tensors(shape, spread)
    scale = shape[-1] ** -0.5
    ours = attend(nobody, *arrays, None, scale, mask)
    theirs = library(*arrays, cache=None, scale=scale, mask=mask)
    assert ours.shape == theirs.shape
    return bool(mx.allclose(ours, theirs, rtol=0, atol=TOLERANCE * max(1.0, 2 * min(spread, 10.0))).item())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask", [None, "causal"])
def test_it_is_mlx_lm_s(shape: Shape, mask: str | None) -> None:
    assert alike(shape, mask)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dimensions", [2, 4])
def test_it_is_mlx_lm_s_with_any_mask(shape: Shape, dimensions: int) -> None:
    rows, _, _, tokens, before, _ = shape
    leading = (rows, 1) if dimensions == 4 else ()
    mask = mx.random.uniform(shape=(*leading, tokens, tokens + before)) < 0.5
    mask[..., 0] = True
    assert alike(shape, mask)
    one_for_all = mask[..., :1, :]
    assert alike(shape, one_for_all)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 30.0, 1e5, 1e9])
def test_it_is_mlx_lm_s_whatever_the_size_of_the_scores(spread: float) -> None:
    assert alike((1, 4, 2, 64, 64, 16), "causal", spread)


def test_what_is_not_seen_weighs_nothing() -> None:
    queries, keys, values = tensors((1, 4, 2, 64, 64, 16))
    mask = mx.arange(128)[None] < 100
    values[:, :, 100:] = 1e30
    ours = attend(nobody, queries, keys, values, None, 0.25, mask)
    assert mx.all(mx.abs(ours) < 10).item()


def test_what_is_broken_stays_so_and_spoils_no_other_token() -> None:
    queries, keys, values = tensors((2, 4, 2, 64, 64, 16))
    queries[1, 2, 5] = mx.nan
    ours = attend(nobody, queries, keys, values, None, 0.25, "causal")
    broken = mx.any(mx.isnan(ours), axis=-1)
    assert mx.all(broken[1, 2, 5]).item()
    assert mx.sum(broken).item() == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"sinks": mx.zeros(4)},
        {"mask": mx.zeros((64, 128))},
        {"mask": mx.ones((1, 4, 64, 128), dtype=mx.bool_)},
        {"queries": mx.zeros((1, 4, 8, 16)), "mask": None},
        {"queries": mx.zeros((1, 4, 64, 16), dtype=mx.float16)},
        {"keys": (mx.zeros((1, 2, 128, 4)),) * 3, "values": (mx.zeros((1, 2, 128, 4)),) * 3},
    ],
    ids=["sinks", "a mask to be added", "a mask a head", "few scores", "16 bits", "packed keys"],
)
def test_everything_else_is_left_to_the_library(changed: dict[str, Any]) -> None:
    queries, keys, values = tensors((1, 4, 2, 64, 64, 16))
    arguments: dict[str, Any] = {
        "queries": queries,
        "keys": keys,
        "values": values,
        "scale": 0.25,
        "mask": "causal",
        "sinks": None,
    }
    arguments |= {"cache": object(), **changed}
    answer = mx.zeros(1)
    seen: dict[str, Any] = {}

    def library_s(queries: mx.array, keys: Any, values: Any, **more: Any) -> mx.array:
        seen.update(queries=queries, keys=keys, values=values, **more)
        return answer

    assert attend(library_s, **arguments) is answer
    assert seen == arguments


def begun(directory: Path, *, ours: bool, pieces: int = 1) -> mx.array:
    """The logits after a long prompt."""
    model = load_model(directory)[0]
    if ours:
        speed_up(model)
    prompt = Prompt(model, [(index * index * 11 + index) % 250 for index in range(400)])
    for piece in range(pieces):
        prompt.advance(model, 399 * (piece + 1) // pieces)
    return cast(mx.array, cast(Any, model)(mx.array([prompt.token_ids[399:]]), cache=prompt.caches))[0, -1]


def logits(model: nn.Module, tokens: mx.array) -> mx.array:
    return cast(mx.array, cast(Any, model)(tokens))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "lfm2", "llama4"])
def test_the_logits_of_a_model_are_mlx_lm_s_in_any_pieces(architecture: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(architecture)
    expected = begun(directory, ours=False)
    for pieces in (1, 3):
        assert mx.allclose(begun(directory, ours=True, pieces=pieces), expected, rtol=0, atol=LOGITS).item()


def test_the_attention_of_a_loaded_model_is_ours(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = load_ours(llama).model, load_model(llama)[0]
    tokens = mx.array([[5] * 100])
    expected = logits(other, tokens)
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", nobody)
    assert mx.allclose(logits(model, tokens), expected, rtol=0, atol=LOGITS).item()
    with pytest.raises(AssertionError, match="left to the library"):
        logits(other, tokens)


def kinds(model: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in cast("list[nn.Module]", model.modules())}


def test_only_the_model_that_is_given_to_it_changes(llama: Path) -> None:
    ours, other = load_model(llama)[0], load_model(llama)[0]
    method, library_s = Attention.__call__, seen_by(Attention)
    speed_up(ours)
    once = kinds(ours)
    speed_up(ours)
    assert kinds(ours) == once
    assert Attention not in once
    assert any(issubclass(kind, Attention) for kind in once)
    assert type(cast(Any, other).layers[0].self_attn) is Attention
    assert Attention.__call__ is method
    assert seen_by(Attention) is library_s


def test_a_long_prompt_is_answered_with_mlx_lm_s_tokens(llama: Path) -> None:
    tokens = Bench(load_ours(llama)).run(LONG, SamplingParams(max_tokens=24)).tokens
    assert tokens == Reference(llama).tokens(LONG, 24)
    assert tokens
