"""A reader that falls behind pauses its stream, and one that catches up lets it go on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.flow_control import FlowControl, FlowPolicy, FlowSignal

PAUSE, RESUME = FlowSignal.PAUSE, FlowSignal.RESUME


def flow(pause_at: int = 10, resume_at: int = 4) -> FlowControl:
    return FlowControl(FlowPolicy(pause_at_tokens=pause_at, resume_at_tokens=resume_at))


def test_a_stream_is_paused_when_its_undelivered_tokens_reach_the_upper_mark() -> None:
    one = flow()
    assert [one.on_buffered(1) for _ in range(10)] == [None] * 9 + [PAUSE]


def test_it_goes_on_when_they_fall_to_the_lower_mark() -> None:
    one = flow()
    one.on_buffered(10)
    assert [one.on_consumed(1) for _ in range(6)] == [None] * 5 + [RESUME]


def test_nothing_is_said_between_the_marks() -> None:
    one = flow()
    assert [one.on_buffered(9), one.on_consumed(4), one.on_buffered(4)] == [None] * 3
    assert one.on_buffered(1) is PAUSE
    assert [one.on_consumed(5), one.on_buffered(4), one.on_consumed(4)] == [None] * 3


def test_what_was_under_way_is_counted() -> None:
    one = flow()
    assert one.on_buffered(10) is PAUSE
    assert one.on_buffered(3) is None
    assert [one.on_consumed(8), one.on_consumed(1)] == [None, RESUME]


@pytest.mark.parametrize(("marks", "name"), [((0, 0), "pause_at"), ((4, -1), "resume_at"), ((4, 4), "less than")])
def test_marks_that_make_no_sense_are_refused(marks: tuple[int, int], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        FlowPolicy(*marks)


@given(
    pause_at=st.integers(1, 20),
    resume_share=st.floats(0, 0.99),
    moves=st.lists(st.tuples(st.sampled_from(["buffered", "consumed"]), st.integers(0, 6))),
)
def test_however_it_goes_the_worker_is_told_in_turns_and_never_too_late(
    pause_at: int, resume_share: float, moves: list[tuple[str, int]]
) -> None:
    resume_at = int(pause_at * resume_share)
    one = flow(pause_at, resume_at)
    undelivered, paused = 0, False
    for move, tokens in moves:
        signal: FlowSignal | None = None
        if move == "buffered":
            undelivered += tokens
            signal = one.on_buffered(tokens)
            assert signal is not RESUME
        else:
            tokens = min(tokens, undelivered)
            undelivered -= tokens
            signal = one.on_consumed(tokens)
            assert signal is not PAUSE
        if signal is not None:
            assert paused is (signal is RESUME)
            paused = signal is PAUSE
        if paused:
            assert undelivered > resume_at
        elif move == "buffered":
            assert undelivered < pause_at
