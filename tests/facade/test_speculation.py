"""Draft models from a program: loading, comparing and asking for them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio

from mlx_serving import Engine
from mlx_serving.core.speculation.request import Speculation
from mlx_serving.errors import InvalidRequest, ModelNotFound, ModelNotLoaded
from mlx_serving.facade.option_base import parse
from mlx_serving.facade.options import GeneratorParams

from ..tiny_models import make_llama, make_mamba, make_printable_llama
from .embedding import configuration

GOOD = {"model": "m", "prompt": "p"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[tuple[Engine, Path]]:
    """An engine with `tiny`, and a folder with `small` of the same vocabulary, `words` of another one, and `mamba`,
    which cannot take tokens back."""
    folder = tmp_path_factory.mktemp("drafts")
    for name in ("small", "words", "mamba"):
        (folder / name).mkdir()
    make_llama(folder / "small", seed=1, layers=1)
    make_printable_llama(folder / "words")
    make_mamba(folder / "mamba")
    async with Engine(configuration(tiny_model)) as engine:
        await engine.load_model("tiny")
        yield engine, folder


async def test_a_draft_model_is_loaded_listed_and_unloaded(pair: tuple[Engine, Path]) -> None:
    engine, folder = pair
    handle = await engine.load_draft_model({"model": str(folder / "small"), "name": "helper"})
    assert (handle.id, handle.draft) == ("helper", True)
    assert handle.to_object()["draft"] is True
    assert {model.id: model.draft for model in engine.list_models()} == {"tiny": False, "helper": True}
    await engine.unload_draft_model()
    assert engine.get_model_info("helper") is None
    with pytest.raises(ModelNotLoaded, match="No draft model is loaded"):
        await engine.unload_draft_model()


async def test_a_model_that_cannot_take_tokens_back_is_no_draft(pair: tuple[Engine, Path]) -> None:
    engine, folder = pair
    with pytest.raises(InvalidRequest) as caught:
        await engine.load_draft_model({"model": str(folder / "mamba"), "name": "mamba"})
    assert caught.value.field == "draft"
    assert engine.get_model_info("mamba") is None
    await engine.load_model({"model": str(folder / "mamba"), "name": "plain"})
    with pytest.raises(InvalidRequest) as caught:
        await engine.load_draft_model({"model": str(folder / "mamba"), "name": "plain"})
    assert caught.value.field == "draft"
    assert engine.get_model_info("plain") is not None
    await engine.unload_model("plain")


async def test_two_models_are_compared_by_the_names_of_the_caller(pair: tuple[Engine, Path]) -> None:
    engine, folder = pair
    await engine.load_draft_model({"model": str(folder / "small"), "name": "helper"})
    report = await engine.is_draft_model_compatible("tiny", "helper")
    assert report.compatible
    told = report.to_object()
    assert told["compatible"] is True
    details = cast("dict[str, dict[str, object]]", told["details"])
    assert details["primaryModel"]["id"] == "tiny"
    assert details["draftModel"] == {
        "id": "helper",
        "vocabSize": report.details.primary_model.vocab_size,
        "parameterCount": report.details.draft_model.parameter_count,
        "architecture": "llama",
    }
    assert set(details["performanceEstimate"]) == {"expectedSpeedup", "sizeRatio", "recommendation"}
    await engine.load_model({"model": str(folder / "words"), "name": "words"})
    other = await engine.is_draft_model_compatible("tiny", "words")
    assert not other.compatible
    assert any("vocabularies differ" in error for error in other.errors)
    with pytest.raises(ModelNotFound):
        await engine.is_draft_model_compatible("tiny", "nobody")
    await engine.unload_model("words")
    await engine.unload_draft_model("helper")


async def test_a_draft_model_that_is_not_served_is_named(pair: tuple[Engine, Path]) -> None:
    engine, _ = pair
    with pytest.raises(
        InvalidRequest, match="draft_model: the model tin is not served here; did you mean tiny"
    ) as caught:
        await engine.generate({"model": "tiny", "prompt": "p", "max_tokens": 1, "draft_model": "tin"})
    assert caught.value.field == "draft_model"
    with pytest.raises(InvalidRequest, match="draft_model is required when speculation is draft: tiny has none"):
        await engine.generate({"model": "tiny", "prompt": "p", "max_tokens": 1, "speculation": "draft"})


def test_both_spellings_ask_for_the_same() -> None:
    for asked in (
        {"draft_model": "d", "num_draft_tokens": 4, "speculation": "draft"},
        {"draftModel": "d", "numDraftTokens": 4, "speculation": "draft"},
    ):
        assert parse(GeneratorParams, {**GOOD, **asked}).to_speculation() == Speculation("draft", "d", 4)
    assert parse(GeneratorParams, GOOD).to_speculation() == Speculation()


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"draft_model": ""}, "draft_model"),
        ({"draft_model": 3}, "draft_model"),
        ({"draft_model": "d", "speculation": "ngram"}, "draft_model"),
        ({"draft_model": "d", "speculation": "off"}, "draft_model"),
        ({"speculation": "magic"}, "speculation"),
        ({"num_draft_tokens": 0}, "num_draft_tokens"),
        ({"numDraftTokens": 33}, "numDraftTokens"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(asked: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(GeneratorParams, {**GOOD, **asked})
    assert caught.value.field == field
