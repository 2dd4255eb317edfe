"""One stream on the worker's side, fed with tokens by hand: what is shown, and how it ends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mlx_serving.core.generation import FinishReason
from mlx_serving.errors import GenerationError
from mlx_serving.wire.notifications import Candidate, Completed, Failed, Row, TokenLogprobs
from mlx_serving.worker.sequence import Ending, RunningSequence

EOS = 0


def decode(token_ids: Sequence[int]) -> str:
    """A byte a token; the end of a turn has no text."""
    return bytes(token_id for token_id in token_ids if token_id != EOS).decode(errors="replace")


def sequence(
    max_tokens: int = 100, stop: tuple[str, ...] = (), stop_token_ids: tuple[int, ...] = (), min_tokens: int = 0
) -> RunningSequence:
    ending = Ending(max_tokens, frozenset({EOS, *stop_token_ids}), stop, min_tokens)
    return RunningSequence("s", list(b"prompt"), ending, decode, started_at=10.0)


def feed(running: RunningSequence, token_ids: Sequence[int]) -> list[Row]:
    """The rows, up to the one that ends the stream; each token takes half a second, the first one two."""
    rows: list[Row] = []
    for index, token_id in enumerate(token_ids):
        rows.append(running.accept(token_id, 12.0 + index / 2))
        if rows[-1].end is not None:
            break
    return rows


def text_of(rows: list[Row]) -> str:
    return "".join(row.text for row in rows)


def reason_of(rows: list[Row]) -> FinishReason:
    assert isinstance(rows[-1].end, Completed)
    return rows[-1].end.finish_reason


def test_text_comes_token_by_token_until_max_tokens() -> None:
    rows = feed(sequence(max_tokens=3), b"abcdef")
    assert [(row.token_ids, row.text) for row in rows] == [([97], "a"), ([98], "b"), ([99], "c")]
    assert reason_of(rows) is FinishReason.LENGTH


def test_a_token_that_ends_the_turn_is_counted_but_not_shown() -> None:
    rows = feed(sequence(), [*b"ab", EOS])
    assert (rows[-1].token_ids, rows[-1].text) == ([], "")
    assert reason_of(rows) is FinishReason.STOP
    assert isinstance(rows[-1].end, Completed)
    assert rows[-1].end.stats.tokens_generated == 3


def test_a_stop_token_ends_like_the_turn() -> None:
    rows = feed(sequence(stop_token_ids=(ord("c"),)), b"abcdef")
    assert (text_of(rows), reason_of(rows)) == ("ab", FinishReason.STOP)


@pytest.mark.parametrize("stop", ["cd", "c", "bcdef", "def"])
def test_no_part_of_a_stop_string_is_shown(stop: str) -> None:
    rows = feed(sequence(stop=(stop,)), b"abcdefgh")
    assert (text_of(rows), reason_of(rows)) == ("abcdefgh".partition(stop)[0], FinishReason.STOP)
    shown = ""
    for row in rows:
        shown += row.text
        assert "abcdefgh".partition(stop)[0].startswith(shown)


@pytest.mark.parametrize(("min_tokens", "shown"), [(0, "ab"), (2, "ab"), (3, "abcdab"), (6, "abcdab"), (7, "abcdabcd")])
def test_stop_strings_count_after_min_tokens(min_tokens: int, shown: str) -> None:
    rows = feed(sequence(max_tokens=8, stop=("c",), min_tokens=min_tokens), b"abcdabcd")
    assert text_of(rows) == shown


def test_log_probabilities_go_out_with_their_token_until_the_turn_ends() -> None:
    told = TokenLogprobs(Candidate(97, -0.5, b"a", False), [])
    running = sequence(max_tokens=2)
    assert running.accept(97, 12.0, told).logprobs == [told]
    assert running.accept(97, 12.0, told).logprobs == [told]
    assert sequence(stop=("a",)).accept(97, 12.0, told).logprobs == [told]
    assert sequence().accept(EOS, 12.0, told).logprobs is None


def test_what_only_began_like_a_stop_string_is_shown_in_the_end() -> None:
    for ending in ([EOS], []):
        rows = feed(sequence(max_tokens=4, stop=("cdX",)), [*b"abcd"[: 4 - len(ending)], *ending])
        assert text_of(rows) == ("abc" if ending else "abcd")


def test_a_stop_string_of_multi_byte_characters_is_found_across_tokens() -> None:
    rows = feed(sequence(stop=("é🙂",)), "naïf é🙂 x".encode())
    assert (text_of(rows), reason_of(rows)) == ("naïf ", FinishReason.STOP)


def test_characters_of_several_tokens_arrive_whole() -> None:
    rows = feed(sequence(), "a🙂é€z".encode())
    assert [row.text for row in rows if row.text] == ["a", "🙂", "é", "€", "z"]


def test_a_character_cut_by_max_tokens_shows_that_something_is_missing() -> None:
    rows = feed(sequence(max_tokens=3), "a🙂".encode())
    assert text_of(rows) == "a\ufffd"
    assert reason_of(rows) is FinishReason.LENGTH


def test_a_stop_string_in_what_is_released_last_still_stops() -> None:
    rows = feed(sequence(max_tokens=2, stop=("\ufffd",)), "a🙂".encode())
    assert (text_of(rows), reason_of(rows)) == ("a", FinishReason.STOP)


def test_the_end_tells_the_stop_string_that_came() -> None:
    [*_, by_string] = feed(sequence(stop=("no", "b")), b"ab")
    [*_, by_token] = feed(sequence(max_tokens=1, stop=("no",)), b"a")
    assert isinstance(by_string.end, Completed)
    assert isinstance(by_token.end, Completed)
    assert (by_string.end.stop, by_token.end.stop) == ("b", None)


def test_the_stats_count_tokens_and_time() -> None:
    rows = feed(sequence(max_tokens=5), b"abcde")
    assert isinstance(rows[-1].end, Completed)
    stats = rows[-1].end.stats
    assert (stats.prompt_tokens, stats.tokens_generated) == (6, 5)
    assert (stats.time_to_first_token, stats.total_time, stats.tokens_per_second) == (2.0, 4.0, 2.0)


def test_a_single_token_has_no_speed() -> None:
    [row] = feed(sequence(max_tokens=1), b"a")
    assert isinstance(row.end, Completed)
    assert row.end.stats.tokens_per_second == 0.0


def test_an_abort_before_the_first_token_has_stats_too() -> None:
    row = sequence().aborted(13.0)
    assert isinstance(row.end, Completed)
    assert row.end.finish_reason is FinishReason.ABORT
    assert (row.end.stats.tokens_generated, row.end.stats.total_time) == (0, 3.0)


def test_a_failure_carries_the_error() -> None:
    row = sequence().failed(GenerationError("no", model="m"))
    assert isinstance(row.end, Failed)
    assert row.end.error.code == -32002
    assert row.end.error.data == {"type": "GenerationError", "details": {"model": "m"}}
