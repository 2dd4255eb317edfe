"""What is kept of an unfinished request."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.choices import Choices
from mlx_serving.core.generation import (
    Delta,
    FinishReason,
    GenerationRequest,
    GenerationStats,
    Logprobs,
    SamplingParams,
    TextPrompt,
    TokenLogprob,
    ToolCallDelta,
)
from mlx_serving.core.resumption import RequestLog, SequenceLog, merged, runs, within_bounds

ASKED = GenerationRequest("r", "m", TextPrompt("Hi"), SamplingParams(seed=7), fork_of="other")
STATS = GenerationStats(1, 2, 0.1, 20.0, 0.2)
LAST = Delta("", (), FinishReason.STOP, STATS, stop="END")


def delta(text: str, *token_ids: int) -> Delta:
    places = tuple(Logprobs(TokenLogprob(token_id, -1.0, b"x")) for token_id in token_ids)
    calls = tuple(ToolCallDelta(0, arguments=str(token_id)) for token_id in token_ids)
    return Delta(text, token_ids, logprobs=places, reasoning=text, tool_calls=calls)


def test_the_rest_is_asked_for_behind_what_was_generated_sent_or_not() -> None:
    sequence = SequenceLog(ASKED, [delta("a", 1), delta("", 2, 3)], sent=1)
    assert sequence.next_request() == replace(ASKED, delivered=(1, 2, 3), fork_of=None)


def test_who_has_nothing_yet_may_still_share_its_prompt() -> None:
    assert SequenceLog(ASKED).next_request() == ASKED


def test_it_ends_with_a_reason() -> None:
    sequence = SequenceLog(ASKED)
    assert not sequence.ended
    sequence.deltas.append(delta("a", 1))
    assert not sequence.ended
    sequence.deltas.append(LAST)
    assert sequence.ended


def test_several_deltas_say_what_one_says() -> None:
    one = merged([delta("a", 1), delta("b", 2, 3), LAST])
    same = delta("ab", 1, 2, 3)
    assert one == replace(same, finish_reason=FinishReason.STOP, stats=STATS, stop="END")
    assert merged([]) == Delta("")


def test_what_is_thought_said_and_called_keeps_its_order() -> None:
    call = ToolCallDelta(0, "id", "f")
    deltas = [
        Delta("", (1,), reasoning="a"),
        Delta("", (2,)),
        Delta("", (3,), reasoning="b"),
        Delta("c", (4,)),
        Delta("d", (5,), tool_calls=(call,)),
        Delta("", (6,), tool_calls=(call,)),
        Delta("e", (7,)),
        Delta("", (8,), reasoning="f"),
        LAST,
    ]
    found = runs(deltas)
    told = [(each.reasoning, each.text, len(each.tool_calls)) for each in found]
    assert told == [("ab", "", 0), ("", "cd", 2), ("", "e", 0), ("f", "", 0)]
    assert [each.token_ids for each in found] == [(1, 2, 3), (4, 5, 6), (7,), (8,)]
    assert found[-1].finish_reason is FinishReason.STOP
    assert runs([]) == ()


PIECES = st.lists(st.builds(delta, st.text(max_size=2), st.integers(0, 9)), max_size=4)


@given(PIECES, st.booleans(), st.data())
def test_apart_and_together_again_it_says_the_same(pieces: list[Delta], ended: bool, data: st.DataObject) -> None:
    deltas = [*pieces, LAST] if ended else pieces
    sequence = SequenceLog(ASKED, deltas, data.draw(st.integers(0, len(deltas))))
    again = SequenceLog.of_parts(ASKED, *sequence.parts())
    assert (again.ended, again.next_request()) == (sequence.ended, sequence.next_request())
    assert again.parts() == sequence.parts()
    assert merged(again.deltas) == merged(sequence.deltas)


def test_a_request_ends_with_all_of_its_sequences() -> None:
    first, second = SequenceLog(ASKED, [LAST]), SequenceLog(ASKED)
    log = RequestLog("id", "chat", 1, "m", "f", True, False, False, Choices(2, 2), [first, second])
    assert not log.ended
    second.deltas.append(LAST)
    assert log.ended


def test_what_is_too_old_and_what_is_too_much_is_left_out() -> None:
    entries = [(1.0, "old"), (5.0, "first"), (9.0, "second"), (10.0, "third")]
    assert within_bounds(entries, 10.0, max_age_s=5, limit=2) == (["first", "second"], 2)
    assert within_bounds(entries, 10.0, max_age_s=100, limit=9) == (["old", "first", "second", "third"], 0)
