from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlx_serving.core.prefix.disk import DiskIndex, DiskPolicy, default_bytes
from mlx_serving.core.prefix.record import DiskRecord, Key, chain_key, pack, root_key, shared_bytes

ROOT = root_key("m", "", "blocks")
GIB = 1024**3


def _record(token_ids: list[int], behind: DiskRecord | None = None, *, size: int = 10, at: float = 0) -> DiskRecord:
    parent = ROOT if behind is None else behind.key
    tokens = pack(token_ids)
    return DiskRecord(chain_key(parent, tokens), parent, "m", 0 if behind is None else behind.end, tokens, size, at)


def _index(*records: DiskRecord, max_bytes: int = 1000, max_records: int = 1000) -> DiskIndex:
    index = DiskIndex(max_bytes, 100, max_records=max_records)
    for record in records:
        assert index.add(record)
    return index


def _match(index: DiskIndex, token_ids: list[int]) -> list[tuple[Key, int]]:
    return [(found.record.key, found.count) for found in index.match(ROOT, pack(token_ids))]


def test_the_default_is_a_quarter_of_what_is_free_up_to_30_gib() -> None:
    assert default_bytes(8 * GIB) == 2 * GIB
    assert default_bytes(1000 * GIB) == 30 * GIB


@pytest.mark.parametrize(("field", "value"), [("max_bytes", 0), ("max_age_s", 0), ("preload_bytes", -1)])
def test_a_limit_of_nothing_is_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{field} must be"):
        DiskPolicy(**{field: value})


def test_a_path_of_records_is_found_and_the_last_one_may_be_found_in_part() -> None:
    first = _record([1, 2, 3, 4])
    second = _record([5, 6, 7, 8], first)
    index = _index(first, second)
    assert _match(index, [1, 2, 3, 4, 5, 6, 7, 8, 9]) == [(first.key, 4), (second.key, 4)]
    assert _match(index, [1, 2, 3, 4, 5, 6, 9, 9]) == [(first.key, 4), (second.key, 2)]
    assert _match(index, [1, 2, 9]) == [(first.key, 2)]
    assert _match(index, [1, 2, 3, 4]) == [(first.key, 4)]
    assert _match(index, [9, 9]) == []
    assert _match(index, []) == []


def test_the_longest_of_several_beginnings_is_found() -> None:
    short, long, other = _record([1, 2]), _record([1, 2, 3, 4]), _record([1, 2, 3, 9, 9])
    index = _index(short, long, other)
    assert _match(index, [1, 2, 3, 4, 5]) == [(long.key, 4)]
    assert _match(index, [1, 2, 3, 5]) == [(long.key, 3)]  # nothing goes on from the short one
    index.add(_record([7], short))
    assert _match(index, [1, 2, 3, 5]) == [(short.key, 2)]  # here something does, and might have fitted
    assert index.longest(ROOT, pack([1, 2, 3, 4, 5])) == long
    assert index.longest(ROOT, pack([1, 2, 3, 5])) == short
    assert index.longest(ROOT, pack([2])) is None
    assert index.longest("elsewhere", pack([1, 2])) is None


def test_a_record_that_leads_from_nowhere_is_not_known() -> None:
    first = _record([1])
    second = _record([2], first)
    index = _index()
    assert not index.add(second)
    assert index.add(first)
    assert index.add(second)
    assert index.add(second)
    assert (len(index), index.size, index.get(second.key), index.get("?")) == (2, 20, second, None)


def test_what_an_earlier_run_has_left_comes_in_any_order() -> None:
    first = _record([1], at=1)
    second = _record([2], first, at=5)
    other = _record([3], at=3)
    lost = _record([2], _record([7]))
    index = _index()
    assert index.restore([second, lost, other, first]) == [lost.key]
    assert index.oldest_first() == [other.key, second.key, first.key]
    assert index.restore([first, second]) == []


def test_who_is_used_last_goes_last_and_nobody_before_those_that_go_on_from_it() -> None:
    first = _record([1], at=1)
    second, third = _record([2], first, at=2), _record([3], first, at=3)
    index = _index(first, second, third, max_bytes=35)
    assert index.touch(second.key, 4) == [second.key, first.key]
    assert index.touch("?", 4) == []
    index.resize(second.key, 16)
    index.resize("?", 100)
    assert index.surplus(5) == [third]
    assert index.size == 26
    index.max_bytes = 0
    assert index.surplus(5) == [replace(second, size=16), first]
    assert (len(index), index.size) == (0, 0)
    index.max_bytes = 35
    assert index.fits(35)
    assert not index.fits(36)


def test_what_was_used_last_is_named_first_as_far_as_it_fits() -> None:
    first = _record([1], at=1)
    second, third = _record([2], first, at=2), _record([3], first, at=3)
    fourth, other = _record([4], second, at=4), _record([5], at=5)
    elsewhere = DiskRecord(chain_key("00" * 20, pack([6])), "00" * 20, "m", 0, pack([6]), 10, 6)
    index = _index(first, second, third, fourth, other, elsewhere)

    def latest(max_bytes: int) -> list[tuple[bytes, float]]:
        return [(one.tokens, one.used_at) for one in index.latest(ROOT, max_bytes)]

    assert latest(50) == [(pack([5]), 5), (pack([1, 2, 4]), 4), (pack([1, 3]), 3)]
    assert latest(49) == [(pack([5]), 5), (pack([1, 2, 4]), 4)]
    assert latest(30) == [(pack([5]), 5), (pack([1, 2]), 4)]
    assert latest(9) == []
    index.touch(third.key, 7)
    assert latest(30) == [(pack([1, 3]), 7), (pack([5]), 5)]


def test_what_was_not_used_for_too_long_goes() -> None:
    old, fresh = _record([1], at=0), _record([2], at=50)
    index = _index(old, fresh)
    assert index.surplus(99.9) == []
    assert index.surplus(100) == [old]
    assert index.used_at(fresh.key) == 50


def test_no_more_records_are_known_than_may_be() -> None:
    index = _index(_record([1]), _record([2]), max_records=2)
    assert index.surplus(0) == []
    index.add(_record([3]))
    assert [record.tokens for record in index.surplus(0)] == [pack([1])]


def test_what_goes_on_from_a_lost_record_is_lost_too() -> None:
    first = _record([1])
    second, third = _record([2], first), _record([3], first)
    fourth = _record([4], second)
    index = _index(first, second, third, fourth)
    gone = index.forget(first.key)
    assert {record.key for record in gone} == {first.key, second.key, third.key, fourth.key}
    assert gone[-1] == first
    assert index.forget(first.key) == []
    assert (len(index), index.size) == (0, 0)


class Disk(RuleBasedStateMachine):
    """The index beside a plain list of records, which is searched by looking at every one."""

    def __init__(self) -> None:
        super().__init__()
        self.index = DiskIndex(100, 40, max_records=12)
        self.known: dict[Key, DiskRecord] = {}
        self.now = 0.0

    def path(self, token_ids: list[int]) -> list[DiskRecord]:
        """The known records on the way to these tokens, the longest whole one at each place; but where nothing goes on
        from it and a larger part of another one fits, the way ends."""
        path: list[DiskRecord] = []
        tokens, parent = pack(token_ids), ROOT
        while fitting := [one for one in self.known.values() if one.parent == parent and tokens.startswith(one.tokens)]:
            longest = max(fitting, key=lambda one: one.count)
            parts = [shared_bytes(one.tokens, tokens) for one in self.known.values() if one.parent == parent]
            if max(parts) > len(longest.tokens) and self.index.is_last(longest.key):
                break
            path.append(longest)
            tokens, parent = tokens[len(longest.tokens) :], longest.key
        return path

    @rule(token_ids=st.lists(st.integers(0, 2), min_size=1, max_size=6), size=st.integers(1, 30))
    def save(self, token_ids: list[int], size: int) -> None:
        path = self.path(token_ids)
        rest = token_ids[path[-1].end if path else 0 :]
        if rest:
            record = _record(rest, path[-1] if path else None, size=size, at=self.now)
            assert self.index.add(record)
            self.known[record.key] = record
            for gone in self.index.surplus(self.now):
                del self.known[gone.key]

    @rule(token_ids=st.lists(st.integers(0, 2), max_size=8))
    def look(self, token_ids: list[int]) -> None:
        found = self.index.match(ROOT, pack(token_ids))
        path = self.path(token_ids)
        assert [one.record for one in found if one.count == one.record.count][: len(path)] == path
        # What is found in part is the last one, and nothing that goes on from the ones before fits better.
        assert all(one.count == one.record.count for one in found[:-1])
        for one in found:
            begin = one.record.start
            assert pack(token_ids[begin : begin + one.count]) == one.record.tokens[: 4 * one.count]
        if found:
            self.index.touch(found[-1].record.key, self.now)

    @rule(token_ids=st.lists(st.integers(0, 2), max_size=8))
    def lose(self, token_ids: list[int]) -> None:
        for record in self.path(token_ids)[:1]:
            for gone in self.index.forget(record.key):
                del self.known[gone.key]

    @rule()
    def start_again(self) -> None:
        self.index = DiskIndex(100, 40, max_records=12)
        assert self.index.restore(self.known.values()) == []

    @rule(seconds=st.integers(0, 30))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        for gone in self.index.surplus(self.now):
            del self.known[gone.key]

    @invariant()
    def agrees(self) -> None:
        assert {key for key in self.known if key in self.index} == set(self.known)
        assert len(self.index) == len(self.known) <= 12
        assert self.index.size == sum(record.size for record in self.known.values()) <= 100

    @invariant()
    def names_each_sequence_once_the_latest_first(self) -> None:
        every = self.index.latest(ROOT, 100)
        parents = {record.parent for record in self.known.values()}
        assert sum(key not in parents for key in self.known) == len(every)
        assert [one.used_at for one in every] == sorted((one.used_at for one in every), reverse=True)
        for one in self.index.latest(ROOT, 50):
            assert any(whole.tokens.startswith(one.tokens) for whole in every)

    @invariant()
    def knows_what_nothing_goes_on_from(self) -> None:
        parents = {record.parent for record in self.known.values()}
        assert {key for key in self.known if self.index.is_last(key)} == set(self.known) - parents
        assert not self.index.is_last(ROOT)

    @invariant()
    def nobody_is_older_than_those_that_go_on_from_it(self) -> None:
        order = self.index.oldest_first()
        for key in order:
            record = self.known[key]
            if record.start:
                assert order.index(record.parent) > order.index(key)


TestDisk = Disk.TestCase
TestDisk.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
