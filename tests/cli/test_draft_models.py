"""Draft models on the command line: which configuration they make, and how two models are compared."""

from __future__ import annotations

import json
from pathlib import Path

from mlx_serving.cli.draft_models import drafting_by_default, serving_draft
from mlx_serving.config.schema import Config

from ..command_line import run
from ..tiny_models import make_llama, make_printable_llama


def serving(**models: object) -> Config:
    return Config.model_validate({"models": {"served": [{"model": "./large"}, {"model": "./small"}], **models}})


def names(config: Config) -> list[str]:
    return [model.name for model in config.models.served]


def test_a_draft_model_is_served_beside_the_others() -> None:
    config, name = serving_draft(serving(), "./tiny")
    assert (names(config), name) == (["large", "small", "tiny"], "tiny")
    assert serving_draft(serving(), None) == (serving(), None)


def test_one_that_is_served_already_is_that_one() -> None:
    config = serving(aliases=[{"name": "helper", "model": "small"}])
    for given, meant in (("small", "small"), ("./small", "small"), ("helper", "helper")):
        assert serving_draft(config, given) == (config, meant)


def test_one_whose_name_is_taken_gets_another() -> None:
    config, name = serving_draft(serving(), "elsewhere/small.gguf")
    assert (names(config), name) == (["large", "small", "small:draft"], "small:draft")


def test_a_server_has_it_draft_for_the_default_model() -> None:
    config = drafting_by_default(serving(), "./tiny")
    assert [model.profile.draft_model for model in config.models.served] == ["tiny", None, None]
    aliased = serving(aliases=[{"name": "chat", "model": "large"}], default="chat")
    assert drafting_by_default(aliased, "small").models.aliases[0].profile.draft_model == "small"
    assert drafting_by_default(serving(), None) == serving()


def test_two_models_are_compared(tmp_path: Path) -> None:
    for name in ("large", "small", "words"):
        (tmp_path / name).mkdir()
    make_llama(tmp_path / "large", layers=3)
    make_llama(tmp_path / "small", seed=1, layers=1)
    make_printable_llama(tmp_path / "words")
    ended = run(tmp_path, "models", "check-draft", "./large", "./small")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "compatible         yes" in ended.stdout
    ended = run(tmp_path, "models", "check-draft", "./large", "./words", "--json")
    assert ended.returncode == 1
    report = json.loads(ended.stdout)
    assert report["compatible"] is False
    assert report["details"]["draft_model"]["id"] == "./words"
    ended = run(tmp_path, "models", "check-draft", "./large", "./nowhere")
    assert (ended.returncode, ended.stderr) == (1, f"mlx-serving: {tmp_path}/nowhere does not exist\n")
