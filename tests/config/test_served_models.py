from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mlx_serving.config.model_entries import ServedModel
from mlx_serving.config.model_names import EMBEDDED_MODEL, public_name
from mlx_serving.config.served_models import ModelsConfig, follows
from mlx_serving.core.kv_form import KvForm
from mlx_serving.core.weight_options import WeightOptions


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("mlx-community/Qwen3-0.6B-4bit", "mlx-community/Qwen3-0.6B-4bit"),
        ("/models/My Model", "My-Model"),
        ("./models/tiny/", "tiny"),
        ("~/models/a.b.gguf", "a.b"),
        ("models/tiny.GGUF", "tiny"),
        ("a/b/c", "c"),
        ("/", "/"),
    ],
)
def test_a_model_is_called_after_its_reference(reference: str, name: str) -> None:
    assert public_name(reference) == name


@given(st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable() and text.strip() == text))
def test_every_printable_reference_has_a_name_that_is_valid(reference: str) -> None:
    assert ServedModel(model=reference).name == public_name(reference)


def config(**fields: object) -> ModelsConfig:
    return ModelsConfig.model_validate(fields)


def pairs(models: ModelsConfig) -> list[tuple[str, str]]:
    return [(entry.name, entry.model) for entry in models.served]


def refused(**fields: object) -> str:
    with pytest.raises(ValidationError) as caught:
        config(**fields)
    (issue,) = caught.value.errors()
    return issue["msg"]


def test_the_embedded_model_is_served_when_nothing_is_said() -> None:
    for models in (ModelsConfig(), config(), config(served=None)):
        assert models.default == EMBEDDED_MODEL
        assert pairs(models) == [(EMBEDDED_MODEL, EMBEDDED_MODEL)]


def test_a_default_alone_is_what_is_served_and_becomes_its_name() -> None:
    models = config(default="./x/tiny.gguf")
    assert pairs(models) == [("tiny", "./x/tiny.gguf")]
    assert models.default == "tiny"


def test_the_first_served_model_is_the_default_when_none_is_given() -> None:
    assert config(served=[{"model": "a/b", "name": "x"}, {"model": "c/d"}]).default == "x"
    assert config(served=[ServedModel(model="a/b")]).default == "a/b"


def test_the_default_may_be_a_name_or_a_reference_of_a_served_model() -> None:
    served = [{"model": "a/b"}, {"model": "./y", "name": "why"}]
    assert config(served=served, default="why").default == "why"
    assert config(served=served, default="./y").default == "why"


def test_a_default_that_is_not_served_is_refused_with_the_names() -> None:
    assert refused(served=[{"model": "a/b"}], default="z") == "must be one of the served names (a/b), got 'z'"


def test_a_form_of_the_weights_is_checked_and_an_adapter_makes_a_name() -> None:
    models = ModelsConfig.model_validate(
        {
            "served": [
                {"model": "org/m", "quantization": "int4"},
                {"model": "org/m", "adapter": "adapters/tuned", "kv_bits": "8"},
            ]
        }
    )
    assert [model.name for model in models.served] == ["org/m", "org/m:tuned"]
    assert models.default == "org/m"
    assert [model.weights for model in models.served] == [
        WeightOptions("4bit-g64"),
        WeightOptions(adapter="adapters/tuned", kv=KvForm(8)),
    ]
    for fields, told in (
        ({"quantization": "7bit"}, "the bits must be one of 2, 3, 4, 5, 6, 8, got 7"),
        ({"fuse_adapter": True}, "needs an adapter"),
        ({"kv_bits": 6}, "must be one of 4, 8, got 6"),
        ({"kv_bits": 8, "kv_group_size": 48}, "must be one of 32, 64, 128, got 48"),
        ({"kv_group_size": 32}, "needs kv_bits"),
    ):
        with pytest.raises(ValidationError, match=told):
            ModelsConfig.model_validate({"served": [{"model": "org/m", **fields}]})


def test_how_long_a_model_may_be_idle_is_told_as_seconds_or_as_a_text() -> None:
    models = ModelsConfig.model_validate(
        {"served": [{"model": "a/b", "keep_alive_s": "5m"}, {"model": "a/c", "keep_alive_s": -3}], "keep_alive_s": "90"}
    )
    assert [model.keep_alive_s for model in models.served] == [300.0, -1.0]
    assert models.room.keep_alive_s == 90.0
    with pytest.raises(ValidationError, match="must be a number of seconds or a text like 30s, 5m or 1h30m"):
        ModelsConfig.model_validate({"served": [{"model": "a/b"}], "keep_alive_s": "soon"})


def test_names_are_unique_also_when_they_are_derived() -> None:
    assert refused(served=[{"model": "./x/tiny"}, {"model": "tiny"}]) == (
        "must be unique, but entry 0 is called 'tiny', too"
    )


def test_entries_are_changed_and_appended_by_index() -> None:
    models = config(served={"0": {"context_length": "64"}, "1": {"model": "a/b"}})
    assert pairs(models) == [(EMBEDDED_MODEL, EMBEDDED_MODEL), ("a/b", "a/b")]
    assert models.served[0].context_length == 64
    assert pairs(config(default="a/b", served={"0": {"name": "x"}})) == [("x", "a/b")]


def test_an_index_that_leaves_a_gap_is_refused() -> None:
    assert refused(served={"3": {"model": "a"}}) == "index 3 leaves a gap: the next free index is 1"


@pytest.mark.parametrize(
    "fields",
    [
        {"served": []},
        {"served": "a/b"},
        {"served": {"x": {}}},
        {"served": [{"name": "x"}]},
        {"served": [{"model": ""}]},
        {"served": [{"model": "a\nb"}]},
        {"served": [{"model": "a", "name": "with space"}]},
        {"served": [{"model": "a", "context_length": 0}]},
        {"served": [{"model": "a", "zzz": 0}]},
        {"served": {"0": "a"}},
        {"default": 3},
    ],
)
def test_malformed_sections_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        config(**fields)


def test_what_is_left_out_follows_from_what_is_given() -> None:
    assert follows(("models", "default")) == ("models", "served", "0", "name")
    assert follows(("models", "served", "4", "name")) == ("models", "served", "4", "model")
    assert follows(("models", "served", "0", "model")) == ("models", "default")
    assert follows(("models", "served", "1", "model")) is None
    assert follows(("server", "port")) is None


@pytest.mark.parametrize(
    ("models", "path"),
    [
        ({"served": [{"model": "a", "profile": {"draft_model": "b"}}]}, ("served", 0, "profile")),
        (
            {"served": [{"model": "a"}], "aliases": [{"name": "x", "model": "a", "profile": {"draft_model": "b"}}]},
            ("aliases", 0, "profile"),
        ),
    ],
)
def test_a_draft_model_is_one_of_the_served_names(models: dict[str, Any], path: tuple[object, ...]) -> None:
    with pytest.raises(ValidationError, match="must be one of the served names") as caught:
        ModelsConfig.model_validate(models)
    (error,) = caught.value.errors()
    assert error.get("ctx", {})["at"] == [*path, "draft_model"]
    for served in ({"model": "b"}, {"model": "c", "name": "b"}):
        entries = [*models["served"], served]
        ModelsConfig.model_validate({**models, "served": entries})


def test_nobody_is_told_to_draft_where_drafting_is_off() -> None:
    profile = {"draft_model": "a", "speculation": "off"}
    with pytest.raises(ValidationError, match="is only allowed when speculation is auto or draft, got off"):
        ModelsConfig.model_validate({"served": [{"model": "a", "profile": profile}]})
