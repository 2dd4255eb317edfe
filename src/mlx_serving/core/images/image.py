"""Pictures, as a request brings them and as a model gets them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

ImageDetail = Literal["auto", "low", "high"]


@dataclass(frozen=True, slots=True)
class Image:
    """A picture that was checked: `data` is a PNG or JPEG file of one upright RGB frame of `width` by `height` pixels.
    Pictures of one `digest` are the same to a model: the SHA-256, in hexadecimal, of size, pixels and `detail`."""

    data: bytes = field(repr=False, compare=False)
    digest: str
    width: int
    height: int
    detail: ImageDetail = "auto"


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where a picture is that nobody has read yet. `value` is the file itself, or text as `kind` says: base64, a URL,
    or any of a data URI, a URL, a path and base64. `media_type` is what it is said to be. A `local` one comes from a
    program on this machine, which may name every file. `field` is what who sent it calls it: errors name it."""

    value: bytes | str = field(repr=False)
    kind: Literal["any", "base64", "url"] = "any"
    media_type: str | None = None
    detail: ImageDetail = "auto"
    local: bool = False
    field: str = field(default="image", compare=False)
