"""What is planned with memory never exceeds a bound, and what does not fit is refused with the numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.memory_budget import (
    Bound,
    Capacity,
    MemoryPlan,
    MemoryPolicy,
    capacity,
    padding_allowed,
    plan,
    require_room,
    undisturbed,
)
from mlx_serving.errors import InsufficientMemory

GIB = 1 << 30
POLICY = MemoryPolicy()
ALL = MemoryPolicy(share=1.0, buffer_cache_bytes=0, prefill_bytes=1)
ROOM = Capacity(16 * GIB, "RAM")

SIZES = st.integers(0, 1 << 40)
BOUNDS = st.lists(st.builds(Bound, st.sampled_from(["RAM", "cgroup"]), SIZES, SIZES, SIZES), min_size=1, max_size=4)
POLICIES = st.builds(
    MemoryPolicy,
    share=st.floats(0.1, 1),
    limit_bytes=st.none() | st.integers(1, 1 << 40),
    kv_cache_bytes=st.none() | st.integers(1, 1 << 40),
    buffer_cache_bytes=st.none() | SIZES,
    prefill_bytes=st.none() | st.integers(1, 1 << 40),
)


def test_the_capacity_is_a_share_of_the_tightest_bound_less_what_is_taken() -> None:
    bounds = [Bound("RAM", 100 * GIB, others=50 * GIB, base=GIB), Bound("RLIMIT_DATA", 40 * GIB, base=2 * GIB)]
    assert capacity(bounds, MemoryPolicy(share=0.5)) == Capacity(0, "RAM")
    assert capacity(bounds, MemoryPolicy(share=1.0)) == Capacity(38 * GIB, "RLIMIT_DATA")
    assert capacity(bounds, MemoryPolicy(share=1.0, limit_bytes=7)) == Capacity(7, "memory.limit_bytes")


def test_workers_that_share_a_bound_get_equal_parts_unless_there_is_less() -> None:
    everything = MemoryPolicy(share=1.0)
    assert capacity([Bound("RAM", 100, others=10, base=1, sharers=3)], everything) == Capacity(32, "RAM")
    assert capacity([Bound("RAM", 100, others=90, base=1, sharers=3)], everything) == Capacity(9, "RAM")


def test_one_batch_may_pad_with_a_part_of_what_caches_may_still_take() -> None:
    assert padding_allowed(4 * GIB) == GIB
    assert padding_allowed(-1) == 0


def test_at_best_others_take_nothing() -> None:
    assert undisturbed([Bound("RAM", 100, others=50, base=10)]) == [Bound("RAM", 100, others=0, base=10)]


def test_kv_caches_get_what_weights_and_steps_leave() -> None:
    assert plan(ROOM, POLICY, weights=4 * GIB) == MemoryPlan(ROOM, 4 * GIB, GIB, GIB, 10 * GIB, 10 * GIB, GIB // 4)
    large = Capacity(100 * GIB, "RAM")
    assert plan(large, POLICY, weights=0) == MemoryPlan(large, 0, 2 * GIB, GIB, 97 * GIB, 97 * GIB, GIB // 4)


def test_what_caches_take_beyond_their_reservations_is_left_to_them() -> None:
    assert plan(ROOM, POLICY, weights=4 * GIB, surplus=3 * GIB).kv_caches == 7 * GIB


def test_sizes_that_are_configured_hold() -> None:
    policy = MemoryPolicy(kv_cache_bytes=3 * GIB, buffer_cache_bytes=5 * GIB, prefill_bytes=2 * GIB)
    assert plan(ROOM, policy, weights=0) == MemoryPlan(ROOM, 0, 5 * GIB, 2 * GIB, 3 * GIB, 9 * GIB, GIB // 4)
    assert plan(ROOM, policy, weights=8 * GIB).kv_caches == GIB


def test_sizes_that_exceed_all_there_is_are_all_there_is() -> None:
    one = plan(ROOM, MemoryPolicy(buffer_cache_bytes=10**30, prefill_bytes=10**30, kv_cache_bytes=10**30), weights=0)
    assert (one.buffer_cache, one.prefill, one.kv_caches) == (16 * GIB, 16 * GIB, 0)


def test_a_worker_after_one_that_died_for_memory_gets_a_share_for_kv_caches_only() -> None:
    whole, less = plan(ROOM, POLICY, weights=4 * GIB), plan(ROOM, POLICY, weights=4 * GIB, kv_share=0.75)
    assert less.kv_caches == 0.75 * whole.kv_caches
    assert (less.buffer_cache, less.prefill) == (whole.buffer_cache, whole.prefill)


def test_squeezed_the_buffer_cache_keeps_an_eighth() -> None:
    squeezed = plan(ROOM, POLICY, weights=4 * GIB, squeezed=True)
    assert squeezed.buffer_cache == GIB // 8
    assert squeezed.kv_caches == 10 * GIB + 7 * GIB // 8


@given(bounds=BOUNDS, policy=POLICIES, weights=SIZES, surplus=SIZES, share=st.floats(0.25, 1), squeezed=st.booleans())
def test_no_plan_exceeds_a_bound(
    bounds: list[Bound], policy: MemoryPolicy, weights: int, surplus: int, share: float, squeezed: bool
) -> None:
    room = capacity(bounds, policy)
    one = plan(room, policy, weights=weights, surplus=surplus, kv_share=share, squeezed=squeezed)
    assert one.kv_caches >= 0
    if one.kv_caches:
        total = weights + surplus + one.buffer_cache + one.prefill + one.kv_caches
        assert all(total + bound.others + bound.base <= bound.limit for bound in bounds)
        assert policy.limit_bytes is None or total <= policy.limit_bytes
    assert one.caches >= one.kv_caches
    assert weights + one.buffer_cache + one.prefill + one.caches <= room.size or one.caches == 0
    assert policy.kv_cache_bytes is None or one.kv_caches <= policy.kv_cache_bytes
    undisturbed_room = capacity(undisturbed(bounds), policy)
    assert undisturbed_room.size >= room.size
    assert plan(undisturbed_room, policy, weights=weights).kv_caches >= 0


@given(bounds=BOUNDS, policy=POLICIES, weights=SIZES, loaded=SIZES)
def test_a_model_is_refused_exactly_if_it_would_leave_nothing_for_kv_caches(
    bounds: list[Bound], policy: MemoryPolicy, weights: int, loaded: int
) -> None:
    room = capacity(bounds, policy)
    fits = plan(room, policy, weights=weights + loaded, squeezed=True).kv_caches > 0
    try:
        require_room(room, policy, model="m", weights=weights, loaded=loaded)
    except InsufficientMemory:
        assert not fits
    else:
        assert fits


@pytest.mark.parametrize(
    ("policy", "loaded", "told"),
    [
        (MemoryPolicy(prefill_bytes=20 * GIB), 0, ", of which memory.prefill_bytes may take 20.0 GiB"),
        (
            MemoryPolicy(buffer_cache_bytes=15 * GIB, prefill_bytes=14 * GIB),
            GIB,
            (
                ", of which other models take 1.0 GiB and memory.buffer_cache_bytes may take 15.0 GiB "
                "and memory.prefill_bytes may take 14.0 GiB"
            ),
        ),
    ],
)
def test_the_refusal_names_the_settings_that_leave_too_little(policy: MemoryPolicy, loaded: int, told: str) -> None:
    with pytest.raises(InsufficientMemory) as refusal:
        require_room(ROOM, policy, model="m", weights=GIB, loaded=loaded)
    assert refusal.value.message.endswith(f"RAM allows 16.0 GiB for models{told}")


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        (
            0,
            "m takes 20.0 GiB and some memory to work with, but only 14.9 GiB are left: RAM allows 16.0 GiB for models",
        ),
        (
            15 * GIB,
            (
                "m takes 20.0 GiB and some memory to work with, but only 0 bytes are left: "
                "RAM allows 16.0 GiB for models, of which other models take 15.0 GiB"
            ),
        ),
    ],
)
def test_the_refusal_has_the_numbers(loaded: int, message: str) -> None:
    with pytest.raises(InsufficientMemory) as refusal:
        require_room(ROOM, POLICY, model="m", weights=20 * GIB, loaded=loaded)
    assert refusal.value.message == message
    assert refusal.value.details == {
        "model": "m",
        "weights_bytes": 20 * GIB,
        "available_bytes": max(0, 16 * GIB - loaded - GIB // 8 - GIB),
        "capacity_bytes": 16 * GIB,
        "loaded_bytes": loaded,
        "limited_by": "RAM",
    }


@pytest.mark.parametrize(("size", "text"), [(5 << 20, "5.0 MiB"), (3 << 10, "3.0 KiB"), (12, "12 bytes")])
def test_sizes_are_told_in_units_for_people(size: int, text: str) -> None:
    with pytest.raises(InsufficientMemory, match=f"RAM allows {text} for"):
        require_room(Capacity(size, "RAM"), ALL, model="m", weights=20 * GIB, loaded=0)


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("share", 0.05, "between 0.1 and 1"),
        ("share", 1.1, "between 0.1 and 1"),
        ("limit_bytes", 0, "at least 1"),
        ("kv_cache_bytes", 0, "at least 1"),
        ("buffer_cache_bytes", -1, "at least 0"),
        ("prefill_bytes", 0, "at least 1"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(name: str, value: float, limit: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be {limit}, got {value}"):
        MemoryPolicy(**{name: value})  # pyright: ignore[reportArgumentType]  what the test is about


def test_little_memory_keeps_few_images_and_fewer_when_it_is_short() -> None:
    room = Capacity(GIB, "the machine")
    assert plan(room, POLICY, weights=0).features == GIB // 16
    assert plan(room, POLICY, weights=0, squeezed=True).features == GIB // 128
