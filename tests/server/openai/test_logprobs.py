from __future__ import annotations

import json
import math
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.generation import Logprobs, TokenLogprob
from mlx_serving.server.openai.logprobs import TextLogprobs, chat_logprobs


def sent(document: dict[str, object]) -> Any:
    """As a client reads it."""
    return json.loads(msgspec.json.encode(document))


def place(raw: bytes, logprob: float = -1.0, *top: TokenLogprob, special: bool = False) -> Logprobs:
    return Logprobs(TokenLogprob(0, logprob, raw, special), top)


def test_a_chat_has_the_bytes_of_every_token_so_that_they_add_up_to_the_text() -> None:
    parts = [b"a \xf0\x9f", b"\x99\x88", b"!"]
    content = sent(chat_logprobs([place(part) for part in parts]))["content"]
    assert [entry["token"] for entry in content] == [r"a \xf0\x9f", r"\x99\x88", "!"]
    assert [entry["bytes"] for entry in content] == [list(part) for part in parts]


def test_a_special_token_has_a_name_and_no_bytes() -> None:
    content = chat_logprobs([place(b"<|im_end|>", special=True)])["content"]
    assert content == [{"token": "<|im_end|>", "logprob": -1.0, "bytes": None, "top_logprobs": []}]


def test_what_is_impossible_has_a_number_that_json_can_write() -> None:
    for hopeless in (-math.inf, math.nan, -1e30):
        places = [place(b"a", hopeless, TokenLogprob(1, hopeless, b"b"))]
        [entry] = sent(chat_logprobs(places))["content"]
        assert (entry["logprob"], entry["top_logprobs"][0]["logprob"]) == (-9999.0, -9999.0)
        told = sent(TextLogprobs().document(places))
        assert (told["token_logprobs"], told["top_logprobs"]) == ([-9999.0], [{"a": -9999.0, "b": -9999.0}])


def test_the_token_that_came_is_among_the_likeliest_once() -> None:
    best, other = TokenLogprob(5, -0.1, b"x"), TokenLogprob(0, -1.0, b"a")
    assert sent(TextLogprobs().document([place(b"a", -1.0, best, other)]))["top_logprobs"] == [{"x": -0.1, "a": -1.0}]
    [told] = sent(TextLogprobs().document([place(b"a", -3.0, best)]))["top_logprobs"]
    assert list(told) == ["x", "a"]


def test_offsets_count_characters_and_a_token_within_one_has_its_beginning() -> None:
    parts = [b"\xe2", b"\x82", b"\xacx", b"y", b"<end>", b"z", b""]
    places = [place(part, special=part == b"<end>") for part in parts]
    assert TextLogprobs().document(places)["text_offset"] == [0, 0, 0, 2, 3, 3, 4]


def test_bytes_that_never_became_a_character_count_as_the_one_that_is_shown_for_them() -> None:
    parts = [b"a", b"\xe2", b"b", b"\xf0\x9f", b"\xc3", b"\xa9", b"\xff", b"c"]
    assert b"".join(parts).decode(errors="replace") == "a\ufffdb\ufffdé\ufffdc"
    assert TextLogprobs().document(map(place, parts))["text_offset"] == [0, 1, 2, 3, 4, 4, 5, 6]


@given(st.text(max_size=12), st.lists(st.integers(1, 5), max_size=12), st.integers(0, 12))
def test_offsets_do_not_depend_on_how_the_answer_is_cut(text: str, lengths: list[int], cut: int) -> None:
    raw, parts = text.encode(), list[bytes]()
    for length in (*lengths, len(raw)):
        parts.append(raw[:length])
        raw = raw[length:]
    places = [place(part) for part in parts if part]
    whole = sent(TextLogprobs().document(places))["text_offset"]
    pieces = TextLogprobs()
    assert [
        offset for part in (places[:cut], places[cut:]) for offset in sent(pieces.document(part))["text_offset"]
    ] == whole
    joined = b""
    for one, offset in zip(places, whole, strict=True):
        assert offset == len(joined.decode(errors="ignore"))
        joined += one.chosen.raw
