"""A count of finished work that outlives workers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.worker_progress import WorkerProgress


def test_it_rises_by_what_a_busy_worker_has_finished() -> None:
    progress = WorkerProgress()
    progress.beat(5, busy=True)
    progress.beat(9, busy=True)
    assert progress.count == 9


def test_a_busy_worker_that_finishes_nothing_leaves_it_where_it_is() -> None:
    progress = WorkerProgress()
    progress.beat(5, busy=True)
    progress.beat(5, busy=True)
    assert progress.count == 5


def test_what_an_idle_worker_counts_is_no_progress() -> None:
    progress = WorkerProgress()
    progress.beat(5, busy=False)
    assert progress.count == 0
    progress.beat(6, busy=True)
    assert progress.count == 1


def test_it_goes_on_where_it_was_with_the_next_worker() -> None:
    progress = WorkerProgress()
    progress.beat(100, busy=True)
    progress.worker_started()
    progress.beat(3, busy=True)
    assert progress.count == 103


def test_a_piece_of_a_model_is_progress() -> None:
    progress = WorkerProgress()
    progress.model_progressed()
    assert progress.count == 1


@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()) | st.none()))
def test_it_never_falls(events: list[tuple[int, bool] | None]) -> None:
    progress = WorkerProgress()
    for event in events:
        before = progress.count
        if event is None:
            progress.worker_started()
        else:
            progress.beat(event[0], busy=event[1])
        assert progress.count >= before
