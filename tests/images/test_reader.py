from __future__ import annotations

import asyncio
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_serving.core.images.addresses import FetchPolicy
from mlx_serving.core.images.image import ImageSource
from mlx_serving.core.images.rules import ImagePolicy
from mlx_serving.errors import ImageEncodingError, InvalidImageInput, UnsafeImagePath, UnsupportedImageFormat
from mlx_serving.images import reader as reader_module
from mlx_serving.images.reader import ImageReader

from ..pictures import data_uri, png, png_of_chunks
from ..web_pages import answer, web


@pytest.fixture
def reader() -> Generator[ImageReader]:
    made = ImageReader(ImagePolicy(max_pixels=10_000, max_request_pixels=20_000, max_images=4))
    yield made
    made.close()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fields of the pictures that were decoded."""
    fields: list[str] = []
    real = reader_module.decode

    def noting(*args: object) -> object:
        fields.append(str(args[3]))
        return real(*args)  # pyright: ignore[reportArgumentType]  as it was called

    monkeypatch.setattr(reader_module, "decode", noting)
    return fields


async def test_pictures_come_in_their_order_and_equal_ones_are_decoded_once(
    reader: ImageReader, decoded: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "b.png"
    file.write_bytes(png(shade=1))
    images = await reader.read(
        (
            ImageSource(data_uri(png()), field="0"),
            ImageSource(str(file), local=True, field="1"),
            ImageSource(png(), field="2"),
            ImageSource(png(), detail="low", field="3"),
        )
    )
    assert [image.digest for image in images][0::2] == [images[0].digest] * 2
    assert len({image.digest for image in images}) == 3
    assert decoded == ["0", "1", "3"]


async def test_nothing_is_read_before_every_source_is_known_to_be_allowed(reader: ImageReader) -> None:
    async with web() as pages:
        pages.pages["/a.png"] = answer(png())
        fetch = FetchPolicy(enabled=True, allowed_ports=str(pages.port), allowed_networks="127.0.0.1/32")
        reader.policy = replace(reader.policy, fetch=fetch)
        allowed = ImageSource(pages.url("/a.png"), field="0")
        for other in (ImageSource("/etc/passwd"), ImageSource("ftp://x"), ImageSource("data:text/html;base64,AAAA")):
            with pytest.raises(ImageEncodingError) as raised:
                await reader.read((allowed, replace(other, field="1")))
            assert raised.value.field == "1"
        assert pages.requests == []
        images = await reader.read((allowed, replace(allowed, field="1")))
        assert images[0] == images[1]
        assert len(pages.requests) == 1


async def test_nothing_is_decoded_before_all_headers_are_known(reader: ImageReader, decoded: list[str]) -> None:
    for bad in (png_of_chunks(5000, 5000), b"%PDF", png(size=(100, 100)) + b"", b""):
        more = (ImageSource(png(size=(100, 99), shade=2), field="2"),) if bad == png(size=(100, 100)) else ()
        sources = (ImageSource(png(size=(100, 100), shade=1), field="0"), ImageSource(bad, field="1"), *more)
        with pytest.raises(ImageEncodingError):
            await reader.read(sources)
    assert decoded == []


async def test_bounds_of_a_whole_request_name_the_first_that_is_too_much(reader: ImageReader) -> None:
    many = tuple(ImageSource(png(), field=str(number)) for number in range(5))
    with pytest.raises(InvalidImageInput, match="at most 4 pictures, got 5") as raised:
        await reader.read(many)
    assert raised.value.field == "4"
    three = tuple(ImageSource(png(size=(100, 90), shade=shade), field=str(shade)) for shade in range(3))
    with pytest.raises(InvalidImageInput, match="20000 pixels together, got 27000 up to 2") as raised:
        await reader.read(three)
    reader.policy = replace(reader.policy, max_request_bytes=len(three[0].value) + 10)
    with pytest.raises(InvalidImageInput, match="bytes together"):
        await reader.read(three)


async def test_what_a_picture_is_said_to_be_holds_wherever_it_comes_from(reader: ImageReader, tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(png())
    for value in (str(file), png(), data_uri(png())):
        with pytest.raises(UnsupportedImageFormat, match="is said to be jpeg, and is png"):
            await reader.read((ImageSource(value, media_type="image/jpeg", local=True),))


async def test_paths_of_others_need_a_folder(reader: ImageReader, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png())
    for path in (str(file), file.as_uri()):
        with pytest.raises(UnsafeImagePath):
            await reader.read((ImageSource(path),))
    reader.policy = replace(reader.policy, folders=str(tmp_path))
    assert (await reader.read((ImageSource(file.as_uri()),)))[0].width == 64


async def test_who_leaves_waits_for_nothing(reader: ImageReader) -> None:
    task = asyncio.create_task(reader.read(tuple(ImageSource(png(shade=n), field=str(n)) for n in range(4))))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await reader.read((ImageSource(png()),)))[0].width == 64


async def test_a_reader_that_was_closed_reads_again(reader: ImageReader) -> None:
    await reader.read((ImageSource(png()),))
    reader.close()
    assert (await reader.read((ImageSource(png()),)))[0].width == 64
