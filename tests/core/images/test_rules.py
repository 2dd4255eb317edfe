from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.images import rules
from mlx_serving.core.images.rules import ImagePolicy
from mlx_serving.errors import InvalidImageInput, UnsupportedImageFormat

WHERE = "messages[1].content[0].image_url.url"
POLICY = ImagePolicy(
    max_images=2, max_bytes=100, max_request_bytes=150, max_pixels=1000, max_request_pixels=1500, max_side=100,
    low_detail_side=20,
)  # fmt: skip

HEADS = {
    "png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff\xe0", "gif": b"GIF89a", "webp": b"RIFF\0\0\0\0WEBPVP8 ",
    "bmp": b"BM\0\0",
}  # fmt: skip
OTHERS = {
    "tiff": b"II*\0", "pdf": b"%PDF-1.7", "svg": b"\xef\xbb\xbf <?xml version='1.0'?><SVG xmlns='x'/>",
    "html": b"\n<!DOCTYPE html>", "ico": b"\0\0\1\0", "heif": b"\0\0\0\x18ftypheic", "psd": b"8BPS",
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADS)
def test_a_picture_is_known_by_its_first_bytes(kind: str) -> None:
    assert rules.format_of(HEADS[kind], None, WHERE) == kind
    assert rules.format_of(HEADS[kind], f"image/{kind}; q=1", WHERE) == kind


@pytest.mark.parametrize("kind", OTHERS)
def test_what_people_take_for_a_picture_is_refused_by_its_name(kind: str) -> None:
    with pytest.raises(UnsupportedImageFormat, match=f"a file of the type {kind}") as raised:
        rules.format_of(OTHERS[kind], None, WHERE)
    assert raised.value.field == WHERE
    assert raised.value.details["given"] == kind


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(UnsupportedImageFormat, match="is no picture"):
        rules.format_of(b"hello", None, WHERE)
    with pytest.raises(InvalidImageInput, match="is empty"):
        rules.format_of(b"", "image/png", WHERE)


def test_a_picture_must_be_what_it_is_said_to_be() -> None:
    with pytest.raises(UnsupportedImageFormat, match="is said to be jpeg, and is png"):
        rules.format_of(HEADS["png"], "image/JPG", WHERE)
    with pytest.raises(UnsupportedImageFormat, match="got the type 'text/html'"):
        rules.format_of(HEADS["png"], "text/html; charset=utf-8", WHERE)


@pytest.mark.parametrize("media_type", [None, "", "application/octet-stream", "binary/octet-stream; x=y"])
def test_a_type_that_says_nothing_leaves_it_to_the_file(media_type: str | None) -> None:
    assert rules.format_of(HEADS["gif"], media_type, WHERE) == "gif"


def test_a_jpeg_of_many_scans_is_refused() -> None:
    assert rules.format_of(HEADS["jpeg"] + b"\xff\xda" * 50, None, WHERE) == "jpeg"
    with pytest.raises(InvalidImageInput, match="at most 50 scans, got 51"):
        rules.format_of(HEADS["jpeg"] + b"\xff\xda" * 51, None, WHERE)


def test_numbers_are_bounded_with_the_field_the_limit_and_what_was_given() -> None:
    rules.require_count(2, WHERE, POLICY)
    rules.require_bytes(100, WHERE, POLICY)
    rules.require_request_bytes(150, WHERE, POLICY)
    rules.require_request_size(1500, WHERE, POLICY)
    for check, given_ in (
        (rules.require_count, 3),
        (rules.require_bytes, 101),
        (rules.require_request_bytes, 151),
        (rules.require_request_size, 1501),
    ):
        with pytest.raises(InvalidImageInput) as raised:
            check(given_, WHERE, POLICY)
        assert raised.value.field == WHERE
        assert (raised.value.details["limit"], raised.value.details["given"]) == (given_ - 1, given_)
        assert WHERE in raised.value.message
        assert raised.value.http_status == 400


def test_a_size_is_bounded() -> None:
    rules.require_size(100, 10, WHERE, POLICY)
    rules.require_size(1, 200, WHERE, POLICY)
    for width, height, rule in ((0, 5, "no pixels"), (5, 0, "no pixels"), (101, 10, "1010"), (1, 201, "200 times")):
        with pytest.raises(InvalidImageInput, match=rule):
            rules.require_size(width, height, WHERE, POLICY)


def test_larger_pictures_are_scaled_down_to_what_their_detail_says() -> None:
    assert rules.target_size(200, 100, "auto", POLICY) == (100, 50)
    assert rules.target_size(100, 200, "high", POLICY) == (50, 100)
    assert rules.target_size(200, 100, "low", POLICY) == (20, 10)
    assert rules.target_size(100, 100, "auto", POLICY) == (100, 100)
    assert rules.target_size(200, 1, "low", POLICY) == (20, 1)


@given(st.integers(1, 100_000), st.integers(1, 100_000), st.sampled_from(["auto", "low", "high"]), st.integers(1, 4096))
def test_no_picture_grows_or_vanishes(
    width: int, height: int, detail: Literal["auto", "low", "high"], side: int
) -> None:
    policy = ImagePolicy(max_side=side, low_detail_side=side)
    scaled = rules.target_size(width, height, detail, policy)
    assert 1 <= scaled[0] <= width
    assert 1 <= scaled[1] <= height
    assert max(scaled) == min(side, max(width, height))
