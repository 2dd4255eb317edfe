"""Workers that die for want of memory are followed by more modest ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.crash_finding import CrashKind, Finding
from mlx_serving.core.memory_share import WHOLE, died_for_memory, next_share, tells_of_memory

HOUR_S = 3600.0


def finding(kind: CrashKind) -> Finding:
    return Finding(kind, "what", "how")


def test_each_death_for_memory_takes_a_quarter_of_what_was_left_down_to_a_quarter_of_all() -> None:
    shares = [WHOLE]
    for _ in range(7):
        shares.append(next_share(shares[-1], for_memory=True, lived_s=5.0))
    assert shares == pytest.approx([1.0, 0.75, 0.5625, 0.421875, 0.31640625, 0.25, 0.25, 0.25])


def test_a_worker_that_lived_for_an_hour_is_followed_by_one_with_the_next_larger_share() -> None:
    assert next_share(0.5625, for_memory=False, lived_s=HOUR_S) == 0.75
    assert next_share(0.9, for_memory=False, lived_s=HOUR_S) == WHOLE
    assert next_share(0.5625, for_memory=False, lived_s=HOUR_S - 1) == 0.5625
    assert next_share(0.75, for_memory=True, lived_s=10 * HOUR_S) == 0.5625


@given(lives=st.lists(st.tuples(st.booleans(), st.floats(0, 2 * HOUR_S)), max_size=40))
def test_the_share_keeps_its_limits(lives: list[tuple[bool, float]]) -> None:
    share = WHOLE
    for for_memory, lived_s in lives:
        before, share = share, next_share(share, for_memory=for_memory, lived_s=lived_s)
        assert 0.25 <= share <= WHOLE
        assert share <= before if for_memory else share >= before


@pytest.mark.parametrize(
    "kind",
    [
        CrashKind.METAL_OUT_OF_MEMORY,
        CrashKind.METAL_RESOURCE_LIMIT,
        CrashKind.WIRED_MEMORY,
        CrashKind.CUDA_OUT_OF_MEMORY,
        CrashKind.OUT_OF_MEMORY,
        CrashKind.KILLED_FOR_MEMORY,
    ],
)
def test_what_tells_of_memory_is_a_death_for_memory(kind: CrashKind) -> None:
    assert died_for_memory(finding(kind), kills_are_counted=True)
    assert died_for_memory(finding(kind), kills_are_counted=False)


def test_an_unexplained_kill_is_one_only_where_such_kills_are_not_counted() -> None:
    assert died_for_memory(finding(CrashKind.KILLED), kills_are_counted=False)
    assert not died_for_memory(finding(CrashKind.KILLED), kills_are_counted=True)


@pytest.mark.parametrize("found", [None, finding(CrashKind.METAL_HANG), finding(CrashKind.DISK_FULL)])
def test_other_deaths_are_not(found: Finding | None) -> None:
    assert not died_for_memory(found, kills_are_counted=False)


@pytest.mark.parametrize(
    ("error", "of_memory"),
    [
        (MemoryError(), True),
        (RuntimeError("[malloc] Unable to allocate 8589934592 bytes."), True),
        (RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory"), True),
        (RuntimeError("[metal::malloc] Attempting to allocate 9 bytes which is greater than"), False),
        (ValueError("shapes (2,3) and (4,5)"), False),
    ],
)
def test_an_exception_may_tell_of_memory(error: Exception, of_memory: bool) -> None:
    assert tells_of_memory(error) == of_memory
