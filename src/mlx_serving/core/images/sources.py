"""What was sent for a picture: the file itself, a URL, or a path."""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from mlx_serving.core.images.image import ImageSource
from mlx_serving.core.images.rules import ImagePolicy, require_bytes, sniffed
from mlx_serving.errors import InvalidImageInput, UnsafeImagePath

_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
_BASE64_HEAD = 64
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_MAX_PATH_CHARS = 4096


@dataclass(frozen=True, slots=True)
class Inline:
    """The file itself: as it is, or as base64."""

    data: bytes | str = field(repr=False)
    media_type: str | None = None


@dataclass(frozen=True, slots=True)
class Remote:
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Named:
    """A file of this machine."""

    path: str


Location: TypeAlias = Inline | Remote | Named


def locate(source: ImageSource) -> Location:
    """Raises `InvalidImageInput` for what is none of these, and `UnsafeImagePath` for a URL of another host's file."""
    value, where = source.value, source.field
    if isinstance(value, bytes) or source.kind == "base64":
        return Inline(value, source.media_type)
    text = value.strip() if len(value) <= _MAX_PATH_CHARS else value
    head = text[:16].lower()
    if head.startswith(("http://", "https://")) or source.kind == "url":
        return Remote(text)
    if head.startswith("data:"):
        return _data_uri(text, where)
    if head.startswith("file:"):
        return Named(_path_of(text, where))
    if _looks_like_base64(text):
        return Inline(text, source.media_type)
    if _SCHEME.match(head) and not re.match(r"[A-Za-z]:[\\/]", head):
        scheme = head.partition(":")[0]
        raise InvalidImageInput(
            f"{where} must be a data URI, a URL of the scheme http or https, or base64, got a URL of the scheme "
            f"{scheme!r}",
            field=where,
            given=scheme,
        )
    if not text or len(text) > _MAX_PATH_CHARS or "\0" in text:
        raise InvalidImageInput(f"{where} is no data URI, no URL, no base64 of a picture and no path", field=where)
    return Named(text)


def decoded(inline: Inline, where: str, policy: ImagePolicy) -> bytes:
    """The file. Raises `InvalidImageInput` for what is no base64, and what is too large."""
    if isinstance(inline.data, bytes):
        require_bytes(len(inline.data), where, policy)
        return inline.data
    require_bytes(len(inline.data) * 3 // 4 - 2, where, policy)  # before anything is made of it
    try:
        data = binascii.a2b_base64(inline.data.encode("ascii").translate(None, b" \t\r\n"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidImageInput(f"{where} is not valid base64", field=where) from None
    require_bytes(len(data), where, policy)
    return data


def _data_uri(text: str, where: str) -> Inline:
    header, comma, data = text[len("data:") :].partition(",")
    media_type, *parameters = header.split(";")
    if not comma or not parameters or parameters[-1].strip().lower() != "base64":
        raise InvalidImageInput(f"{where} must be a data URI with base64, as in data:image/png;base64,…", field=where)
    return Inline(data, media_type)


def _path_of(url: str, where: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidImageInput(f"{where} is no URL", field=where) from None
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/"):
        raise UnsafeImagePath(f"{where} must be a file URL with an absolute path and no host", field=where)
    if "\0" in path or len(path) > _MAX_PATH_CHARS:
        raise InvalidImageInput(f"{where} is no path", field=where)
    return path


def _looks_like_base64(text: str) -> bool:
    """Whether it is base64 of something that begins like a picture: short names of files would be base64 as well."""
    if len(text) < _BASE64_HEAD or not _BASE64.fullmatch(text[: 4 * _BASE64_HEAD]):
        return False
    head = "".join(text[: 4 * _BASE64_HEAD].split()).rstrip("=")
    return sniffed(binascii.a2b_base64(head[: len(head) // 4 * 4])) is not None
