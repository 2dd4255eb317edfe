from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from mlx_serving.catalog.identity import IdentityIndex


@pytest.fixture
def index(tmp_path: Path) -> IdentityIndex:
    return IdentityIndex(tmp_path / "models" / "identities.json")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"content")
    return path


def _again(index: IdentityIndex, file: Path) -> bool:
    """Whether the digest is computed again."""
    calls: list[tuple[int, int]] = []
    index.digest(file, lambda done, total: calls.append((done, total)))
    return bool(calls)


def test_the_digest_is_that_of_the_whole_content(index: IdentityIndex, file: Path) -> None:
    assert index.digest(file) == hashlib.sha256(b"content").hexdigest()


def test_the_digest_is_computed_once(index: IdentityIndex, file: Path) -> None:
    assert index.known(file) is None
    assert _again(index, file)
    assert not _again(index, file)
    assert index.known(file) == index.digest(file)


def test_another_process_knows_it_too(tmp_path: Path, index: IdentityIndex, file: Path) -> None:
    index.digest(file)
    assert not _again(IdentityIndex(tmp_path / "models" / "identities.json"), file)


def test_a_changed_file_is_hashed_again(index: IdentityIndex, file: Path) -> None:
    before = index.digest(file)
    status = file.stat()
    file.write_bytes(b"CONTENT")  # same size
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert index.known(file) is None
    assert index.digest(file) != before


def test_a_replaced_file_is_hashed_again_even_with_its_old_time(index: IdentityIndex, file: Path) -> None:
    before = index.digest(file)
    status = file.stat()
    other = file.with_name("other")
    other.write_bytes(b"CONTENT")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)
    assert index.digest(file) != before


def test_progress_ends_with_the_size(index: IdentityIndex, file: Path) -> None:
    calls: list[tuple[int, int]] = []
    index.digest(file, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (7, 7)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"/a": 1}', '{"/a": [[1, 2], "x"]}'])
def test_an_index_that_cannot_be_read_is_as_good_as_none(
    tmp_path: Path, index: IdentityIndex, file: Path, content: str
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "identities.json").write_text(content)
    assert index.digest(file) == hashlib.sha256(b"content").hexdigest()
    assert not _again(index, file)


def test_files_that_are_gone_are_forgotten(tmp_path: Path, index: IdentityIndex, file: Path) -> None:
    gone = tmp_path / "gone.gguf"
    gone.touch()
    index.digest(gone)
    gone.unlink()
    index.digest(file)
    assert "gone.gguf" not in (tmp_path / "models" / "identities.json").read_text()


def test_nothing_but_the_index_is_left_behind(tmp_path: Path, index: IdentityIndex, file: Path) -> None:
    index.digest(file)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["identities.json"]


def test_a_disk_that_is_full_costs_nothing_but_time(
    tmp_path: Path, index: IdentityIndex, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fresh: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", refuse)
    assert index.digest(file) == hashlib.sha256(b"content").hexdigest()
    assert list((tmp_path / "models").iterdir()) == []
    monkeypatch.undo()
    assert _again(index, file)
    assert not _again(index, file)
