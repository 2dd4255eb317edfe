"""What a chunk of a prompt takes, and the largest chunk for what there is."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.schedule.prefill_memory import PrefillMemory, of_shape

MEMORIES = st.builds(PrefillMemory, st.floats(1, 1e6), st.just(0.0) | st.floats(1, 1e3))


def test_a_chunk_takes_its_activations_and_its_scores() -> None:
    memory = PrefillMemory(per_token=10, per_pair=2)
    assert memory.size(0, 5) == 5 * (10 + 2 * 5)
    assert memory.size(100, 5) == 5 * (10 + 2 * 105)


@given(memory=MEMORIES, start=st.integers(0, 10**6), count=st.integers(1, 10**4))
def test_the_tokens_within_a_size_are_those_that_take_it(memory: PrefillMemory, start: int, count: int) -> None:
    assert memory.tokens_within(memory.size(start, count), start) == pytest.approx(count)


def test_without_a_bound_or_a_cost_there_is_no_end() -> None:
    assert PrefillMemory(10, 2).tokens_within(inf, 0) == inf
    assert PrefillMemory().tokens_within(100, 0) == inf


def test_a_shape_tells_what_its_layers_need() -> None:
    shape = {"width": 576, "inner_width": 1536, "heads": 9, "item_bytes": 4}
    assert of_shape(**shape, fused_attention=False) == PrefillMemory(12 * (576 + 1536) * 4, 2 * 9 * 4)
    assert of_shape(**shape, fused_attention=True) == PrefillMemory(12 * (576 + 1536) * 4, 0)
