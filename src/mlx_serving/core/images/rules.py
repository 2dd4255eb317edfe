"""Which pictures are taken, by what their files say of themselves, and how large a model gets to see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from mlx_serving.core.images.addresses import FetchPolicy
from mlx_serving.core.images.image import ImageDetail
from mlx_serving.errors import InvalidImageInput, UnsupportedImageFormat

ImageFormat: TypeAlias = Literal["png", "jpeg", "webp", "gif", "bmp"]
FORMATS: Sequence[ImageFormat] = ("png", "jpeg", "webp", "gif", "bmp")

MAX_RATIO = 200
"""Of the longer side to the shorter one: models refuse slimmer pictures."""
_MAX_SCANS = 50  # of a JPEG: each is decoded over the whole picture, and takes a few bytes only
_SNIFFED_BYTES = 512
_FORMAT_BY_TYPE: Mapping[str, ImageFormat] = {
    "image/png": "png",
    "image/apng": "png",
    "image/jpeg": "jpeg",
    "image/jpg": "jpeg",
    "image/pjpeg": "jpeg",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/bmp": "bmp",
    "image/x-bmp": "bmp",
    "image/x-ms-bmp": "bmp",
}
_SAYS_NOTHING = ("", "application/octet-stream", "binary/octet-stream")


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """How many pictures a request may have, how large each and all of them may be, as files and in pixels, and where
    they may come from. `max_side` and `low_detail_side` are what larger ones are scaled down to, in pixels. `folders`
    are paths, separated as the system does it; None is no folder."""

    max_images: int = 16
    max_bytes: int = 20 * 1024**2
    max_request_bytes: int = 64 * 1024**2
    max_pixels: int = 50_000_000
    max_request_pixels: int = 100_000_000
    max_side: int = 2048
    low_detail_side: int = 512
    folders: str | None = None
    fetch: FetchPolicy = field(default_factory=FetchPolicy)


def named_format(media_type: str | None, where: str) -> ImageFormat | None:
    """The format that a media type names; None if it names none. Raises `UnsupportedImageFormat` for another type."""
    kind = (media_type or "").partition(";")[0].strip().lower()
    if kind in _SAYS_NOTHING:
        return None
    if kind not in _FORMAT_BY_TYPE:
        raise UnsupportedImageFormat(
            f"{where} must be a picture of the type {', '.join(f'image/{each}' for each in FORMATS)}, got the type "
            f"{kind[:80]!r}",
            field=where,
            limit=list(FORMATS),
            given=kind[:80],
        )
    return _FORMAT_BY_TYPE[kind]


def format_of(data: bytes, media_type: str | None, where: str) -> ImageFormat:
    """What a file is by its first bytes. Raises `UnsupportedImageFormat` when it is no picture that is taken here, or
    not what it is said to be, and `InvalidImageInput` when nothing is there or decoding it would take for ever."""
    said = named_format(media_type, where)
    if not data:
        raise InvalidImageInput(f"{where} is empty", field=where)
    head = data[:_SNIFFED_BYTES]
    found = sniffed(head)
    if found is None:
        other = _other(head)
        what = "is no picture" if other is None else f"is a file of the type {other}"
        raise UnsupportedImageFormat(
            f"{where} {what}; pictures may be {', '.join(FORMATS)}", field=where, limit=list(FORMATS), given=other
        )
    if said is not None and said != found:
        raise UnsupportedImageFormat(
            f"{where} is said to be {said}, and is {found}", field=where, limit=said, given=found
        )
    if found == "jpeg" and (scans := data.count(b"\xff\xda")) > _MAX_SCANS:
        raise InvalidImageInput(
            f"{where} may be a JPEG of at most {_MAX_SCANS} scans, got {scans}",
            field=where,
            limit=_MAX_SCANS,
            given=scans,
        )
    return found


def sniffed(head: bytes) -> ImageFormat | None:
    """Which picture a file is by its first bytes; None for what is not taken here."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith(b"BM"):
        return "bmp"
    return None


def _other(head: bytes) -> str | None:
    """What people take for a picture."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return "tiff"
    if head.startswith(b"%PDF"):
        return "pdf"
    if b"<svg" in text:
        return "svg"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "html"
    if head.startswith(b"\x00\x00\x01\x00"):
        return "ico"
    if head[4:8] == b"ftyp":
        return "heif"
    return "psd" if head.startswith(b"8BPS") else None


def require_count(count: int, where: str, policy: ImagePolicy) -> None:
    """`where` is the first that is too many. Raises `InvalidImageInput`."""
    if count > policy.max_images:
        raise InvalidImageInput(
            f"A request may have at most {policy.max_images} pictures, got {count}: {where} is too many",
            field=where,
            limit=policy.max_images,
            given=count,
        )


def require_bytes(size: int, where: str, policy: ImagePolicy) -> None:
    """Of one file. Raises `InvalidImageInput`."""
    if size > policy.max_bytes:
        raise InvalidImageInput(
            f"{where} may have at most {policy.max_bytes} bytes, got {size}",
            field=where,
            limit=policy.max_bytes,
            given=size,
        )


def require_request_bytes(size: int, where: str, policy: ImagePolicy) -> None:
    """Of all files up to `where`. Raises `InvalidImageInput`."""
    if size > policy.max_request_bytes:
        raise InvalidImageInput(
            f"The pictures of a request may have at most {policy.max_request_bytes} bytes together, got {size} up to "
            f"{where}",
            field=where,
            limit=policy.max_request_bytes,
            given=size,
        )


def require_size(width: int, height: int, where: str, policy: ImagePolicy) -> None:
    """Of one picture, before it is decoded. Raises `InvalidImageInput`."""
    size = f"{width}x{height}"
    if width < 1 or height < 1:
        raise InvalidImageInput(f"{where} has no pixels: its size is {size}", field=where, given=size)
    if width * height > policy.max_pixels:
        raise InvalidImageInput(
            f"{where} may have at most {policy.max_pixels} pixels, got {width * height} ({size})",
            field=where,
            limit=policy.max_pixels,
            given=width * height,
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise InvalidImageInput(
            f"{where} may be at most {MAX_RATIO} times as long as wide, got {size}",
            field=where,
            limit=MAX_RATIO,
            given=size,
        )


def require_request_size(pixels: int, where: str, policy: ImagePolicy) -> None:
    """Of all pictures up to `where`, before they are decoded. Raises `InvalidImageInput`."""
    if pixels > policy.max_request_pixels:
        raise InvalidImageInput(
            f"The pictures of a request may have at most {policy.max_request_pixels} pixels together, got {pixels} up "
            f"to {where}",
            field=where,
            limit=policy.max_request_pixels,
            given=pixels,
        )


def target_size(width: int, height: int, detail: ImageDetail, policy: ImagePolicy) -> tuple[int, int]:
    """The size at which a model gets to see a picture: never a larger one, and of the same shape."""
    limit = policy.low_detail_side if detail == "low" else policy.max_side
    longer = max(width, height)
    if longer <= limit:
        return width, height
    return max(1, round(width * limit / longer)), max(1, round(height * limit / longer))
