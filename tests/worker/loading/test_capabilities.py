"""What a model can do is found by trying it, whatever its cache classes promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import CacheList, KVCache, RotatingKVCache
from mlx_lm.utils import load_model

from mlx_serving.wire.methods import ModelCapabilities
from mlx_serving.worker.loading.capabilities import kv_bytes_and_logits, probe

from ...tiny_models import make_llama

ALL_BUT_QUANTISING = ModelCapabilities(batch=True, batch_prefill=True, trim=True, quantise_cache=False, draft=True)
BATCHING = ModelCapabilities(batch=True, batch_prefill=True, trim=False, quantise_cache=False, draft=False)
NONE = ModelCapabilities(batch=False, batch_prefill=False, trim=False, quantise_cache=False, draft=False)


@pytest.fixture
def model_of(request: pytest.FixtureRequest) -> Callable[[str], nn.Module]:
    return lambda name: load_model(request.getfixturevalue(name))[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", ALL_BUT_QUANTISING),
        ("qwen3", ALL_BUT_QUANTISING),
        ("quantised", ALL_BUT_QUANTISING),
        ("gemma3", BATCHING),
        ("lfm2", BATCHING),
        ("mamba", ModelCapabilities(batch=True, batch_prefill=False, trim=False, quantise_cache=False, draft=False)),
        ("llama4", NONE),
    ],
)
def test_each_architecture_can_what_it_can(
    model_of: Callable[[str], nn.Module], name: str, expected: ModelCapabilities
) -> None:
    """mamba's state takes padding in; windows, convolutions, states and chunks cannot be cut; llama4's chunks cannot
    be merged; the heads of all are smaller than what is quantised together."""
    assert probe(model_of(name)) == expected


def test_a_cache_with_large_heads_can_be_quantised(tmp_path: Path) -> None:
    model = load_model(make_llama(tmp_path / "model", head_dim=64))[0]
    assert probe(model) == ModelCapabilities(batch=True, batch_prefill=True, trim=True, quantise_cache=True, draft=True)


def altered(model: nn.Module, forward: Callable[[Any, mx.array, list[Any]], mx.array]) -> nn.Module:
    """The same model with another forward pass; it is given the pass that it replaces."""
    kind: Any = type(model)

    class Altered(kind):
        def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
            return forward(lambda: kind.__call__(self, inputs, cache=cache), inputs, cache)

    model.__class__ = Altered
    return model


def test_a_model_that_refuses_several_rows_is_not_batched(model_of: Callable[[str], nn.Module]) -> None:
    def refuse(forward: Callable[[], mx.array], inputs: mx.array, cache: list[Any]) -> mx.array:
        if inputs.shape[0] > 1:
            raise ValueError("does not yet support batching")
        return forward()

    capabilities = probe(altered(model_of("llama"), refuse))
    assert (capabilities.batch, capabilities.batch_prefill, capabilities.trim) == (False, False, True)


def test_a_model_whose_rows_touch_each_other_is_not_batched(model_of: Callable[[str], nn.Module]) -> None:
    def mix(forward: Callable[[], mx.array], inputs: mx.array, cache: list[Any]) -> mx.array:
        logits = forward()
        return logits + logits[::-1] if inputs.shape[0] > 1 else logits

    capabilities = probe(altered(model_of("llama"), mix))
    assert (capabilities.batch, capabilities.trim) == (False, True)


def test_a_model_that_spoils_long_rows_beside_short_ones_computes_prompts_alone(
    model_of: Callable[[str], nn.Module],
) -> None:
    """Its decode steps are right, so it batches those."""

    def spoil(forward: Callable[[], mx.array], inputs: mx.array, cache: list[Any]) -> mx.array:
        logits = forward()
        if min(inputs.shape) > 1:
            cache[0].keys = cache[0].keys * 3
        return logits

    capabilities = probe(altered(model_of("llama"), spoil))
    assert (capabilities.batch, capabilities.batch_prefill) == (True, False)


def test_a_model_that_keeps_a_state_of_its_own_cannot_be_cut(model_of: Callable[[str], nn.Module]) -> None:
    seen: list[int] = []

    def count(forward: Callable[[], mx.array], inputs: mx.array, cache: list[Any]) -> mx.array:
        cache[0].seen = seen_by_cache = getattr(cache[0], "seen", 0) + inputs.shape[1]
        seen.append(seen_by_cache)
        logits = forward()
        return logits + seen_by_cache * mx.arange(logits.shape[-1])

    capabilities = probe(altered(model_of("llama"), count))
    assert (capabilities.trim, capabilities.draft) == (False, False)


@pytest.mark.parametrize(
    ("name", "layers", "heads"), [("llama", 2, 2), ("gemma3", 2, 1), ("lfm2", 1, 2), ("mamba", 0, 0), ("llama4", 4, 2)]
)
def test_the_bytes_of_a_token_in_the_caches_are_those_of_keys_and_values(
    model_of: Callable[[str], nn.Module], name: str, layers: int, heads: int
) -> None:
    """float32 keys and values of the attention layers; a recurrent state does not grow."""
    assert kv_bytes_and_logits(model_of(name))[0] == layers * heads * 2 * 16 * 4


def test_caches_within_caches_are_counted() -> None:
    class Nested(nn.Module):
        def make_cache(self) -> list[Any]:
            nested: Any = CacheList
            return [nested(KVCache(), RotatingKVCache(8))]

        def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
            for one in cache[0].caches:
                one.update_and_fetch(mx.zeros((1, 1, 1, 4)), mx.zeros((1, 1, 1, 4)))
            return mx.zeros((1, 1, 9))

    assert kv_bytes_and_logits(Nested()) == (2 * 2 * 4 * 4, 9)
