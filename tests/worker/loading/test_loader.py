"""What is known of a model once it is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import mlx.nn as nn
import pytest

from mlx_serving.core.generation import SamplingParams
from mlx_serving.core.kv_form import KvForm
from mlx_serving.errors import InvalidRequest, ModelLoadError, ModelNotFound
from mlx_serving.wire.methods import KnownCapabilities, LoadModelParams, ModelCapabilities
from mlx_serving.worker.loading import loader
from mlx_serving.worker.loading.model_shape import DEFAULT_CONTEXT_LENGTH
from mlx_serving.worker.model_runner import ModelRunner

from ...tiny_models import VOCABULARY, make_llama
from ..bench import Bench, load


def test_the_facts_of_a_tied_model(llama: Path) -> None:
    facts = load(llama).facts
    hidden, mlp, kv = 64, 128, 32
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * mlp + 2 * hidden
    assert facts.parameter_count == VOCABULARY * hidden + 2 * layer + hidden
    assert facts.memory_bytes == 4 * facts.parameter_count
    assert (facts.model_type, facts.dtype, facts.quantization) == ("llama", "float32", None)
    assert (facts.vocab_size, facts.context_length, facts.eos_token_ids) == (VOCABULARY, 512, [258])
    assert (facts.state, facts.cached_path, facts.is_vision_model) == ("ready", str(llama), False)


def test_a_quantised_model_has_as_many_parameters_in_less_memory(llama: Path, quantised: Path) -> None:
    whole, packed = load(llama).facts, load(quantised).facts
    assert packed.parameter_count == whole.parameter_count
    assert packed.quantization == "4-bit, group 32"
    assert packed.dtype == "float32"
    assert packed.memory_bytes < whole.memory_bytes / 4


def test_the_context_length_can_be_cut_but_not_stretched(llama: Path) -> None:
    assert load(llama, context_length=100).facts.context_length == 100
    assert load(llama, context_length=100_000).facts.context_length == 512


def test_facts_of_a_nested_text_config_are_found(llama4: Path) -> None:
    facts = load(llama4).facts
    assert (facts.model_type, facts.context_length, facts.vocab_size) == ("llama4", 256, VOCABULARY)


@pytest.mark.parametrize(("name", "batch"), [("llama", True), ("llama4", False)])
def test_a_runner_is_made_for_the_model_and_renewed_as_it_was(
    name: str, batch: bool, request: pytest.FixtureRequest
) -> None:
    """A model that cannot be batched gets a runner whose sequences do not share steps, both times."""
    asked: list[tuple[nn.Module, ModelCapabilities, float]] = []

    def make_runner(
        model: nn.Module, capabilities: ModelCapabilities, padding_tokens: float, kv: KvForm | None
    ) -> ModelRunner:
        assert kv is None
        asked.append((model, capabilities, padding_tokens))
        return ModelRunner(model, capabilities, padding_tokens)

    params = LoadModelParams(model_id=str(request.getfixturevalue(name)))
    model = loader.load(params, make_runner, lambda stage, done, total: None)
    first = model.runner
    model.renew_runner()
    assert model.runner is not first
    padding_tokens = model.facts.memory_bytes / model.kv_bytes_per_token
    assert asked == [(model.model, model.facts.capabilities, padding_tokens)] * 2
    assert model.facts.capabilities.batch is batch


def test_what_is_known_of_the_same_config_is_not_tried_again(llama: Path) -> None:
    found = load(llama).facts
    told = ModelCapabilities(batch=False, batch_prefill=False, trim=False, quantise_cache=False, draft=False)
    assert load(llama, known=KnownCapabilities(found.config_digest, told)).facts.capabilities == told
    assert load(llama, known=KnownCapabilities("another", told)).facts.capabilities == found.capabilities


def test_a_model_without_a_length_has_the_default(mamba: Path) -> None:
    assert load(mamba).facts.context_length == DEFAULT_CONTEXT_LENGTH


def test_the_chat_template_is_found_or_missed(llama: Path, untemplated: Path) -> None:
    assert load(llama).facts.has_chat_template is True
    assert load(untemplated).facts.has_chat_template is False


def test_a_model_that_does_not_sample_is_greedy_unless_asked(untemplated: Path) -> None:
    """Its generation_config says do_sample false, and a temperature that thus means nothing."""
    model = load(untemplated)
    assert model.generation_config == {"do_sample": False, "temperature": 1.5}
    bench = Bench(model)
    greedy = bench.run("text").tokens
    assert bench.run("text", SamplingParams(seed=5)).tokens == greedy
    assert bench.run("text", SamplingParams(seed=5, temperature=2.0)).tokens != greedy


@pytest.mark.parametrize("content", ["{", "[1, 2]", "\xff"], ids=["broken", "a list", "another encoding"])
def test_a_generation_config_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    directory = make_llama(tmp_path / "model")
    assert load(directory).generation_config == {}
    (directory / "generation_config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ModelLoadError, match=r"because of its generation_config\.json"):
        load(directory)


@pytest.mark.parametrize(("size", "fault"), [(0, "it has no header"), (50_000, "it is cut off")])
def test_weights_that_are_not_all_there_are_named(tmp_path: Path, size: int, fault: str) -> None:
    directory = make_llama(tmp_path / "model")
    os.truncate(directory / "model.safetensors", size)
    with pytest.raises(ModelLoadError, match=rf"because of its weights: ValueError: model\.safetensors: {fault}"):
        load(directory)


def test_several_ends_of_turn_are_all_known(tmp_path: Path) -> None:
    directory = make_llama(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "eos_token_id": [258, 256]}))
    model = load(directory)
    assert model.facts.eos_token_ids == [256, 258]
    assert model.eos_token_ids == {256, 258}


def test_weights_are_read_in_pieces_and_progress_is_told(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_serving.worker.loading.weights._EVAL_BYTES", 50_000)
    told: list[tuple[str, int, int]] = []
    params = LoadModelParams(model_id=str(llama))
    model = loader.load(params, load(llama).make_runner, lambda stage, done, total: told.append((stage, done, total)))
    assert told[0][:2] == ("reading", 0)
    done = [count for stage, count, _ in told if stage == "loading"]
    assert done == sorted(done)
    assert len(done) > 3
    assert told[-1] == ("loading", model.facts.memory_bytes, model.facts.memory_bytes)


def test_errors_say_whose_they_are(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        load(tmp_path)
    with pytest.raises(InvalidRequest):
        loader.load(
            LoadModelParams(model_id=str(llama), revision="main"),
            load(llama).make_runner,
            lambda stage, done, total: None,
        )
    directory = make_llama(tmp_path / "model")
    (directory / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError) as caught:
        load(directory)
    assert caught.value.details == {"model": str(directory), "path": str(directory)}
