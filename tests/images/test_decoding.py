from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest
from PIL import Image as pillow  # noqa: N813  as its own documentation has it
from PIL import ImageOps

from mlx_serving.core.images.image import Image, ImageDetail
from mlx_serving.core.images.rules import ImagePolicy
from mlx_serving.errors import ImageEncodingError, InvalidImageInput, UnsupportedImageFormat
from mlx_serving.images.decoding import decode, inspect

from ..pictures import chunk, file_of, picture, png, png_of_chunks, with_chunk

WHERE = "messages[0].content[1].image_url.url"
POLICY = ImagePolicy(max_pixels=1_000_000, max_side=256, low_detail_side=32)


def read(
    data: bytes, detail: ImageDetail = "auto", policy: ImagePolicy = POLICY, media_type: str | None = None
) -> Image:
    return decode(data, inspect(data, media_type, WHERE, policy), detail, WHERE, policy)


def pixels_of(image: Image) -> pillow.Image:
    """As the worker sees it: whatever it is, it must be one upright RGB frame of the size that is told."""
    opened = pillow.open(BytesIO(image.data))
    assert opened.format in ("PNG", "JPEG")
    assert (opened.mode, opened.size) == ("RGB", (image.width, image.height))
    assert getattr(opened, "n_frames", 1) == 1
    assert opened.getexif().get(0x0112, 1) == 1
    assert not opened.has_transparency_data
    return opened


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_what_workers_take_goes_on_as_it_is(kind: str) -> None:
    data = file_of(picture(), kind)
    image = read(data)
    assert image.data is data
    assert (image.width, image.height) == (64, 48)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP"])
def test_pictures_of_the_same_pixels_have_the_same_digest(kind: str) -> None:
    params: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    image = read(file_of(picture("L" if kind == "GIF" else "RGB"), kind, **params))
    assert pixels_of(image).tobytes() == picture("RGB").tobytes()
    assert image.digest == read(png()).digest
    assert image == read(png())


def test_the_digest_tells_pixels_size_and_detail_apart() -> None:
    digests = {
        read(png()).digest,
        read(png(shade=1)).digest,
        read(png(size=(48, 64))).digest,
        read(png(), "low").digest,
        read(png(), "high").digest,
    }
    assert len(digests) == 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_turned_upright(kind: str, orientation: int) -> None:
    exif = pillow.Exif()
    exif[0x0112] = orientation
    data = file_of(picture(), kind, exif=exif)
    expected = ImageOps.exif_transpose(pillow.open(BytesIO(data))).convert("RGB")
    image = read(data)
    assert pixels_of(image).tobytes() == expected.tobytes()
    assert (image.data is data) == (kind == "JPEG" and orientation == 1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_that_cannot_be_read_says_nothing() -> None:
    data = file_of(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert pixels_of(read(data)).size == (64, 48)


def test_cmyk_becomes_rgb() -> None:
    image = read(file_of(pillow.new("CMYK", (4, 4), (0, 0, 0, 255)), "JPEG"))
    assert max(map(int, pixels_of(image).tobytes())) < 16


def test_sixteen_bits_are_scaled_not_cut_off() -> None:
    deep = pillow.frombytes("I;16", (3, 1), struct.pack("<3H", 0, 0x8080, 0xFFFF))
    assert pixels_of(read(file_of(deep))).tobytes() == bytes([0] * 3 + [128] * 3 + [255] * 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_on_white(mode: str) -> None:
    clear = pillow.new("RGBA", (4, 4), (10, 10, 10, 0))
    data = file_of(clear.quantize() if mode == "P" else clear.convert(mode))
    assert set(pixels_of(read(data)).get_flattened_data()) == {(255, 255, 255)}


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_greys_and_palettes_become_rgb(mode: str) -> None:
    assert pixels_of(read(file_of(picture(mode)))).tobytes() == picture(mode).convert("RGB").tobytes()


def test_a_transparent_colour_of_an_rgb_picture_counts() -> None:
    data = file_of(pillow.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))
    assert set(pixels_of(read(data)).get_flattened_data()) == {(255, 255, 255)}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_larger_pictures_are_scaled_down(kind: str) -> None:
    data = file_of(picture(size=(600, 300)), kind)
    assert pixels_of(read(data)).size == (256, 128)
    assert pixels_of(read(data, "low")).size == (32, 16)
    turned = pillow.Exif()
    turned[0x0112] = 6
    assert pixels_of(read(file_of(picture(size=(600, 300)), kind, exif=turned))).size == (128, 256)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"tEXt", b"Comment\0" + b"x" * 1000),
        chunk(b"iCCP", b"junk\0\0" + b"no profile"),
        chunk(b"eXIf", b"junk"),
        chunk(b"prVt", b"private"),
    ],
)
def test_what_else_is_in_a_png_does_not_go_on(extra: bytes) -> None:
    image = read(with_chunk(png(), extra))
    assert extra not in image.data
    assert image.digest == read(png()).digest


def test_what_is_behind_the_end_does_not_go_on() -> None:
    assert read(png() + b"PK\3\4 an archive").data != png() + b"PK\3\4 an archive"
    assert b"archive" not in read(file_of(picture(), "JPEG") + b"PK\3\4 an archive").data


def test_a_profile_is_not_written() -> None:
    image = read(file_of(picture("RGBA"), icc_profile=b"a profile that nobody asked for"))
    assert b"iCCP" not in image.data


def test_of_a_picture_of_several_only_the_first_is_taken() -> None:
    data = file_of(picture(), "MPO", save_all=True, append_images=[picture(shade=9)])
    assert read(data).digest == read(file_of(picture(), "JPEG")).digest
    pixels_of(read(data))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_are_refused(kind: str) -> None:
    frames = [picture("RGB", shade=shade) for shade in (40, 90)]
    data = file_of(picture(), kind, save_all=True, append_images=frames)
    with pytest.raises(UnsupportedImageFormat, match="is animated") as raised:
        read(data)
    assert raised.value.field == WHERE


def test_a_bomb_is_refused_by_its_header() -> None:
    """Ten gigapixels, of which there is not one: decoding would fail in another way."""
    with pytest.raises(InvalidImageInput, match=r"at most 1000000 pixels, got 10000000000 \(100000x100000\)") as raised:
        read(png_of_chunks(100_000, 100_000))
    assert raised.value.details["limit"] == 1_000_000


@pytest.mark.parametrize(
    "data",
    [
        file_of(picture(size=(16, 16)), "GIF").replace(struct.pack("<HH", 16, 16), struct.pack("<HH", 9000, 9000)),
        file_of(picture(size=(16, 16)), "BMP").replace(struct.pack("<ii", 16, 16), struct.pack("<ii", 65500, 65500)),
        file_of(picture(size=(16, 16)), "JPEG").replace(struct.pack(">HH", 16, 16), struct.pack(">HH", 65500, 65500)),
    ],
    ids=["gif", "bmp", "jpeg"],
)  # fmt: skip
def test_so_are_bombs_of_other_formats(data: bytes) -> None:
    with pytest.raises(InvalidImageInput, match="at most 1000000 pixels"):
        read(data)


def test_a_bomb_of_text_is_refused() -> None:
    packed = zlib.compress(bytes(100_000_000), 9)
    with pytest.raises(InvalidImageInput, match="damaged"):
        read(with_chunk(png(), chunk(b"zTXt", b"Comment\0\0" + packed)))


def test_a_bomb_of_pixels_that_the_header_does_not_tell_is_not_unpacked() -> None:
    """A hundred megabytes for one pixel."""
    data = png_of_chunks(1, 1, chunk(b"IDAT", zlib.compress(bytes(100_000_000), 9)))
    assert pixels_of(read(data)).size == (1, 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_what_is_truncated_is_refused(kind: str, share: float) -> None:
    data = file_of(picture(), kind)
    with pytest.raises(InvalidImageInput, match=r"damaged or truncated|no pixels") as raised:
        read(data[: int(len(data) * share)])
    assert raised.value.field == WHERE


@pytest.mark.parametrize(
    "data",
    [
        png_of_chunks(0, 5),
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xd9",
        b"RIFF\x04\0\0\0WEBP",
        b"GIF89a",
        b"BM",
        png()[:40] + b"\xff" * 200,
    ],
)
def test_what_is_damaged_is_refused(data: bytes) -> None:
    with pytest.raises(ImageEncodingError):
        read(data)


def test_noise_behind_a_good_beginning_never_fails_otherwise() -> None:
    """Every byte of every format is changed once: what is refused is refused as a picture."""
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP"):
        data = file_of(picture(size=(8, 8)), kind)
        for place in range(len(data)):
            changed = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
            with suppress(ImageEncodingError):
                pixels_of(read(changed))
