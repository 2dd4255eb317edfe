from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.catalog.reference import Alias, GgufFile, HubRepository, ModelDirectory, parse_reference
from mlx_serving.errors import InvalidRequest, ModelNotFound


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, and the home directory as well."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def _model(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    return directory


def test_an_alias_is_known_by_its_name() -> None:
    assert parse_reference("smollm2-135m") == Alias("smollm2-135m")
    assert parse_reference("  smollm2-135m\n") == Alias("smollm2-135m")


def test_an_alias_comes_before_a_directory_of_its_name(tmp_path: Path) -> None:
    directory = _model(tmp_path / "smollm2-135m")
    assert parse_reference("smollm2-135m") == Alias("smollm2-135m")
    assert parse_reference("./smollm2-135m") == ModelDirectory(directory)


def test_a_gguf_file_is_known_by_its_ending(tmp_path: Path) -> None:
    for name in ("a.gguf", "B.GGUF"):
        (tmp_path / name).touch()
        assert parse_reference(name) == GgufFile(tmp_path / name)
        assert parse_reference(str(tmp_path / name)) == GgufFile(tmp_path / name)


@pytest.mark.parametrize("text", ["models/mine", "./models/mine", "~/models/mine", "models/../models/mine"])
def test_a_directory_with_a_config_is_a_model(tmp_path: Path, text: str) -> None:
    directory = _model(tmp_path / "models" / "mine")
    reference = parse_reference(text)
    assert isinstance(reference, ModelDirectory)
    assert reference.path.resolve() == directory
    assert reference.path.is_absolute()


@pytest.mark.parametrize("text", ["mlx-community/Qwen3-4B-4bit", "a/b", "org_1/name.v2", "x/" + "n" * 96])
def test_organisation_and_name_are_a_hub_repository(text: str) -> None:
    assert parse_reference(text) == HubRepository(text)


def test_a_directory_without_a_config_does_not_hide_a_hub_repository(tmp_path: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse_reference("org/name") == HubRepository("org/name")


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/3", "a" * 40, "x+y_z"])
def test_a_hub_repository_may_have_a_revision(revision: str) -> None:
    assert parse_reference("org/name", revision) == HubRepository("org/name", revision)


def test_references_read_as_what_people_call_them(tmp_path: Path) -> None:
    assert str(Alias("a")) == "a"
    assert str(GgufFile(tmp_path)) == str(ModelDirectory(tmp_path)) == str(tmp_path)
    assert str(HubRepository("o/n")) == "o/n"
    assert str(HubRepository("o/n", "v1")) == "o/n at v1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must not be empty"),
        ("   ", "must not be empty"),
        ("org/na\x00me", "control characters"),
        ("org/..", "no hub id"),
        ("org/a..b", "no hub id"),
        ("org/a--b", "no hub id"),
        ("org/-a", "no hub id"),
        ("org/a.", "no hub id"),
        ("org/a b", "no hub id"),
        ("org/ä", "no hub id"),
        ("org/" + "n" * 97, "no hub id"),
        ("org/" + "n" * 600, "at most 512 characters, got 604"),
        ("/" + "n" * 5000, "at most 4096 characters, got 5001"),
    ],
)
def test_text_that_can_be_no_reference_is_invalid(text: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        parse_reference(text)
    assert caught.value.field == "model"


@pytest.mark.parametrize("revision", ["", "a b", "-x", "../x", "a..b", "/abs", "x" * 257])
def test_a_revision_that_can_be_none_is_invalid(revision: str) -> None:
    with pytest.raises(InvalidRequest, match="a revision is a branch") as caught:
        parse_reference("org/name", revision)
    assert caught.value.field == "revision"


@pytest.mark.parametrize("text", ["smollm2-135m", "a.gguf", "./model"])
def test_a_revision_of_something_else_than_a_repository_is_invalid(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.gguf").touch()
    _model(tmp_path / "model")
    with pytest.raises(InvalidRequest, match="a revision is for repositories of the hub") as caught:
        parse_reference(text, "main")
    assert caught.value.field == "revision"


@pytest.mark.parametrize("text", ["smollm2-135", "SmolLM2-135M", "smollm2_135m", "smolm2-135m"])
def test_a_name_close_to_an_alias_suggests_it(text: str) -> None:
    with pytest.raises(ModelNotFound, match=r"did you mean 'smollm2-135m'\?") as caught:
        parse_reference(text)
    assert caught.value.details["model"] == text


def test_a_name_far_from_any_alias_lists_what_can_be_written() -> None:
    with pytest.raises(ModelNotFound) as caught:
        parse_reference("gpt")
    assert caught.value.message == (
        "'gpt' is no alias (there is all-minilm-l6-v2, smollm2-135m), no directory with a config.json, and no hub id "
        "(organisation/name)"
    )


@pytest.mark.parametrize("text", ["./nothing", "/nowhere/nothing", "a/b/c", "nothing.gguf", "~/nothing"])
def test_a_path_that_does_not_exist_is_told_in_full(text: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        parse_reference(text)
    assert str(Path(text).expanduser().absolute()) in caught.value.message


def test_a_path_close_to_one_that_exists_suggests_it(tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").touch()
    with pytest.raises(ModelNotFound, match=r"did you mean .*/model-q4\.gguf\?"):
        parse_reference("./model-q5.gguf")


def test_a_home_directory_of_nobody_is_not_found() -> None:
    with pytest.raises(ModelNotFound, match="home directory of a user that does not exist"):
        parse_reference("~nobody-has-this-name/model")


def test_a_name_too_long_for_the_file_system_is_not_found() -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        parse_reference("./" + "n" * 300)


def test_a_directory_without_a_config_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFound, match=r"is a directory without a config\.json$"):
        parse_reference("./empty")


def test_a_directory_of_gguf_files_says_to_name_one(tmp_path: Path) -> None:
    (tmp_path / "quants").mkdir()
    for name in ("q8.gguf", "q4.gguf", "README.md"):
        (tmp_path / "quants" / name).touch()
    with pytest.raises(ModelNotFound, match=r"it holds GGUF files, name one of them: q4\.gguf, q8\.gguf"):
        parse_reference("./quants")


def test_a_file_of_another_kind_is_invalid(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InvalidRequest, match="is a file, but no GGUF file"):
        parse_reference("./model.safetensors")


@given(st.text(max_size=600), st.none() | st.text(max_size=300))
def test_any_text_is_a_reference_or_an_error_of_ours(text: str, revision: str | None) -> None:
    try:
        reference = parse_reference(text, revision)
    except (InvalidRequest, ModelNotFound):
        return
    assert isinstance(reference, Alias | GgufFile | ModelDirectory | HubRepository)
