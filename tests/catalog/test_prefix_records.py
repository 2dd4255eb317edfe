from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from mlx_serving.catalog import prefix_records
from mlx_serving.catalog.prefix_records import (
    Content,
    Tensor,
    UnusableRecord,
    advise_record,
    clear_outdated,
    files_of,
    make_private,
    models_of,
    path_of,
    read_header,
    read_record,
    write_record,
)
from mlx_serving.core.prefix.record import DiskRecord, chain_key, pack, root_key

_TOKENS = pack([1, 2, 3])
_ROOT = root_key("model", "", "blocks")
_RECORD = DiskRecord(chain_key(_ROOT, _TOKENS), _ROOT, "model", 0, _TOKENS, 0, 0)
_CONTENT = Content("blocks", "[0, 1]", [Tensor("U16", (2, 3), bytes(range(12))), Tensor("F32", (0,), b"")])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make_private(path_of(tmp_path, _RECORD).parent)
    write_record(tmp_path, _RECORD, _CONTENT)
    return path_of(tmp_path, _RECORD)


def test_a_record_comes_back_as_it_was(tmp_path: Path, path: Path) -> None:
    header = read_header(path)
    assert (header.key, header.parent, header.start, header.tokens) == (_RECORD.key, _ROOT, 0, _TOKENS)
    assert header.size == path.stat().st_size
    content = read_record(tmp_path, _RECORD)
    assert (content.kind, content.layout) == (_CONTENT.kind, _CONTENT.layout)
    assert [(one.dtype, one.shape, bytes(one.data)) for one in content.tensors] == [
        (one.dtype, one.shape, one.data) for one in _CONTENT.tensors
    ]


def test_others_can_read_it_as_safetensors(path: Path) -> None:
    opened: Any = safe_open(path, "numpy")
    with opened as file:
        assert file.get_tensor("0").tobytes() == bytes(range(12))
        assert file.metadata()["format"] == "mlx-serving prefix"


def test_every_bit_of_it_matters(tmp_path: Path, path: Path) -> None:
    whole = path.read_bytes()
    padding = range(whole.rindex(b"}", 0, -12) + 1, len(whole) - 12)
    for place in range(len(whole)):
        if place not in padding:  # spaces behind the header
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
            with pytest.raises(UnusableRecord):
                read_record(tmp_path, _RECORD)


def test_no_beginning_of_it_is_enough(tmp_path: Path, path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UnusableRecord):
            read_header(path)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.unlink()
    broken = Content("blocks", "[]", [Tensor("U8", (1,), b"x")])
    monkeypatch.setattr(prefix_records.Path, "replace", _refuse)
    with pytest.raises(OSError, match="no room"):
        write_record(tmp_path, _RECORD, broken)
    assert files_of(tmp_path, "model") == []


def _refuse(self: Path, target: Path) -> Path:
    raise OSError("no room")


def test_a_folder_of_somebody_else_is_not_made_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_records.os, "geteuid", lambda: 12345)
    with pytest.raises(PermissionError, match="is not a folder of this user"):
        make_private(tmp_path / "folder")


def test_what_is_not_there_is_empty(tmp_path: Path) -> None:
    assert models_of(tmp_path / "nowhere") == []
    assert files_of(tmp_path / "nowhere", "model") == []


def test_a_header_may_not_be_larger_than_any_of_ours(tmp_path: Path, path: Path) -> None:
    header = json.dumps({"__metadata__": {"x": "y" * (17 << 20)}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UnusableRecord, match="no file of ours"):
        read_header(path)


def test_what_an_earlier_version_has_written_goes_and_nothing_else(tmp_path: Path, path: Path) -> None:
    outdated = tmp_path / "v1" / "model"
    make_private(outdated)
    for name in ("one.safetensors", ".two.left"):
        (outdated / name).touch()
    (outdated.parent / "identities.json").touch()
    later = tmp_path / f"v{prefix_records.FORMAT_VERSION + 1}" / "model"
    make_private(later)
    others = [later / "one.safetensors", tmp_path / "vacation.safetensors", path]
    for other in others[:2]:
        other.touch()
    assert clear_outdated(tmp_path) == 1
    assert not outdated.parent.exists()
    assert all(other.exists() for other in others)


def test_a_folder_that_holds_what_is_not_ours_is_left(tmp_path: Path) -> None:
    outdated = tmp_path / "v1" / "model"
    make_private(outdated)
    (outdated / "one.safetensors").touch()
    (outdated / "notes.txt").touch()
    with pytest.raises(OSError, match="not empty"):
        clear_outdated(tmp_path)
    assert [path.name for path in outdated.iterdir()] == ["notes.txt"]


def test_links_to_elsewhere_and_folders_of_others_are_not_looked_into(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    make_private(elsewhere)
    (elsewhere / "one.safetensors").touch()
    cache = tmp_path / "cache"
    make_private(cache / "v0")
    (cache / "v0").chmod(0o777)
    (cache / "v0" / "one.safetensors").touch()
    (cache / "v1").symlink_to(elsewhere)
    assert clear_outdated(cache) == 0
    assert (elsewhere / "one.safetensors").exists()
    assert (cache / "v0" / "one.safetensors").exists()


def test_advice_about_what_is_no_file_is_refused(tmp_path: Path, path: Path) -> None:
    advise_record(tmp_path, _RECORD)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        advise_record(tmp_path, _RECORD)
