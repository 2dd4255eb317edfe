"""Files of pictures for tests, good and bad, made as they are asked for."""

from __future__ import annotations

import base64
import struct
import zlib
from io import BytesIO
from typing import Any

from PIL import Image


def picture(mode: str = "RGB", size: tuple[int, int] = (64, 48), shade: int = 0) -> Image.Image:
    """Every pixel of it differs from its neighbours, so that no way of turning it looks like another."""
    width, height = size
    grey = Image.frombytes("L", size, bytes((x * 3 + y * 5 + shade) % 251 for y in range(height) for x in range(width)))
    return grey.convert(mode)


def file_of(image: Image.Image, kind: str = "PNG", **params: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **params)
    return file.getvalue()


def png(size: tuple[int, int] = (64, 48), shade: int = 0) -> bytes:
    return file_of(picture("RGB", size, shade))


def data_uri(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_chunks(width: int, height: int, *chunks: bytes) -> bytes:
    """Whatever its header says: there need not be any pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def with_chunk(whole: bytes, extra: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    return whole[:33] + extra + whole[33:]
