from __future__ import annotations

import base64

import pytest

from mlx_serving.core.images.image import ImageSource
from mlx_serving.core.images.parts import Pictures
from mlx_serving.core.images.rules import ImagePolicy
from mlx_serving.core.images.sources import Inline, Named, Remote, decoded, locate
from mlx_serving.errors import InvalidImageInput, UnsafeImagePath

POLICY = ImagePolicy(max_bytes=1000)
JPEG = base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(60)).decode()
LARGE = base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(9000)).decode()


@pytest.mark.parametrize(
    ("source", "location"),
    [
        (ImageSource(b"\x89PNG"), Inline(b"\x89PNG")),
        (ImageSource("AAAA", "base64", "image/png"), Inline("AAAA", "image/png")),
        (ImageSource("ftp://x", "url"), Remote("ftp://x")),
        (ImageSource(" HTTPS://x/y "), Remote("HTTPS://x/y")),
        (ImageSource("http://x"), Remote("http://x")),
        (ImageSource("data:image/png;base64,AAAA"), Inline("AAAA", "image/png")),
        (ImageSource("DATA:;BASE64,AAAA"), Inline("AAAA", "")),
        (ImageSource("data:image/png;charset=x;base64,AAAA"), Inline("AAAA", "image/png")),
        (ImageSource("file:///a/b%20c.png"), Named("/a/b c.png")),
        (ImageSource("file://localhost/a"), Named("/a")),
        (ImageSource("/tmp/a.png"), Named("/tmp/a.png")),
        (ImageSource("a.png"), Named("a.png")),
        (ImageSource("C:\\a.png"), Named("C:\\a.png")),
        (ImageSource("cafe"), Named("cafe")),  # would be base64, too
        (ImageSource("A" * 64), Named("A" * 64)),  # of nothing that begins like a picture
        (ImageSource(JPEG, media_type="image/jpeg"), Inline(JPEG, "image/jpeg")),  # begins like a path
        (ImageSource(LARGE), Inline(LARGE)),
    ],
)
def test_what_was_sent_is_told_apart(source: ImageSource, location: object) -> None:
    assert locate(source) == location


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("ftp://example.org/x.png", "got a URL of the scheme 'ftp'"),
        ("javascript:alert(1)", "scheme 'javascript'"),
        ("", "no data URI"),
        ("a\0b", "no data URI"),
        ("x" * 5000, "no data URI"),
        ("data:image/png,AAAA", "must be a data URI with base64"),
        ("data:image/png;base64", "must be a data URI with base64"),
        ("file:///a%00b", "is no path"),
        ("file://[/a", "is no URL"),
    ],
)
def test_what_is_nothing_of_it_is_refused(value: str, rule: str) -> None:
    with pytest.raises(InvalidImageInput) as raised:
        locate(ImageSource(value, field="here"))
    assert rule in raised.value.message
    assert raised.value.field == "here"


@pytest.mark.parametrize("url", ["file://evil.example.org/share/x.png", "file:a.png"])
def test_files_of_other_hosts_are_refused(url: str) -> None:
    with pytest.raises(UnsafeImagePath):
        locate(ImageSource(url))


def test_base64_is_decoded_strictly_but_for_line_breaks() -> None:
    assert decoded(Inline("AAEC\r\nAwQ="), "x", POLICY) == b"\0\1\2\3\4"
    assert decoded(Inline(b"abc"), "x", POLICY) == b"abc"
    for wrong in ("AAE", "A*==", "AAEC-_==", "\u00e4", "AA==AA=="):
        with pytest.raises(InvalidImageInput, match="not valid base64"):
            decoded(Inline(wrong), "x", POLICY)


def test_what_is_too_large_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(InvalidImageInput, match="at most 1000 bytes"):
        decoded(Inline("*" * 2000), "x", POLICY)
    with pytest.raises(InvalidImageInput, match="at most 1000 bytes, got 1001"):
        decoded(Inline(base64.b64encode(bytes(1001)).decode()), "x", POLICY)
    with pytest.raises(InvalidImageInput, match="at most 1000 bytes"):
        decoded(Inline(bytes(1001)), "x", POLICY)


def test_a_message_with_pictures_is_a_list_of_parts_and_others_are_text() -> None:
    pictures, first, second = Pictures(), ImageSource("a"), ImageSource("b")
    assert pictures.content(["one", "two"]) == "one\ntwo"
    assert pictures.content([first, "between", second]) == [
        {"type": "image"},
        {"type": "text", "text": "between"},
        {"type": "image"},
    ]
    assert pictures.sources == (first, second)
