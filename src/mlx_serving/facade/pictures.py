"""Pictures as programs have them: paths, URLs, data URIs, base64, bytes, and images of Pillow."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from mlx_serving.core.images.image import ImageDetail, ImageSource
from mlx_serving.core.images.parts import Pictures
from mlx_serving.errors import InvalidImageInput, InvalidRequest, UnsupportedParameter

_DETAILS: Sequence[ImageDetail] = ("auto", "low", "high")
_PICTURES = ("image", "image_url")
_FORMATS = ("png", "jpg", "jpeg", "webp", "bmp", "gif")
_WRITABLE_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


@runtime_checkable
class _Pillow(Protocol):
    """What tells an image of Pillow, which need not be installed for this to be asked."""

    mode: str

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None: ...  # noqa: A002  Pillow's own name

    def convert(self, mode: str) -> Any: ...


def source_of(value: object, field: str, detail: object = None) -> ImageSource:
    """What a program gives for a picture: the path, URL, data URI, base64 or bytes of a file, a `Path`, an image of
    Pillow, or one of these as `{"source": …, "format": "png"}`, where the format must be what it is.

    Every file that the program may read may be named. An image of Pillow is taken as it is now. Raises
    `InvalidImageInput` for anything else, and `UnsupportedParameter`.
    """
    if isinstance(value, Mapping):
        return _described(cast("Mapping[str, object]", value), field, detail)
    if detail is not None and detail not in _DETAILS:
        rule = f"must be one of {', '.join(_DETAILS)}"
        raise InvalidRequest(f"{field}: detail {rule}, got {detail!r}", field=field, limit=rule)
    wanted = cast("ImageDetail", detail or "auto")
    if isinstance(value, bytes | bytearray | memoryview):
        data: bytes | str = bytes(cast("bytes", value))
    elif isinstance(value, str):
        data = value
    elif isinstance(value, os.PathLike):
        data = Path(cast("os.PathLike[str]", value)).absolute().as_uri()  # a name could be taken for something else
    elif isinstance(value, _Pillow):
        data = _written(value, field)
    else:
        kind = type(value).__name__
        raise InvalidImageInput(
            f"{field} must be a path, a URL, a data URI, base64, bytes or an image of Pillow, got a {kind}",
            field=field,
            given=kind,
        )
    return ImageSource(data, detail=wanted, local=True, field=field)


def content_of(content: object, field: str, pictures: Pictures) -> object:
    """The content of a message, whose parts `{"type": "image", "image": …}` and `{"type": "image_url", "image_url": …}`
    bring pictures; what has none stays as it is. Raises as `source_of`."""
    if not isinstance(content, Sequence) or isinstance(content, str | bytes):
        return content
    parts = [_mapping(part) for part in cast("Sequence[object]", content)]
    if not any(part.get("type") in _PICTURES for part in parts):
        return cast("object", content)
    return pictures.content([_part(part, f"{field}[{index}]") for index, part in enumerate(parts)])


def _mapping(part: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", part) if isinstance(part, Mapping) else {}


def _part(part: Mapping[str, object], field: str) -> str | ImageSource:
    kind = part.get("type")
    if kind == "text" and isinstance(text := part.get("text"), str):
        return text
    if kind not in _PICTURES:
        raise UnsupportedParameter(
            f"{field} must be a part of the type text, image or image_url, got {str(kind)[:80]!r}", field=field
        )
    name = str(kind)
    if part.get(name) is None:
        raise InvalidImageInput(f"{field}.{name} is required", field=f"{field}.{name}")
    value = part[name]
    if kind == "image_url" and isinstance(value, Mapping):
        given = cast("Mapping[str, object]", value)
        return source_of(given.get("url"), f"{field}.image_url.url", given.get("detail"))
    return source_of(value, f"{field}.{name}", part.get("detail"))


def _described(given: Mapping[str, object], field: str, detail: object) -> ImageSource:
    for name in given:
        if name not in ("source", "format", "detail"):
            raise UnsupportedParameter(f"{field}.{name} is not supported", field=f"{field}.{name}")
    kind = given.get("format")
    if kind is not None and kind not in _FORMATS:
        rule = f"must be one of {', '.join(_FORMATS)}"
        raise InvalidRequest(f"{field}.format {rule}, got {kind!r}", field=f"{field}.format", limit=rule)
    found = source_of(given.get("source"), f"{field}.source", given.get("detail", detail))
    return ImageSource(
        found.value,
        media_type=None if kind is None else f"image/{kind}",
        detail=found.detail,
        local=True,
        field=found.field,
    )


def _written(picture: _Pillow, field: str) -> bytes:
    file = BytesIO()
    try:
        writable = picture if picture.mode in _WRITABLE_MODES else cast("_Pillow", picture.convert("RGB"))
        writable.save(file, "PNG", compress_level=1)
    except (OSError, ValueError) as error:
        raise InvalidImageInput(f"{field} cannot be written: {error}", field=field) from None
    return file.getvalue()
