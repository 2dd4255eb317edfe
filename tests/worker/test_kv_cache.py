"""Rows of a slot cache against the same sequences in caches of their own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache, RotatingKVCache
from mlx_lm.utils import load_model

from mlx_serving.core.kv_form import KvForm
from mlx_serving.worker.decode_layer import DecodeLayer, MergedCache, SoloCache, decode_layer
from mlx_serving.worker.kv_cache import GROWTH_TOKENS, RowLengths, SlotKVCache
from mlx_serving.worker.packed_kv import make_caches

from ..tiny_models import VOCABULARY

TOLERANCE = 1e-4


def prompt_of(seed: int, length: int) -> list[int]:
    return [(seed * 37 + index * index * 11 + index) % VOCABULARY for index in range(length)]


class Crowd:
    """Sequences in one batch, each with a twin in caches of its own; every step compares their logits."""

    def __init__(self, model: nn.Module, form: KvForm | None = None) -> None:
        self._model: Any = model
        self._form = form
        self._lengths = RowLengths()
        self._layers: list[DecodeLayer] = []
        self._twins: list[list[Any]] = []
        self._next: list[int] = []

    def __len__(self) -> int:
        return len(self._twins)

    @property
    def slot_caches(self) -> list[SlotKVCache]:
        return [layer for layer in self._layers if isinstance(layer, SlotKVCache)]

    def join(self, prompt: list[int], place: int | None = None) -> None:
        """As the last row, or in the place of one that leaves."""
        caches, twin = make_caches(self._model, self._form), make_caches(self._model, self._form)
        for one in (caches, twin):
            if prompt[:-1]:
                self._model(mx.array([prompt[:-1]]), cache=one)
        if not self._layers:
            self._layers = [decode_layer(one, self._lengths) for one in caches]
        place = len(self._twins) if place is None else place
        for layer, cache in zip(self._layers, caches, strict=True):
            layer.put(place, cache)
        self._lengths.put(place, len(prompt) - 1)
        self._twins[place : place + 1] = [twin]
        self._next[place : place + 1] = [prompt[-1]]

    def leave(self, *leaving: int) -> None:
        """The last of those who stay take the places of those who leave."""
        stay = [index for index in range(len(self)) if index not in leaving]
        tail = [index for index in stay if index >= len(stay)]
        self.arrange([tail.pop() if index in leaving else index for index in range(len(stay))])

    def arrange(self, order: list[int]) -> None:
        self._lengths.arrange(order)
        if order:
            for layer in self._layers:
                layer.arrange(order)
        else:
            self._layers = []
        self._twins = [self._twins[index] for index in order]
        self._next = [self._next[index] for index in order]

    def step(self, more: int = 0) -> None:
        """Row i takes `(more >> 2 * i) % 4` tokens beyond the one it takes anyway."""
        tokens = [[token, *prompt_of(token, (more >> 2 * row) % 4)] for row, token in enumerate(self._next)]
        counts = [len(row) for row in tokens]
        self._lengths.widen(max(counts))
        fed = mx.array([row + [0] * (max(counts) - len(row)) for row in tokens])
        logits = cast(mx.array, self._model(fed, cache=[layer.cache for layer in self._layers]))
        logits = logits[mx.arange(len(counts)), mx.array(counts) - 1]
        self._lengths.advance(counts)
        alone = mx.concatenate(
            [
                cast(mx.array, self._model(mx.array([row]), cache=twin))[:, -1]
                for row, twin in zip(tokens, self._twins, strict=True)
            ]
        )
        assert mx.allclose(logits, alone, rtol=0, atol=TOLERANCE).item()
        self._next = cast(list[int], mx.argmax(alone, axis=-1).tolist())


@pytest.fixture(scope="module", params=["llama", "gemma3", "lfm2"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return load_model(request.getfixturevalue(request.param))[0]


@pytest.fixture(scope="module")
def plain(llama: Path) -> nn.Module:
    return load_model(llama)[0]


def key_values(length: int, *, heads: int = 2, dim: int = 4, value: float = 1.0) -> KVCache:
    cache: Any = KVCache()
    if length:
        cache.update_and_fetch(mx.full((1, heads, length, dim), value), mx.full((1, heads, length, dim), -value))
    return cast(KVCache, cache)


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(1, 24)),
        st.tuples(st.just("replace"), st.integers(1, 24)),
        st.tuples(st.just("leave"), st.integers(0, 2**6 - 1)),
        st.tuples(st.just("step"), st.integers(1, 3)),
    ),
    max_size=14,
)


@settings(max_examples=25, deadline=None)
@given(events=EVENTS)
def test_rows_that_come_and_go_have_the_logits_they_have_alone(model: nn.Module, events: list[tuple[str, int]]) -> None:
    crowd = Crowd(model)
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


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=4), steps=st.lists(st.integers(0, 255), max_size=6))
def test_rows_take_different_numbers_of_tokens_in_one_step(
    plain: nn.Module, lengths: list[int], steps: list[int]
) -> None:
    crowd = Crowd(plain)
    for seed, length in enumerate(lengths):
        crowd.join(prompt_of(seed, length))
    for more in steps:
        crowd.step(more)
    crowd.leave(0)
    crowd.join(prompt_of(9, 5))
    crowd.step()


@pytest.mark.parametrize("first", [0, 1, 2])
def test_whoever_leaves_the_rest_go_on(model: nn.Module, first: int) -> None:
    crowd = Crowd(model)
    for seed, length in enumerate((3, 17, 9)):
        crowd.join(prompt_of(seed, length))
    crowd.step()
    crowd.leave(first)
    crowd.step()
    crowd.join(prompt_of(7, 12))
    crowd.step()
    for _ in range(2):
        crowd.leave(0)
        crowd.step()


def test_prompts_of_one_token_begin_with_nothing(model: nn.Module) -> None:
    """Alone, together, and beside a long one, in each order."""
    crowd = Crowd(model)
    crowd.join([5])
    crowd.step()
    crowd.join([6])
    crowd.join(prompt_of(1, 20))
    crowd.join([7])
    for _ in range(3):
        crowd.step()


@pytest.mark.parametrize("length", [GROWTH_TOKENS - 2, GROWTH_TOKENS - 1, GROWTH_TOKENS, GROWTH_TOKENS + 1])
def test_a_cache_grows_past_its_first_tokens(plain: nn.Module, length: int) -> None:
    crowd = Crowd(plain)
    crowd.join(prompt_of(0, length))
    crowd.join(prompt_of(1, 4))
    for _ in range(4):
        crowd.step()
    crowd.join(prompt_of(2, 2 * GROWTH_TOKENS + 3))
    for _ in range(2):
        crowd.step()
    crowd.leave(0)
    crowd.step()


def test_memory_grows_in_steps(plain: nn.Module) -> None:
    crowd = Crowd(plain)
    crowd.join(prompt_of(0, 10))
    caches = crowd.slot_caches
    row = 2 * 2 * 16 * 4 * GROWTH_TOKENS  # keys and values, heads, head_dim, bytes
    assert [cache.nbytes for cache in caches] == [row, row]
    crowd.step()
    assert caches[0].nbytes == row
    crowd.join(prompt_of(1, GROWTH_TOKENS + 10))
    assert caches[0].nbytes == 4 * row
    crowd.leave(0)
    crowd.step()
    assert caches[0].nbytes == 4 * row


@pytest.mark.parametrize("window", [3, 4, 8])
def test_a_window_shows_each_row_its_last_tokens(window: int) -> None:
    rows = RowLengths()
    for index, length in enumerate((2, 7, 0)):
        rows.put(index, length)
    mask = rows.mask(window)
    assert mask.shape == (3, 1, 1, 8)
    for index, length in enumerate(rows.lengths):
        seen = [position for position, shown in enumerate(cast(list[bool], mask[index, 0, 0].tolist())) if shown]
        assert seen == [position for position in range(length + 1) if position > length - window]


def test_rows_that_are_as_long_need_no_mask_and_have_one_offset() -> None:
    rows = RowLengths()
    cache = SlotKVCache(rows)
    for index in range(2):
        cache.put(index, key_values(5))
        rows.put(index, 5)
    assert (cache.offset, cache.make_mask(1)) == (5, None)
    assert cache.make_mask(1, window_size=6) is None
    assert cache.make_mask(2) == "causal"
    narrow = cache.make_mask(1, window_size=5)
    assert isinstance(narrow, mx.array)
    assert narrow[:, 0, 0].tolist() == [[False] + [True] * 5] * 2
    whole = cache.make_mask(1, return_array=True)
    assert isinstance(whole, mx.array)
    assert whole.all().item()


def test_rows_of_different_lengths_have_a_mask_and_an_offset_each() -> None:
    rows = RowLengths()
    cache = SlotKVCache(rows)
    for index, length in enumerate((1, 3)):
        cache.put(index, key_values(length))
        rows.put(index, length)
    assert isinstance(cache.offset, mx.array)
    assert cache.offset.tolist() == [1, 3]
    mask = cache.make_mask(1)
    assert isinstance(mask, mx.array)
    assert mask[:, 0, 0].tolist() == [[True, True, False, False], [True] * 4]
    rows.advance()
    assert cache.offset.tolist() == [2, 4]
    rows.arrange([1])
    assert cache.offset == 4


def test_what_a_broken_row_left_behind_does_not_reach_the_next_in_its_slot() -> None:
    """Not a number times a weight of zero is not a number."""
    rows = RowLengths()
    cache = SlotKVCache(rows)
    for index, (length, value) in enumerate(((2, 1.0), (9, float("nan")), (6, 1.0))):
        cache.put(index, key_values(length, value=value))
        rows.put(index, length)
    cache.arrange([0, 2])
    rows.arrange([0, 2])
    for index, length in ((2, 1), (3, 0)):
        cache.put(index, key_values(length))
        rows.put(index, length)
    keys, values = cache.update_and_fetch(mx.ones((4, 2, 1, 4)), mx.ones((4, 2, 1, 4)))
    assert not mx.isnan(keys).any().item()
    assert not mx.isnan(values).any().item()


def test_rotating_caches_are_merged_and_filtered() -> None:
    layer = MergedCache()
    for index, (length, value) in enumerate(((2, 1.0), (5, 2.0), (3, 3.0))):
        row: Any = RotatingKVCache(max_size=4)
        row.update_and_fetch(mx.full((1, 1, length, 2), value), mx.full((1, 1, length, 2), value))
        layer.put(index, row)
    layer.arrange([2, 1])
    keys, _ = layer.cache.update_and_fetch(mx.zeros((2, 1, 1, 2)), mx.zeros((2, 1, 1, 2)))
    assert [sorted(set(cast(list[float], keys[row].flatten().tolist()))) for row in (0, 1)] == [[0.0, 3.0], [0.0, 2.0]]


def test_a_sequence_that_cannot_share_keeps_its_own_cache() -> None:
    layer, own = SoloCache(), key_values(3)
    layer.put(0, own)
    layer.arrange([0])
    assert layer.cache is layer.extract(0) is own


def room(spare_tokens: float, *lengths: int) -> tuple[int, int]:
    """Slots and tokens of a cache that rows of these lengths have joined, one after the other."""
    rows = RowLengths()
    rows.spare_tokens = spare_tokens
    cache = SlotKVCache(rows)
    for index, length in enumerate(lengths):
        cache.put(index, key_values(length))
        rows.put(index, length)
    keys, _ = cache.state
    assert keys is not None
    return keys.shape[0], keys.shape[2]


def test_slots_double_as_long_as_little_memory_is_spared_for_them() -> None:
    assert room(math.inf, 100, 100, 100) == (4, 128)
    assert room(128, 100, 100, 100) == (3, 128)
    assert room(0, *[100] * 5) == (5, 104)


def test_long_contexts_grow_by_larger_steps_as_long_as_memory_is_spared_for_them() -> None:
    assert room(math.inf, 4090, 4096) == (2, 4096)
    assert room(math.inf, 4090, 4097) == (2, 4096 + 512)
    assert room(300, 4090, 4097) == (2, 4096 + 320)
    assert room(0, 4090, 4097) == (2, 4096 + 8)


def test_what_no_row_needs_can_be_given_back() -> None:
    rows = RowLengths()
    cache = SlotKVCache(rows)
    for index, length in enumerate((200, 3, 5, 1000)):
        cache.put(index, key_values(length, value=float(index)))
        rows.put(index, length)
    rows.arrange([2, 1])
    cache.arrange([2, 1])
    cache.shrink()
    keys, values = cache.state
    assert keys is not None
    assert values is not None
    assert keys.shape[::2] == values.shape[::2] == (2, 64)
    assert [cache.extract(index).keys[0, 0, :, 0].tolist() for index in (0, 1)] == [[2.0] * 5, [1.0] * 3]
    before = mx.get_active_memory()
    cache.shrink()
    assert mx.get_active_memory() == before


@pytest.mark.parametrize("stays", [0, 1])
def test_memory_that_is_given_back_is_free(stays: int) -> None:
    rows = RowLengths()
    cache = SlotKVCache(rows)
    cache.put(0, key_values(100_000))
    rows.put(0, 100_000)
    cache.put(1, key_values(10))
    rows.put(1, 10)
    mx.eval(cache.state)  # pyright: ignore[reportUnknownMemberType]  untyped in MLX's stub
    before, had = mx.get_active_memory(), cache.nbytes
    rows.arrange([stays])
    cache.arrange([stays])
    cache.shrink()
    assert cache.nbytes <= had / 2
    assert before - mx.get_active_memory() >= (had - cache.nbytes) * 0.9


def test_a_row_that_is_extracted_is_the_row_that_came() -> None:
    rows = RowLengths()
    cache = SlotKVCache(rows)
    for index, length in enumerate((3, 5, 0)):
        cache.put(index, key_values(length, value=float(index)))
        rows.put(index, length)
    copy = cache.extract(1)
    assert copy.offset == 5
    assert copy.keys.tolist() == [[[[1.0] * 4] * 5] * 2]
    assert copy.values.tolist() == [[[[-1.0] * 4] * 5] * 2]
    assert cache.extract(2).offset == 0


def test_rows_are_moved_in_place_while_their_batch_computes() -> None:
    """Memory does not hold the batch twice, whose caches may take most of it."""
    rows = RowLengths()
    cache = SlotKVCache(rows)
    for index in range(16):
        cache.put(index, key_values(200, dim=64))
        rows.put(index, 200)
    cast(Any, mx).eval(cache.state)
    cast(Any, mx).async_eval(cache.update_and_fetch(mx.ones((16, 2, 1, 64)), mx.ones((16, 2, 1, 64))))
    mx.reset_peak_memory()
    held = mx.get_active_memory()
    cache.arrange([15, 14, *range(2, 14)])
    cast(Any, mx).eval(cache.state)
    assert mx.get_peak_memory() - held < cache.nbytes / 4


@pytest.mark.parametrize("lengths", [[200] * 16, [200, *range(180, 195)], [200, *range(180, 191)]])
def test_tokens_are_added_in_place(lengths: list[int]) -> None:
    """To rows of one length and of different ones, whether or not all slots are taken."""
    rows = RowLengths()
    cache = SlotKVCache(rows)
    for index, length in enumerate(lengths):
        cache.put(index, key_values(length, dim=64))
        rows.put(index, length)
    cast(Any, mx).eval(cache.state)
    mx.reset_peak_memory()
    held = mx.get_active_memory()
    token = mx.ones((len(lengths), 2, 1, 64))
    keys = mx.array([])
    for _ in range(3):
        keys, _ = cache.update_and_fetch(token, token)
        rows.advance()
        cast(Any, mx).eval(cache.state)
    assert mx.get_peak_memory() - held < cache.nbytes / 4
    sums = cast(list[float], cast(Any, keys[:, 0, :, 0].sum(axis=1)).tolist())
    assert sums == [length + 3.0 for length in lengths]
