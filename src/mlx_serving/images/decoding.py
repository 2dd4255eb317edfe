"""From the file of a picture to what a worker takes: a PNG or JPEG of one upright RGB frame.

Files are hostile until they are decoded: a plugin is chosen by the first bytes, its size is looked at before a pixel is
computed, and what goes on is either known to be plain or written anew. Pillow is imported with the first picture.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, assert_never

from mlx_serving.core.images.image import Image, ImageDetail
from mlx_serving.core.images.rules import (
    ImageFormat,
    ImagePolicy,
    format_of,
    require_size,
    target_size,
)
from mlx_serving.errors import ImageEncodingError, InvalidImageInput, UnsupportedImageFormat

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageFile import ImageFile

_ORIENTATION = 0x0112  # of EXIF
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# What stands in a PNG beside the pixels without changing them, and holds nothing that must be unpacked.
_PLAIN_CHUNKS = frozenset({b"IHDR", b"IDAT", b"IEND", b"pHYs", b"sRGB", b"gAMA", b"cHRM", b"sBIT", b"bKGD", b"tIME"})


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says before it is decoded; `width` and `height` are those of the stored picture, in pixels."""

    format: ImageFormat
    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


def inspect(data: bytes, media_type: str | None, where: str, policy: ImagePolicy) -> Header:
    """Look at the beginning of a file. Raises `UnsupportedImageFormat` and `InvalidImageInput`, which name `where`."""
    kind = format_of(data, media_type, where)
    try:
        with _opened(data, kind) as picture:
            width, height = picture.size
            animated = bool(getattr(picture, "is_animated", False))
    except Exception as error:  # noqa: BLE001  decoders fail in as many ways as files are damaged
        raise _damaged(kind, where, error) from None
    require_size(width, height, where, policy)
    if animated:
        raise UnsupportedImageFormat(
            f"{where} is animated; send the frame that is meant, as a picture of its own", field=where
        )
    return Header(kind, width, height)


def decode(data: bytes, header: Header, detail: ImageDetail, where: str, policy: ImagePolicy) -> Image:
    """Decode a file that was inspected. Raises `InvalidImageInput` when it is truncated or damaged, and
    `ImageEncodingError` when the result cannot be written."""
    size = target_size(header.width, header.height, detail, policy)
    try:
        with _opened(data, header.format) as picture:
            if header.format == "jpeg":
                picture.draft(None, size)  # decodes at half the size, or less, where that is enough
            picture.load()
            turn = _turn(picture)
            untouched = (
                size == (header.width, header.height)
                and picture.mode == "RGB"
                and turn is None
                and _is_plain(data, header.format, picture)
            )
            upright = picture if untouched else _upright(picture, turn, size)
            pixels = upright.tobytes()
    except Exception as error:  # noqa: BLE001  as above
        raise _damaged(header.format, where, error) from None
    width, height = upright.size
    name = hashlib.sha256(f"{width}x{height} {detail} ".encode())
    name.update(pixels)
    return Image(data if untouched else _png(upright, where), name.hexdigest(), width, height, detail)


def _opened(data: bytes, kind: ImageFormat) -> ImageFile:
    # The plugins themselves: `PIL.Image.open` would ask all that anybody has registered, and has a limit of its own.
    from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    file = BytesIO(data)
    match kind:
        case "png":
            return PngImagePlugin.PngImageFile(file)
        case "jpeg":
            return JpegImagePlugin.JpegImageFile(file)
        case "gif":
            return GifImagePlugin.GifImageFile(file)
        case "webp":
            return WebPImagePlugin.WebPImageFile(file)
        case "bmp":
            return BmpImagePlugin.BmpImageFile(file)
        case _:
            assert_never(kind)


def _turn(picture: Picture) -> Any:
    """How the picture must be turned to be upright, as EXIF says; None if it is."""
    from PIL.Image import Transpose

    try:
        orientation: object = picture.getexif().get(_ORIENTATION)
    except Exception:  # noqa: BLE001  what cannot be read says nothing
        return None
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return turns.get(orientation) if isinstance(orientation, int) else None


def _upright(picture: Picture, turn: Any, size: tuple[int, int]) -> Picture:
    """In RGB, on white where it is transparent, turned, and of `size`, which is that of the stored picture."""
    from PIL.Image import Resampling

    flat = _flat(picture)
    if flat.size != size:
        flat = flat.resize(size, Resampling.LANCZOS, reducing_gap=3.0)
    return flat if turn is None else flat.transpose(turn)


def _flat(picture: Picture) -> Picture:
    from PIL.Image import new

    if picture.mode in _DEEP_MODES:  # 16 bits: a conversion would cut off what is brighter than 255
        return picture.convert("I").point(_to_bytes).convert("L").convert("RGB")
    if picture.has_transparency_data:
        ground = new("RGBA", picture.size, "white")
        ground.alpha_composite(picture.convert("RGBA"))
        return ground.convert("RGB")
    return picture.convert("RGB")


def _to_bytes(value: Any) -> Any:
    return value * (1 / 257)


def _is_plain(data: bytes, kind: ImageFormat, picture: Picture) -> bool:
    """Whether a file can go on as it is: nothing in it but one picture."""
    if kind == "jpeg":
        return "mp" not in picture.info and data.endswith(b"\xff\xd9")
    return kind == "png" and not picture.has_transparency_data and _has_plain_chunks(data)


def _has_plain_chunks(png: bytes) -> bool:
    place = 8
    while place + 12 <= len(png):
        size, kind = struct.unpack_from(">I4s", png, place)
        if kind not in _PLAIN_CHUNKS:
            return False
        place += 12 + size
        if kind == b"IEND":
            return place == len(png)
    return False


def _png(picture: Picture, where: str) -> bytes:
    picture.info = {}  # profiles and texts would be written as well
    file = BytesIO()
    try:
        picture.save(file, "PNG", compress_level=1)
    except (OSError, ValueError, MemoryError) as error:
        raise ImageEncodingError(f"{where} cannot be written as PNG: {type(error).__name__}", field=where) from None
    return file.getvalue()


def _damaged(kind: ImageFormat, where: str, error: Exception) -> InvalidImageInput:
    reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return InvalidImageInput(f"{where} is a damaged or truncated {kind}: {reason}", field=where, given=kind)
