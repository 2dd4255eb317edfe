from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.generation import Delta, Logprobs, TokenLogprob, ToolCallDelta
from mlx_serving.core.output.answer_parts import AnswerParts, Began, Ended, Grew, PartEvent
from mlx_serving.errors import ProtocolError


def _played(*deltas: Delta) -> tuple[AnswerParts, list[PartEvent]]:
    parts = AnswerParts()
    events = [event for delta in deltas for event in parts.feed(delta)]
    return parts, [*events, *parts.finish()]


def _told(events: Iterable[PartEvent]) -> list[tuple[str, int, str]]:
    return [
        (type(event).__name__, event.part.number, event.text if isinstance(event, Grew) else event.part.kind)
        for event in events
    ]


def _logprobs(token_id: int) -> Logprobs:
    return Logprobs(TokenLogprob(token_id, -1.0, b"a"))


def test_a_part_grows_until_something_of_another_kind_comes() -> None:
    parts, events = _played(Delta("", reasoning="Hm"), Delta("", reasoning="m"), Delta("A"), Delta("B"))
    assert _told(events) == [
        ("Began", 0, "reasoning"), ("Grew", 0, "Hm"), ("Grew", 0, "m"), ("Ended", 0, "reasoning"),
        ("Began", 1, "text"), ("Grew", 1, "A"), ("Grew", 1, "B"), ("Ended", 1, "text"),
    ]  # fmt: skip
    assert [part.text for part in parts.parts] == ["Hmm", "AB"]


def test_each_call_is_a_part_with_its_id_and_name() -> None:
    first = Delta("", tool_calls=(ToolCallDelta(0, "c0", "look"), ToolCallDelta(0, arguments='{"a"')))
    second = Delta("", tool_calls=(ToolCallDelta(0, arguments=":1}"), ToolCallDelta(1, "c1", "stop", "{}")))
    parts, events = _played(Delta("Let me see"), first, second)
    assert [(part.kind, part.call_id, part.name, part.text) for part in parts.parts] == [
        ("text", "", "", "Let me see"), ("call", "c0", "look", '{"a":1}'), ("call", "c1", "stop", "{}"),
    ]  # fmt: skip
    assert [type(event) for event in events[-3:]] == [Began, Grew, Ended]


def test_in_one_delta_thinking_comes_before_text_and_text_before_calls() -> None:
    parts, _ = _played(Delta("said", reasoning="thought", tool_calls=(ToolCallDelta(0, "c", "f"),)))
    assert [part.kind for part in parts.parts] == ["reasoning", "text", "call"]


def test_an_answer_without_anything_has_no_parts() -> None:
    parts, events = _played(Delta("", (1,)))
    assert (parts.parts, events) == ([], [])


@pytest.mark.parametrize("call", [ToolCallDelta(0, arguments="{}"), ToolCallDelta(0, "id"), ToolCallDelta(0, "", "f")])
def test_a_call_that_begins_without_an_id_or_a_name_is_a_defect(call: ToolCallDelta) -> None:
    with pytest.raises(ProtocolError, match="Call 0"):
        _played(Delta("", tool_calls=(call,)))


def test_a_call_that_goes_on_after_its_end_is_a_defect() -> None:
    with pytest.raises(ProtocolError, match="Call 0"):
        _played(
            Delta("text", tool_calls=(ToolCallDelta(0, "c", "f"),)),
            Delta("more"),
            Delta("", tool_calls=(ToolCallDelta(0),)),
        )


def test_log_probabilities_come_with_the_text_that_their_tokens_complete() -> None:
    early, late, last = _logprobs(1), _logprobs(2), _logprobs(3)
    parts, events = _played(
        Delta("", (1,), logprobs=(early,)), Delta("é", (2,), logprobs=(late,)), Delta("", logprobs=(last,))
    )
    assert [event.logprobs for event in events if isinstance(event, Grew)] == [(early, late)]
    assert parts.parts[0].logprobs == [early, late, last]


def test_log_probabilities_of_what_is_thought_and_called_are_left_out() -> None:
    parts, _ = _played(
        Delta("", (1,), reasoning="Hm", logprobs=(_logprobs(1),)),
        Delta("A", (2,), logprobs=(_logprobs(2),)),
        Delta("", (3,), logprobs=(_logprobs(3),), tool_calls=(ToolCallDelta(0, "c", "f"),)),
    )
    assert [[place.chosen.token_id for place in part.logprobs] for part in parts.parts] == [[], [2], []]


@given(
    st.lists(
        st.sampled_from(["reasoning", "text"]).flatmap(lambda kind: st.tuples(st.just(kind), st.text("ab", max_size=2)))
    )
)
def test_nothing_is_lost_and_every_part_begins_and_ends_once(pieces: list[tuple[str, str]]) -> None:
    deltas = [Delta(text) if kind == "text" else Delta("", reasoning=text) for kind, text in pieces]
    parts, events = _played(*deltas)
    for kind in ("reasoning", "text"):
        wanted = "".join(text for each, text in pieces if each == kind)
        assert "".join(part.text for part in parts.parts if part.kind == kind) == wanted
    assert [event.part for event in events if isinstance(event, Began)] == parts.parts
    assert [event.part for event in events if isinstance(event, Ended)] == parts.parts
