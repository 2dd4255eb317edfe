from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_serving.catalog.hub import Hub
from mlx_serving.catalog.progress import Progress
from mlx_serving.catalog.pull import pull
from mlx_serving.catalog.reference import GgufFile, HubRepository, ModelDirectory
from mlx_serving.errors import ModelLoadError

from ..worker.gguf.tiny_llama import TinyLlama
from .hub_server import HubServer, Repository
from .test_integrity import safetensors

MODEL = HubRepository("org/model")
NAMES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
FILES = {
    "config.json": b'{"model_type": "llama"}',
    NAMES[0]: safetensors(a=1000),
    NAMES[1]: safetensors(b=10),
    "model.safetensors.index.json": json.dumps({"weight_map": {"a": NAMES[0], "b": NAMES[1]}}).encode(),
}


@pytest.fixture
def hub(server: HubServer, tmp_path: Path) -> Hub:
    server.repositories["org/model"] = Repository(FILES)
    return Hub(endpoint=server.endpoint, cache=tmp_path / "hub")


def _ignore(_: Progress) -> None:
    pass


def test_a_pulled_model_is_verified(hub: Hub) -> None:
    stages: list[str] = []
    pulled = pull(MODEL, lambda step: stages.append(step.stage), hub)
    assert pulled.path == hub.find(MODEL)
    assert (pulled.verdict.files, pulled.verdict.digests, pulled.verdict.damages) == (4, 4, ())
    assert (pulled.repaired, pulled.outdated_reason) == ((), None)
    assert list(dict.fromkeys(stages)) == ["downloading", "verifying"]


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("harm", ["cut", "flipped", "lost"])
def test_a_damaged_file_is_named_and_fetched_anew_and_no_other(
    server: HubServer, hub: Hub, name: str, harm: str
) -> None:
    directory = pull(MODEL, _ignore, hub).path
    blob = (directory / name).resolve()
    match harm:
        case "cut":
            blob.write_bytes(FILES[name][:-1])
        case "flipped":
            blob.write_bytes(FILES[name][:-1] + bytes([FILES[name][-1] ^ 1]))
        case _:
            blob.unlink()
    server.requests.clear()
    pulled = pull(MODEL, _ignore, hub)
    if harm != "lost":  # the library itself brings what is not there
        assert [damage.file.name for damage in pulled.repaired] == [name]
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == FILES
    fetched = {path.rpartition("/")[2] for method, path in server.requests if method == "GET" and "/resolve/" in path}
    assert fetched == {name}


def test_a_newer_commit_is_fetched_and_shares_what_is_the_same(server: HubServer, hub: Hub) -> None:
    old = pull(MODEL, _ignore, hub).path
    server.repositories["org/model"] = Repository({**FILES, "config.json": b"{}"})
    server.requests.clear()
    new = pull(MODEL, _ignore, hub).path
    assert new != old
    assert (new / NAMES[0]).resolve() == (old / NAMES[0]).resolve()
    assert not [path for method, path in server.requests if method == "GET" and path.endswith(NAMES[0])]


def test_without_the_hub_a_sound_model_is_kept_and_a_damaged_one_named(server: HubServer, hub: Hub) -> None:
    directory = pull(MODEL, _ignore, hub).path
    server.repositories["org/model"].refusal = (403, "Forbidden")
    pulled = pull(MODEL, _ignore, hub)
    assert pulled.path == directory
    assert "refuses org/model with status 403" in (pulled.outdated_reason or "")
    server.repositories["org/model"].refusal = (500, "Broken")
    assert (pull(MODEL, _ignore, hub).outdated_reason or "").startswith("the hub answers with status 500")
    server.repositories["org/model"].refusal = (403, "Forbidden")
    (directory / NAMES[0]).resolve().write_bytes(b"")
    with pytest.raises(ModelLoadError, match=f"org/model is damaged: {NAMES[0]} has another content") as caught:
        pull(MODEL, _ignore, hub)
    assert "cannot be fetched anew" in caught.value.message
    assert (directory / NAMES[0]).exists()


def test_what_is_damaged_at_the_hub_stays_an_error(server: HubServer, hub: Hub) -> None:
    server.repositories["org/model"] = Repository({**FILES, NAMES[1]: safetensors(b=10)[:-1]})
    with pytest.raises(ModelLoadError, match="is damaged: it is cut off"):
        pull(MODEL, _ignore, hub)


def test_a_directory_is_verified_and_left_alone(tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    assert pull(ModelDirectory(tmp_path), _ignore).verdict.damages == ()
    (tmp_path / NAMES[1]).write_bytes(b"")
    with pytest.raises(ModelLoadError, match=NAMES[1]):
        pull(ModelDirectory(tmp_path), _ignore)
    assert (tmp_path / NAMES[1]).read_bytes() == b""


@pytest.mark.usefixtures("own_caches")
def test_a_damaged_conversion_is_made_anew(tmp_path: Path) -> None:
    gguf = GgufFile(TinyLlama().write(tmp_path / "tiny.gguf"))
    directory = pull(gguf, _ignore).path
    weights = directory / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5])
    pulled = pull(gguf, _ignore)
    assert [damage.file.name for damage in pulled.repaired] == ["model.safetensors"]
    assert weights.read_bytes() == whole
