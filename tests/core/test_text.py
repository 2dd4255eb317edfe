from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_serving.core.text import IncrementalDetokenizer, StopMatcher

Decode = Callable[[Sequence[int]], str]


def decode_bytes(token_ids: Sequence[int]) -> str:
    """A byte-level tokenizer: ids below 256 are bytes, 256 is special and has no text."""
    return bytes(token_id for token_id in token_ids if token_id < 256).decode("utf-8", "replace")


WORDS = ["▁Paris", "▁is", "▁a", "▁", "city", "\n", ".", "é", "▁€"]


def decode_words(token_ids: Sequence[int]) -> str:
    """A SentencePiece-like tokenizer, which strips the space of the first token."""
    return "".join(WORDS[token_id] for token_id in token_ids).replace("▁", " ").removeprefix(" ")


def pieces_of(decode: Decode, token_ids: Sequence[int], prompt_tail: Sequence[int] = ()) -> list[str]:
    detokenizer = IncrementalDetokenizer(decode, prompt_tail)
    return [*(detokenizer.add(token_id) for token_id in token_ids), detokenizer.finish()]


def test_plain_text_comes_token_by_token() -> None:
    assert pieces_of(decode_bytes, b"abc") == ["a", "b", "c", ""]


def test_an_unfinished_character_waits_until_it_is_complete() -> None:
    assert pieces_of(decode_bytes, "a€b".encode()) == ["a", "", "", "€", "b", ""]


def test_an_unfinished_character_at_the_end_is_shown_as_replacement() -> None:
    assert pieces_of(decode_bytes, "a€".encode()[:-1]) == ["a", "", "", "\ufffd"]


def test_invalid_bytes_are_shown_once_a_character_follows() -> None:
    assert pieces_of(decode_bytes, b"\xffa") == ["", "\ufffda", ""]


def test_a_first_token_keeps_its_space_after_the_prompt() -> None:
    assert pieces_of(decode_words, [0, 1], prompt_tail=[8]) == [" Paris", " is", ""]


def test_without_a_prompt_a_first_token_loses_its_space_as_in_a_whole_decode() -> None:
    assert pieces_of(decode_words, [0, 1]) == ["Paris", " is", ""]


def test_a_character_begun_by_the_prompt_is_cut_as_in_a_whole_decode() -> None:
    tail, rest = "€uro".encode()[:2], "€uro".encode()[2:]
    assert "".join(pieces_of(decode_bytes, rest, prompt_tail=tail)) == "uro"


def test_tokens_without_text_do_not_pile_up() -> None:
    longest = 0

    def decode(token_ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(token_ids))
        return decode_bytes(token_ids)

    pieces = pieces_of(decode, [97, *[256] * 100, 98])
    assert "".join(pieces) == "ab"
    assert longest <= 2 * IncrementalDetokenizer.MAX_PENDING


@pytest.mark.parametrize("run", [b"\xff", b"\xe2\x82", b"\xf0\x9f\x98", b"\xef\xbf\xbd"])
def test_a_long_run_without_characters_is_let_go_in_time_and_in_full(run: bytes) -> None:
    token_ids = run * 40 + "€".encode()
    longest = 0

    def decode(token_ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(token_ids))
        return decode_bytes(token_ids)

    pieces = pieces_of(decode, token_ids)
    assert "".join(pieces) == decode_bytes(token_ids)
    assert longest <= 2 * IncrementalDetokenizer.MAX_PENDING
    assert "".join(pieces[:40])


def test_a_tokenizer_that_merges_every_run_still_makes_progress() -> None:
    def decode(token_ids: Sequence[int]) -> str:
        return "\ufffd" if token_ids else ""

    assert pieces_of(decode, range(20))[:16] == [""] * 15 + ["\ufffd"]


@given(
    token_ids=st.lists(st.sampled_from([*range(0x60, 0x64), *range(0x80, 0x84), 0xC3, 0xE2, 0xED, 0xF0, 0xFF, 256])),
    tail=st.lists(st.integers(0, 256), max_size=4),
)
@settings(max_examples=300)
def test_pieces_of_bytes_add_up_to_the_whole_decode(token_ids: list[int], tail: list[int]) -> None:
    whole = decode_bytes([*tail, *token_ids])[len(decode_bytes(tail)) :]
    assert "".join(pieces_of(decode_bytes, token_ids, tail)) == whole


@given(
    token_ids=st.lists(st.integers(0, len(WORDS) - 1), max_size=40),
    tail=st.lists(st.integers(0, len(WORDS) - 1), max_size=3),
)
def test_pieces_of_words_add_up_to_the_whole_decode(token_ids: list[int], tail: list[int]) -> None:
    whole = decode_words([*tail, *token_ids])[len(decode_words(tail)) :]
    assert "".join(pieces_of(decode_words, token_ids, tail)) == whole


def shown_by(stops: tuple[str, ...], pieces: Sequence[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.feed(piece)[0] for piece in pieces) + matcher.finish()
    return shown, matcher.stopped


def test_without_stop_strings_everything_is_shown_at_once() -> None:
    matcher = StopMatcher(())
    assert matcher.feed("abc") == ("abc", False)
    assert matcher.finish() == ""


def test_text_that_may_become_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(("END",))
    assert matcher.feed("the E") == ("the ", False)
    assert matcher.feed("N") == ("", False)
    assert matcher.feed("x") == ("ENx", False)


def test_a_stop_string_ends_the_text_and_is_not_shown() -> None:
    matcher = StopMatcher(("END",))
    assert matcher.feed("the E") == ("the ", False)
    assert matcher.feed("ND and more") == ("", True)
    assert matcher.feed("more") == ("", True)
    assert matcher.finish() == ""
    assert matcher.stopped


def test_the_earliest_match_in_the_text_wins_not_the_first_listed() -> None:
    assert shown_by(("later", "early"), ["so early or later"]) == ("so ", True)


def test_a_match_waits_for_a_longer_one_that_began_before_it() -> None:
    matcher = StopMatcher(("abcd", "bc"))
    assert matcher.feed("xabc") == ("x", False)
    assert matcher.feed("d") == ("", True)


def test_a_match_counts_once_the_longer_one_has_failed() -> None:
    matcher = StopMatcher(("abcd", "bc"))
    assert matcher.feed("xabc") == ("x", False)
    assert matcher.feed("z") == ("a", True)


def test_a_match_counts_when_the_text_ends_while_it_waits() -> None:
    assert shown_by(("abcd", "bc"), ["xabc"]) == ("xa", True)


def test_a_stop_string_whose_beginning_repeats_is_found() -> None:
    assert shown_by(("aab",), ["a", "a", "a", "b", "c"]) == ("a", True)


def test_text_held_back_is_shown_when_the_text_ends() -> None:
    assert shown_by(("END",), ["the E", "N"]) == ("the EN", False)


def test_finishing_twice_shows_nothing_twice() -> None:
    matcher = StopMatcher(("END",))
    matcher.feed("EN")
    assert (matcher.finish(), matcher.finish()) == ("EN", "")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(("a", ""))


@given(
    pieces=st.lists(st.text("abc", max_size=6), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=4).map(tuple),
)
@example(pieces=["ab", "ca", "bd"], stops=("abcabd", "cab"))
@settings(max_examples=500)
def test_what_is_shown_ends_before_the_first_stop_string(pieces: list[str], stops: tuple[str, ...]) -> None:
    text = "".join(pieces)
    found = [text.index(stop) for stop in stops if stop in text]
    assert shown_by(stops, pieces) == (text[: min(found)] if found else text, bool(found))


@given(
    pieces=st.lists(st.text("ab", max_size=6), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3).map(tuple),
)
def test_at_most_one_character_less_than_the_longest_stop_is_held_back(
    pieces: list[str], stops: tuple[str, ...]
) -> None:
    matcher = StopMatcher(stops)
    fed = shown = 0
    for piece in pieces:
        text, stopped = matcher.feed(piece)
        if stopped:
            break
        fed, shown = fed + len(piece), shown + len(text)
        assert fed - shown < max(map(len, stops))


def test_the_stop_string_that_ended_the_text_is_told() -> None:
    matcher = StopMatcher(("END", "STOP", "STOPPED"))
    assert matcher.stop is None
    matcher.feed("a STOPPED END")
    assert matcher.stop == "STOP"


def test_of_stop_strings_that_overlap_the_one_that_begins_first_ended_the_text() -> None:
    matcher = StopMatcher(("bc", "abcd"))
    assert matcher.feed("xabc") == ("x", False)
    assert matcher.stop is None
    assert matcher.feed("d") == ("", True)
    assert matcher.stop == "abcd"


def test_a_stop_string_in_what_is_ignored_ends_nothing() -> None:
    matcher = StopMatcher(("END",))
    assert [matcher.feed("a END b", ignore=True), matcher.feed(" c END")] == [("a END b", False), (" c ", True)]


def test_a_stop_string_that_ends_after_what_is_ignored_counts() -> None:
    matcher = StopMatcher(("END",))
    assert matcher.feed("a EN", ignore=True) == ("a ", False)
    assert matcher.feed("D") == ("", True)


@given(
    ignored=st.lists(st.text("abc", max_size=5), max_size=4),
    pieces=st.lists(st.text("abc", max_size=5), max_size=8),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3).map(tuple),
)
def test_what_is_shown_ends_before_the_first_stop_string_that_ends_after_what_is_ignored(
    ignored: list[str], pieces: list[str], stops: tuple[str, ...]
) -> None:
    matcher = StopMatcher(stops)
    shown = [matcher.feed(piece, ignore=True)[0] for piece in ignored]
    for piece in pieces:
        text, stopped = matcher.feed(piece)
        shown.append(text)
        if stopped:
            break
    shown.append(matcher.finish())
    text, before = "".join(ignored + pieces), len("".join(ignored))
    ends = [
        (end - len(stop)) for stop in stops for end in range(before + 1, len(text) + 1) if text[:end].endswith(stop)
    ]
    assert "".join(shown) == text[: min(ends, default=len(text))]
    assert matcher.stopped == bool(ends)
