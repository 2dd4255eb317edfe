from __future__ import annotations

from pathlib import Path

import pytest

from mlx_serving.catalog.trusted_paths import require_trusted
from mlx_serving.errors import InvalidRequest


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    folder = tmp_path / "trusted"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    return folder


def test_paths_within_are_trusted_and_names_are_no_paths(trusted: Path) -> None:
    for text in (
        str(trusted / "model"),
        f"{trusted}/model/../model",
        "smollm2-135m",
        "org/name",
        f" {trusted}/x.gguf ",
    ):
        require_trusted(text, [trusted], "model")
    require_trusted("/anywhere", None, "model")
    require_trusted(str(trusted / "model"), [trusted.parent / "other", trusted], "adapter")


@pytest.mark.parametrize("text", ["/etc", "../model", "~/model", "~nobody-has-this-name/model", "a/b/c", "x.gguf"])
def test_other_paths_are_refused(trusted: Path, text: str) -> None:
    with pytest.raises(InvalidRequest, match="outside of the folders in models") as caught:
        require_trusted(text, [trusted], "model")
    assert caught.value.field == "model"


def test_no_folder_trusts_no_path(trusted: Path) -> None:
    with pytest.raises(InvalidRequest):
        require_trusted(str(trusted / "model"), [], "model")


def test_a_directory_of_the_working_directory_is_a_path(trusted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trusted)
    require_trusted("model", [trusted], "model")
    with pytest.raises(InvalidRequest):
        require_trusted("model", [trusted / "other"], "model")
    with pytest.raises(InvalidRequest):  # for an adapter, everything is a path
        require_trusted("org/adapter", [trusted / "other"], "adapter")


def test_links_that_lead_out_are_followed(trusted: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.json").write_text("{}")
    (trusted / "link").symlink_to(outside)
    with pytest.raises(InvalidRequest):
        require_trusted(str(trusted / "link"), [trusted], "model")
    require_trusted(str(trusted / "model"), [trusted], "model")
    for name in ("tokenizer.json", "chat_template.jinja", "merges.txt"):
        link = trusted / "model" / name
        link.symlink_to(outside / "secret.json")
        with pytest.raises(InvalidRequest):
            require_trusted(str(trusted / "model"), [trusted], "model")
        link.unlink()
