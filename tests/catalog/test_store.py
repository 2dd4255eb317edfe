from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import msgspec
import pytest

from mlx_serving.catalog.conversion import MANIFEST, Manifest
from mlx_serving.catalog.store import Conversion, ConversionStore, cache_directory, size_of
from mlx_serving.errors import InvalidConfig, ModelLoadError, ModelNotFound


@pytest.fixture
def store(tmp_path: Path) -> ConversionStore:
    return ConversionStore(tmp_path / "models")


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "Some Model.Q4.gguf"
    path.write_bytes(b"weights")
    return path


def _make(store: ConversionStore, gguf: Path) -> Path:
    place = store.place_for(gguf, "float32")
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    (place / MANIFEST).write_bytes(msgspec.json.encode(Manifest(source=gguf.name, precision="float32")))
    return place


def _no_wait() -> None:
    raise AssertionError("waited")


class TestCacheDirectory:
    def test_the_variable_of_ours_comes_first(self) -> None:
        environment = {"MLX_SERVING_CACHE": "/own", "XDG_CACHE_HOME": "/shared"}
        assert cache_directory(environment) == Path("/own")

    def test_a_tilde_is_the_home_directory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/me")
        assert cache_directory({"MLX_SERVING_CACHE": "~/own"}) == Path("/home/me/own")

    @pytest.mark.parametrize(
        ("platform", "environment", "expected"),
        [
            ("linux", {}, "/home/me/.cache/mlx-serving"),
            ("linux", {"XDG_CACHE_HOME": "/shared"}, "/shared/mlx-serving"),
            ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/mlx-serving"),
            ("linux", {"MLX_SERVING_CACHE": ""}, "/home/me/.cache/mlx-serving"),
            ("darwin", {"XDG_CACHE_HOME": "/shared"}, "/home/me/Library/Caches/mlx-serving"),
        ],
    )
    def test_each_platform_has_its_place(
        self, monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], expected: str
    ) -> None:
        monkeypatch.setenv("HOME", "/home/me")
        monkeypatch.setattr("sys.platform", platform)
        assert cache_directory(environment) == Path(expected)

    def test_without_a_home_the_error_says_what_to_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def nobody() -> Path:
            raise RuntimeError

        monkeypatch.setattr(Path, "home", nobody)
        with pytest.raises(InvalidConfig, match="set MLX_SERVING_CACHE to a directory"):
            cache_directory({})


def test_the_place_is_named_after_the_file(store: ConversionStore, gguf: Path) -> None:
    place = store.place_for(gguf, "float32")
    assert place.parent == store.directory
    stem, _, digest = place.name.rpartition("-")
    assert stem == "Some-Model.Q4"
    assert len(digest) == 12
    assert int(digest, 16) >= 0


def test_the_place_depends_on_content_and_precision_and_not_on_the_path(
    store: ConversionStore, gguf: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / gguf.name
    copy.write_bytes(gguf.read_bytes())
    place = store.place_for(gguf, "float32")
    assert store.place_for(copy, "float32") == place
    assert store.place_for(gguf, "quantized") != place
    copy.write_bytes(b"other weights")
    assert store.place_for(copy, "float32") != place


def test_a_new_version_of_the_converter_has_a_place_of_its_own(
    store: ConversionStore, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.place_for(gguf, "float32")
    monkeypatch.setattr("mlx_serving.catalog.store.CONVERTER_VERSION", 99)
    assert store.place_for(gguf, "float32") != before


@pytest.mark.parametrize("name", ["...gguf", "-.gguf", "[a]*?.gguf", "é.gguf", "n" * 200 + ".gguf"])
def test_any_name_of_a_file_makes_a_plain_name(store: ConversionStore, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"x")
    place = store.place_for(path, "float32")
    assert place.name[0].isalnum()
    assert len(place.name) <= 93
    assert store.find(path, "float32") is None
    _make(store, path)
    assert store.find(path, "float32") == place


def test_what_was_made_is_found(store: ConversionStore, gguf: Path) -> None:
    assert store.find(gguf, "float32") is None
    place = _make(store, gguf)
    assert store.find(gguf, "float32") == place
    assert store.find(gguf, "quantized") is None


def test_nothing_is_hashed_when_nothing_of_the_name_was_made(store: ConversionStore, tmp_path: Path) -> None:
    assert store.find(tmp_path / "does not even exist.gguf", "float32") is None


def test_a_file_that_is_gone_is_a_load_error(store: ConversionStore, gguf: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot be read: No such file"):
        store.place_for(gguf.with_name("gone.gguf"), "float32")


def test_a_half_made_directory_does_not_count(store: ConversionStore, gguf: Path) -> None:
    place = store.place_for(gguf, "float32")
    partial = place.with_name(f".{place.name}.1234.partial")
    partial.mkdir(parents=True)
    (partial / "config.json").write_text("{}")
    assert store.find(gguf, "float32") is None
    assert store.conversions() == []


def test_a_claim_removes_the_remains_of_earlier_ones(store: ConversionStore, gguf: Path) -> None:
    place = store.place_for(gguf, "float32")
    remains = place.with_name(f".{place.name}.1234.partial")
    remains.mkdir(parents=True)
    other = place.with_name(".another-model.1234.partial")
    other.mkdir()
    with store.claim(place, _no_wait):
        assert not remains.exists()
        assert other.exists()


def test_a_second_claim_waits_for_the_first(store: ConversionStore, gguf: Path) -> None:
    place = store.place_for(gguf, "float32")
    waiting, order = threading.Event(), list[str]()

    def second() -> None:
        with store.claim(place, waiting.set):
            order.append("second")

    thread = threading.Thread(target=second)
    with store.claim(place, _no_wait):
        thread.start()
        assert waiting.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_a_claim_lasts_while_an_heir_has_its_descriptor(store: ConversionStore, gguf: Path) -> None:
    place = store.place_for(gguf, "float32")
    with store.claim(place, _no_wait) as descriptor:
        heir = os.dup(descriptor)
    with (
        (place.parent / f".{place.name}.lock").open("ab") as lock,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(heir)
    with store.claim(place, _no_wait):
        pass


def test_conversions_are_listed_with_their_source_and_size(store: ConversionStore, gguf: Path) -> None:
    assert store.conversions() == []
    place = _make(store, gguf)
    (place / "model.safetensors").write_bytes(bytes(1000))
    size = sum(path.stat().st_size for path in place.iterdir())
    assert store.conversions() == [Conversion(place.name, place, gguf.name, "float32", size)]


def test_a_conversion_without_a_manifest_is_listed_all_the_same(store: ConversionStore, gguf: Path) -> None:
    (_make(store, gguf) / MANIFEST).unlink()
    assert [conversion.source for conversion in store.conversions()] == ["unknown"]


def test_removing_frees_what_the_listing_said(store: ConversionStore, gguf: Path) -> None:
    place = _make(store, gguf)
    size = store.conversions()[0].size_bytes
    assert store.remove(place.name) == size
    assert not place.exists()
    assert store.conversions() == []


@pytest.mark.parametrize("name", ["nothing", "..", "", "../outside"])
def test_only_conversions_can_be_removed(store: ConversionStore, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").touch()
    with pytest.raises(ModelNotFound, match="no converted model is called"):
        store.remove(name)
    assert (tmp_path / "outside").exists()


def test_the_size_counts_linked_files_once(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes(100))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "link").symlink_to(tmp_path / "blob")
    (tmp_path / "sub" / "broken").symlink_to(tmp_path / "missing")
    assert size_of(tmp_path) == 100
