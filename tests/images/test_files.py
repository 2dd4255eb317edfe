from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlx_serving.core.images.rules import ImagePolicy
from mlx_serving.errors import ImageFileNotFound, InvalidImageInput, UnsafeImagePath
from mlx_serving.images.files import read_file, require_folders

WHERE = "messages[0].content[0].image_url.url"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "allowed"
    inside.mkdir()
    (inside / "a.png").write_bytes(b"inside")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return inside


def _policy(folder: Path) -> ImagePolicy:
    return ImagePolicy(folders=f"/nowhere{os.pathsep}{folder}", max_bytes=100)


def test_files_of_allowed_folders_are_read(folder: Path) -> None:
    policy = _policy(folder)
    require_folders(WHERE, policy)
    assert read_file(str(folder / "a.png"), WHERE, policy, local=False) == b"inside"
    assert read_file(f"{folder}/../allowed/./a.png", WHERE, policy, local=False) == b"inside"


def test_no_folder_is_allowed_unless_it_is_configured() -> None:
    with pytest.raises(UnsafeImagePath, match=r"images\.folders") as raised:
        require_folders(WHERE, ImagePolicy())
    assert raised.value.field == WHERE


def test_paths_that_lead_out_are_refused_whether_there_is_something_or_not(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "up").symlink_to(folder.parent)
    for path in (
        "../secret.png",
        "link.png",
        "up/secret.png",
        "../nothing.png",
        "/etc/passwd",
        "/proc/self/environ",
        "~/x",
    ):
        with pytest.raises(UnsafeImagePath) as raised:
            read_file(path if path.startswith(("/", "~")) else f"{folder}/{path}", WHERE, _policy(folder), local=False)
        assert raised.value.field == WHERE
    with pytest.raises((UnsafeImagePath, ImageFileNotFound)):
        read_file(f"{folder}/loop.png", WHERE, _policy(folder), local=False)


def test_what_is_not_there_is_told_where_one_may_look(folder: Path) -> None:
    with pytest.raises(ImageFileNotFound, match=r"nothing\.png"):
        read_file(str(folder / "nothing.png"), WHERE, _policy(folder), local=False)


def test_what_is_no_file_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    for name in ("pipe.png", "."):
        with pytest.raises(InvalidImageInput, match="is no file"):
            read_file(str(folder / name), WHERE, _policy(folder), local=False)
    with pytest.raises(InvalidImageInput, match="is no file"):
        read_file("/dev/zero", WHERE, _policy(folder), local=True)


def test_a_large_file_is_not_read(folder: Path) -> None:
    (folder / "large.png").write_bytes(bytes(101))
    with pytest.raises(InvalidImageInput, match="at most 100 bytes, got 101"):
        read_file(str(folder / "large.png"), WHERE, _policy(folder), local=False)


def test_a_program_of_this_machine_may_name_every_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert read_file("secret.png", WHERE, ImagePolicy(), local=True) == b"secret"
