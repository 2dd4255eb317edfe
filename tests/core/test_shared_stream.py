from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlx_serving.core.generation import Delta
from mlx_serving.core.shared_stream import SharedStream

AHEAD = 3


def _delta(number: int) -> Delta:
    return Delta(str(number), (number,))


def test_a_late_reader_begins_at_the_beginning() -> None:
    stream = SharedStream(AHEAD)
    first = stream.join()
    stream.append(_delta(0))
    assert stream.next(first) == _delta(0)
    assert stream.next(first) is None
    late = stream.join()
    assert stream.next(late) == _delta(0)
    assert stream.next(late) is None


def test_the_last_to_leave_is_told_so() -> None:
    stream = SharedStream(AHEAD)
    one, other = stream.join(), stream.join()
    assert stream.leave(one) is False
    assert stream.leave(one) is False
    assert len(stream) == 1
    assert stream.leave(other) is True
    assert len(stream) == 0


def test_a_slow_reader_holds_up_nobody_and_nobody_means_a_halt() -> None:
    stream = SharedStream(1)
    fast, slow = stream.join(), stream.join()
    assert stream.wants_more
    stream.append(_delta(0))
    assert not stream.wants_more
    stream.next(fast)
    assert stream.wants_more
    stream.leave(fast)
    assert not stream.wants_more
    stream.leave(slow)
    assert not stream.wants_more


class Readers(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stream = SharedStream(AHEAD)
        self.read: dict[int, int] = {}
        self.made = 0

    @rule()
    def join(self) -> None:
        number = self.stream.join()
        assert number not in self.read
        self.read[number] = 0

    @precondition(lambda self: self.read)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.read)))
        del self.read[number]
        assert self.stream.leave(number) is (not self.read)

    @precondition(lambda self: self.stream.wants_more)
    @rule()
    def make(self) -> None:
        self.stream.append(_delta(self.made))
        self.made += 1

    @precondition(lambda self: self.read)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.read)))
        got = self.stream.next(number)
        if self.read[number] == self.made:
            assert got is None
        else:
            assert got == _delta(self.read[number])
            self.read[number] += 1

    @invariant()
    def more_is_wanted_for_the_fastest(self) -> None:
        fastest = max(self.read.values(), default=0)
        assert self.stream.wants_more is (self.made - fastest < AHEAD)
        assert len(self.stream) == len(self.read)


TestReaders = Readers.TestCase


@given(st.integers(1, 5), st.integers(0, 20))
def test_a_reader_who_takes_all_keeps_the_source_going(ahead: int, count: int) -> None:
    stream = SharedStream(ahead)
    reader = stream.join()
    for number in range(count):
        assert stream.wants_more
        stream.append(_delta(number))
        assert stream.next(reader) == _delta(number)
