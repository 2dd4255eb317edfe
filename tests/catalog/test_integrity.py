from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from mlx_serving.catalog.integrity import content_digest, look, matches, verify
from mlx_serving.catalog.safetensors import Tensor, read_header


def safetensors(**tensors: int) -> bytes:
    """A file of float32 tensors with so many elements."""
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    position = 0
    for name, count in tensors.items():
        header[name] = {"dtype": "F32", "shape": [count], "data_offsets": [position, position + 4 * count]}
        position += 4 * count
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(position)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model-00001-of-00002.safetensors").write_bytes(safetensors(a=3, b=2))
    (directory / "model-00002-of-00002.safetensors").write_bytes(safetensors(c=1))
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}
    index = {"weight_map": {**places, "c": "model-00002-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def test_a_header_tells_of_the_tensors(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(safetensors(a=3, b=2))
    assert read_header(tmp_path / "x") == {"a": Tensor("F32", (3,), 12), "b": Tensor("F32", (2,), 8)}


def test_a_sound_model_has_no_damages(model: Path) -> None:
    verdict = verify(model)
    assert verdict.damages == ()
    assert (verdict.files, verdict.digests) == (4, 0)
    assert verdict.size_bytes == sum(path.stat().st_size for path in model.iterdir())


FIRST, SECOND, INDEX = (
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (FIRST, safetensors(a=3, b=2)[:-1], "is damaged: it is cut off"),
        (FIRST, safetensors(a=3, b=2) + b"x", "is damaged: it is too long"),
        (FIRST, b"", "is damaged: it has no header"),
        (SECOND, b"\xff" * 99, "it has no header"),
        (SECOND, b"\4\0\0\0\0\0\0\0ABCD", "its header is damaged"),
        (FIRST, safetensors(a=5).replace(b"[0, 20]", b"[4, 20]"), "a begins at 4, not at 0"),
        (FIRST, safetensors(other=1), "lacks a and 1 more, which the index places in it"),
        (SECOND, None, "is missing"),
        ("config.json", None, "is missing"),
        ("config.json", b"{", "is no JSON"),
        (INDEX, b"{", "is no index of weights"),
        (INDEX, b"[]", "is no index of weights"),
    ],
)
def test_each_damage_names_the_file(model: Path, name: str, content: bytes | None, told: str) -> None:
    (model / name).unlink()
    if content is not None:
        (model / name).write_bytes(content)
    [damage] = verify(model).damages
    assert damage.file == model / name
    assert told in str(damage)
    assert look(model) == [damage]


def test_a_directory_without_weights_lacks_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert [str(damage) for damage in verify(tmp_path).damages] == ["model.safetensors is missing"]


def _linked(directory: Path, name: str, digest: str) -> Path:
    """As in the hub's cache: `name` of the model is a link to a file that is called after its digest."""
    blob = directory.parent / "blobs" / digest
    blob.parent.mkdir(exist_ok=True)
    shutil.move(directory / name, blob)
    (directory / name).symlink_to(blob)
    return blob


def test_a_changed_byte_shows_where_the_digest_is_known(model: Path) -> None:
    """The size and the form of the file are what they were."""
    name = "model-00001-of-00002.safetensors"
    data = (model / name).read_bytes()
    blob = _linked(model, name, hashlib.sha256(data).hexdigest())
    config = (model / "config.json").read_bytes()
    small = _linked(model, "config.json", hashlib.sha1(b"blob 2\0" + config).hexdigest())
    seen: list[tuple[int, int]] = []
    verdict = verify(model, lambda done, total: seen.append((done, total)))
    assert (verdict.damages, verdict.digests) == ((), 2)
    assert seen[-1] == (len(data) + len(config), len(data) + len(config))

    blob.write_bytes(data[:-1] + b"\1")
    small.write_bytes(b"[]")
    damages = verify(model).damages
    assert [damage.file.name for damage in damages] == ["config.json", name]
    assert all("has another content than it should" in damage.reason for damage in damages)


def test_a_link_that_leads_nowhere_is_damage(model: Path) -> None:
    _linked(model, "config.json", "0" * 64).unlink()
    [damage] = verify(model).damages
    assert look(model) == [damage]
    assert (damage.file.name, damage.reason) == ("config.json", "is missing: its link leads nowhere")


def test_only_names_that_are_digests_are_compared(model: Path) -> None:
    assert content_digest(model / "config.json") is None
    (model / "linked.json").symlink_to(model / "config.json")
    assert content_digest(model / "linked.json") is None
    assert matches(model / "config.json", '"a tag"')
