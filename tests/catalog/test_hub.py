from __future__ import annotations

import errno
import hashlib
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from huggingface_hub import constants

from mlx_serving.catalog.hub import Hub
from mlx_serving.catalog.hub_transfer import PART_SUFFIX
from mlx_serving.catalog.progress import Progress
from mlx_serving.catalog.reference import HubRepository
from mlx_serving.errors import EngineError, HubRefused, HubUnreachable, ModelLoadError, ModelNotFound

from .hub_server import HubServer, Repository

MODEL = HubRepository("org/model")
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": bytes(300_000),
    "model-00002-of-00002.safetensors": bytes(100_000),
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "modeling_model.py": b"import os",
    "pytorch_model.bin": bytes(1000),
    "README.md": b"#",
    "original/weights.pth": bytes(1000),
}
WANTED = {
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "chat_template.jinja",
}
WANTED_BYTES = sum(len(FILES[name]) for name in WANTED)


@pytest.fixture(autouse=True)
def _served(server: HubServer) -> None:
    server.repositories["org/model"] = Repository(FILES)


@pytest.fixture
def hub(server: HubServer, tmp_path: Path) -> Hub:
    return Hub(endpoint=server.endpoint, cache=tmp_path / "hub")


def _ignore(_: Progress) -> None:
    pass


def _fetched(server: HubServer) -> list[str]:
    files = [path for method, path in server.requests if method == "GET" and "/resolve/" in path]
    return [path for path in files if not path.endswith("/config.json")]


def test_a_download_brings_what_a_model_needs_and_no_code(hub: Hub) -> None:
    directory = hub.download(MODEL, _ignore)
    found = {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert found == {name: FILES[name] for name in WANTED}


def test_progress_adds_up_to_all_bytes(hub: Hub) -> None:
    reports: list[Progress] = []
    hub.download(MODEL, reports.append)
    assert {(report.stage, report.total, report.item) for report in reports} == {
        ("downloading", WANTED_BYTES, "org/model")
    }
    done = [report.done for report in reports]
    assert (done[0], done[-1]) == (len(FILES["config.json"]), WANTED_BYTES)  # the config comes first
    assert done == sorted(done)


def test_what_is_complete_is_found_without_the_network(server: HubServer, hub: Hub) -> None:
    assert hub.find(MODEL) is None
    directory = hub.download(MODEL, _ignore)
    server.requests.clear()
    assert hub.find(MODEL) == directory
    assert hub.find(HubRepository("org/model", "main")) == directory
    assert hub.find(HubRepository("org/model", directory.name)) == directory
    assert hub.find(HubRepository("org/model", "v2")) is None
    assert server.requests == []


def test_a_snapshot_that_lacks_a_shard_is_not_found(hub: Hub) -> None:
    directory = hub.download(MODEL, _ignore)
    (directory / "model-00002-of-00002.safetensors").resolve().unlink()
    assert hub.find(MODEL) is None


@pytest.mark.parametrize("missing", sorted(WANTED))
def test_a_snapshot_that_lacks_any_file_is_not_found(hub: Hub, missing: str) -> None:
    directory = hub.download(MODEL, _ignore)
    (directory / missing).unlink()
    assert hub.find(MODEL) is None
    assert hub.cached() == []
    assert [repo_id for repo_id, _, _ in hub.incomplete()] == ["org/model"]


@pytest.mark.parametrize("missing", ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "config.json"])
def test_without_a_list_of_files_config_and_weights_are_checked(hub: Hub, missing: str) -> None:
    """As in a cache that an older version of huggingface_hub filled."""
    directory = hub.download(MODEL, _ignore)
    shutil.rmtree(directory.parent.parent / "trees")
    (entry,) = hub.cached()
    assert entry.path == directory
    (directory / missing).unlink()
    assert hub.cached() == []


@pytest.mark.parametrize("index", [b"{", b"[]", b'{"weight_map": 1}'])
def test_a_snapshot_with_a_damaged_index_is_not_found(server: HubServer, hub: Hub, index: bytes) -> None:
    server.repositories["org/model"] = Repository({**FILES, "model.safetensors.index.json": index})
    hub.download(MODEL, _ignore)
    assert hub.find(MODEL) is None


def test_a_model_in_one_file_needs_no_index(server: HubServer, hub: Hub) -> None:
    server.repositories["org/model"] = Repository({"config.json": b"{}", "model.safetensors": b"x"})
    assert hub.find(MODEL) is None
    assert hub.download(MODEL, _ignore) == hub.find(MODEL)


def test_a_second_download_fetches_nothing_again(server: HubServer, hub: Hub) -> None:
    hub.download(MODEL, _ignore)
    server.requests.clear()
    reports: list[Progress] = []
    hub.download(MODEL, reports.append)
    assert [(report.done, report.total) for report in reports] == [(WANTED_BYTES, WANTED_BYTES)]
    assert not _fetched(server)


def test_an_interrupted_download_goes_on_where_it_was(
    server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_serving.catalog.hub._PARALLEL_FILES", 1)  # one after the other, by name
    repository = server.repositories["org/model"]
    repository.broken_files.add("model-00002-of-00002.safetensors")
    with pytest.raises(EngineError):
        hub.download(MODEL, _ignore)
    assert hub.find(MODEL) is None
    repository.broken_files.clear()
    reports: list[Progress] = []
    directory = hub.download(MODEL, reports.append)
    assert reports[0].done >= 300_000
    assert reports[-1].done == WANTED_BYTES
    assert hub.find(MODEL) == directory


def test_a_large_file_goes_on_in_its_middle(
    server: HubServer, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another `Hub`: nothing but what is on disk tells where it was."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # what is written at a time
    name = "model-00001-of-00002.safetensors"
    repository = server.repositories["org/model"]
    repository.cut[name] = 200_000
    with pytest.raises(EngineError):
        hub.download(MODEL, _ignore)
    assert hub.find(MODEL) is None
    [(repo_id, folder, size)] = hub.incomplete()
    assert (repo_id, folder) == ("org/model", tmp_path / "hub" / "models--org--model")
    assert size >= 200_000
    repository.broken_files.clear()
    server.ranges.clear()
    reports: list[Progress] = []
    again = Hub(endpoint=server.endpoint, cache=tmp_path / "hub")
    directory = again.download(MODEL, reports.append)
    assert server.ranges == [(name, 200_000)]
    assert (directory / name).read_bytes() == FILES[name]
    assert reports[-1].done == WANTED_BYTES
    assert again.incomplete() == []


@pytest.mark.parametrize("left", [bytes([7]) * 1000, bytes(400_000)])
def test_what_an_interrupted_transfer_left_is_not_trusted(hub: Hub, tmp_path: Path, left: bytes) -> None:
    """A part with another content, and one that is longer than the whole."""
    name = "model-00001-of-00002.safetensors"
    blob = tmp_path / "hub" / "models--org--model" / "blobs" / hashlib.sha256(FILES[name]).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.with_name(blob.name + PART_SUFFIX).write_bytes(left)
    directory = hub.download(MODEL, _ignore)
    assert (directory / name).read_bytes() == FILES[name]
    assert not list(blob.parent.glob("*.incomplete"))


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "tokenizer.json"])
def test_a_transfer_that_changed_a_byte_is_repeated_once(server: HubServer, hub: Hub, name: str) -> None:
    server.repositories["org/model"].flipped[name] = 1
    directory = hub.download(MODEL, _ignore)
    assert (directory / name).read_bytes() == FILES[name]
    assert server.repositories["org/model"].flipped[name] == 0


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "tokenizer.json"])
def test_a_hub_that_never_sends_what_it_says_is_an_error(server: HubServer, hub: Hub, name: str) -> None:
    server.repositories["org/model"].flipped[name] = 10
    with pytest.raises(ModelLoadError, match=r"another content than (it|the hub) says"):
        hub.download(MODEL, _ignore)
    assert hub.find(MODEL) is None


def test_an_error_in_the_callback_stops_the_download_and_is_passed_on(hub: Hub) -> None:
    class _StopError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.done > len(FILES["config.json"]):
            raise _StopError

    with pytest.raises(_StopError):
        hub.download(MODEL, stop)
    assert hub.find(MODEL) is None


def test_the_token_of_the_environment_is_sent(server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.download(MODEL, _ignore)
    assert server.tokens == {"Bearer hf_secret"}


@pytest.mark.parametrize(
    ("refusal", "kind", "says"),
    [
        ((401, "RepoNotFound"), ModelNotFound, "org/model does not exist at the hub, or it is private: set HF_TOKEN"),
        ((403, "GatedRepo"), HubRefused, "org/model is gated: accept its conditions"),
        ((403, "Forbidden"), HubRefused, "the hub refuses org/model with status 403: set HF_TOKEN"),
        ((418, "Teapot"), HubRefused, "the hub answers with status 418"),
        ((500, "Broken"), HubUnreachable, "the hub answers with status 500"),
    ],
)
def test_each_refusal_says_what_to_do(
    server: HubServer, hub: Hub, refusal: tuple[int, str], kind: type[EngineError], says: str
) -> None:
    server.repositories["org/model"].refusal = refusal
    with pytest.raises(kind) as caught:
        hub.download(MODEL, _ignore)
    assert type(caught.value) is kind
    assert says in caught.value.message
    assert caught.value.details["model"] == "org/model"


def test_an_unknown_revision_is_named(hub: Hub) -> None:
    with pytest.raises(ModelNotFound, match="org/model has no revision 'v9'"):
        hub.download(HubRepository("org/model", "v9"), _ignore)


def test_a_hub_that_cannot_be_reached_is_a_load_error(tmp_path: Path) -> None:
    hub = Hub(endpoint="http://127.0.0.1:9", cache=tmp_path)  # the discard port: nothing listens there
    with pytest.raises(HubUnreachable, match="org/model is not complete in the local cache, and the download failed"):
        hub.download(MODEL, _ignore)


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **keywords: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mlx_serving.catalog.hub.fetch_resuming", full)
    with pytest.raises(ModelLoadError, match=r"the download failed: OSError: .* No space left on device") as caught:
        hub.download(MODEL, _ignore)
    assert type(caught.value) is ModelLoadError


def test_offline_mode_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE forbids to use the network"):
        hub.download(MODEL, _ignore)


def test_a_repository_without_weights_for_mlx_is_refused_before_weights_are_fetched(
    server: HubServer, hub: Hub
) -> None:
    server.repositories["org/model"] = Repository({"model-q4.gguf": b"GGUF", "README.md": b"#"})
    with pytest.raises(ModelLoadError, match=r"it has no config\.json and no weights") as caught:
        hub.download(MODEL, _ignore)
    assert not _fetched(server)
    assert "download a file and give its path" in caught.value.message


def test_a_disk_that_is_too_small_is_refused_before_weights_are_fetched(
    server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    class _Usage(NamedTuple):
        free: int

    def usage(_: Path) -> _Usage:
        return _Usage(free=1000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(ModelLoadError, match=r"needs [\d,]+ bytes, but .* has 1,000 free"):
        hub.download(MODEL, _ignore)
    assert not _fetched(server)


def test_complete_models_are_listed_with_their_size(server: HubServer, hub: Hub) -> None:
    assert hub.cached() == []
    server.repositories["org/other"] = Repository({"config.json": b"{}", "model.safetensors": bytes(500)})
    directory = hub.download(MODEL, _ignore)
    other = hub.download(HubRepository("org/other"), _ignore)
    (other / "model.safetensors").resolve().unlink()
    (entry,) = hub.cached()
    assert (entry.repo_id, entry.path, entry.refs) == ("org/model", directory, ("main",))
    assert entry.commit == directory.name
    assert entry.size_bytes == WANTED_BYTES


def test_a_deleted_model_is_gone(hub: Hub) -> None:
    directory = hub.download(MODEL, _ignore)
    assert hub.delete("org/model") >= WANTED_BYTES
    assert not directory.exists()
    assert hub.find(MODEL) is None
    with pytest.raises(ModelNotFound, match="org/model is not in the local cache"):
        hub.delete("org/model")


def test_deleting_from_an_empty_cache_is_not_found(hub: Hub) -> None:
    with pytest.raises(ModelNotFound):
        hub.delete("org/model")
