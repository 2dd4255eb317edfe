"""Which models are loaded with their encoders of images, and what is said of those that cannot be."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest

from mlx_serving.core.generation import SamplingParams
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.errors import ModelLoadError, UnsupportedParameter
from mlx_serving.wire.methods import ImageParam, KnownCapabilities
from mlx_serving.worker.assemble import make_runner
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.prefix import disk
from mlx_serving.worker.requests import check_images
from mlx_serving.worker.vision.architecture import VisionText
from mlx_serving.worker.vision.features import FeatureCache
from mlx_serving.worker.vision.processing import Processor

from ... import tiny_vision_models
from ...tiny_models import make_adapter, token_ids
from ...tiny_vision_models import Family
from ..bench import Bench, load
from ..prefix.disk_bench import on_disk
from .vision_bench import chat, picture, prepared

SHORT = SamplingParams(max_tokens=4)
PROMPT = token_ids("A prompt of more than sixteen tokens, which are kept.")
PLACE = [{"role": "user", "content": [{"type": "image"}]}]


def made(tmp_path: Path, family: Family = "qwen2_vl", **changes: object) -> Path:
    directory = tiny_vision_models.make(family, tmp_path / family)
    edit(directory / "config.json", **changes)
    return directory


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def loaded(directory: Path, **how: Any) -> LoadedModel:
    return load(directory, make_runner=partial(make_runner, FeatureCache()), **how)


def given() -> list[ImageParam]:
    image = picture(1)
    return [ImageParam(data=image.data, digest=image.digest, width=image.width, height=image.height)]


def test_a_vision_language_model_says_that_it_is_one(tmp_path: Path) -> None:
    model = loaded(made(tmp_path))
    assert model.facts.is_vision_model
    assert model.blind is None
    assert (model.facts.model_type, model.facts.context_length) == ("qwen2_vl", 4096)
    assert model.facts.capabilities.batch
    assert model.facts.has_chat_template
    check_images(PLACE, given(), model)


def test_code_of_the_directory_is_never_run(tmp_path: Path) -> None:
    directory = made(tmp_path, model_file="evil.py")
    (directory / "evil.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w').close()")
    with pytest.raises(ModelLoadError, match=r"code of its own \(model_file: evil\.py\)"):
        loaded(directory)
    assert not (tmp_path / "was-run").exists()


def test_a_conversion_for_text_is_loaded_as_text(tmp_path: Path) -> None:
    """It has the config of the whole model, and the weights of its language model only."""
    directory = made(tmp_path)
    weights = cast(dict[str, mx.array], cast(Any, mx).load(str(directory / "model.safetensors")))
    text = {name: weight for name, weight in weights.items() if not name.startswith("vision_tower")}
    cast(Any, mx).save_safetensors(str(directory / "model.safetensors"), text)
    model = loaded(directory)
    assert not isinstance(model.model, VisionText)
    assert not model.facts.is_vision_model
    with pytest.raises(UnsupportedParameter, match=r"images are not supported by .*: it reads text only"):
        check_images(PLACE, given(), model)


@pytest.mark.parametrize("kind", ["moondream1", "moondream2", "inkling_mm_model"])
def test_a_processor_that_would_run_code_is_not_made(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match=r"mlx-vlm's processor for (moondream2|inkling) runs code"):
        Processor(tmp_path, {"model_type": kind})


def test_an_architecture_that_mlx_vlm_does_not_have_is_left_to_mlx_lm(tmp_path: Path) -> None:
    directory = made(tmp_path, model_type="nobody_knows_vl")
    with pytest.raises(ModelLoadError, match="nobody_knows_vl not supported"):
        loaded(directory)


@pytest.mark.parametrize("field", ["quantization", "adapter_path"])
def test_forms_of_text_models_are_refused_by_name(tmp_path: Path, field: str, llama: Path) -> None:
    adapter = str(make_adapter(tmp_path / "adapter", llama))
    form = WeightOptions(quantization="4bit") if field == "quantization" else WeightOptions(adapter=adapter)
    with pytest.raises(UnsupportedParameter, match=rf"{field} is not supported for .* vision-language model"):
        loaded(made(tmp_path), options=form)


def test_a_processor_that_does_not_fit_its_encoder_is_found_when_the_model_is_loaded(tmp_path: Path) -> None:
    """As many tokens as it says an image has, the encoder does not make features."""
    directory = made(tmp_path, "llava")
    edit(directory / "processor_config.json", num_additional_image_tokens=0)
    model = loaded(directory)
    assert not model.facts.is_vision_model
    with pytest.raises(UnsupportedParameter, match="its images cannot be computed here"):
        check_images(PLACE, given(), model)
    assert Bench(model).run("Text goes on.").completed


@pytest.mark.parametrize(("family", "attention"), [("qwen2_vl", "causal"), ("gemma4_unified", "mutual")])
def test_what_was_found_out_about_images_is_told_and_need_not_be_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Family, attention: str
) -> None:
    directory = made(tmp_path, family)
    facts = loaded(directory).facts
    assert facts.capabilities.images == attention
    monkeypatch.delattr(VisionText, "compute_whole")
    again = loaded(directory, known=KnownCapabilities(facts.config_digest, facts.capabilities))
    assert again.facts == facts
    assert isinstance(again.model, VisionText)
    assert again.model.attention.name == attention
    unknown = loaded(directory)
    assert unknown.blind is not None
    assert unknown.facts.capabilities.images is None


def test_a_prompt_that_must_be_computed_as_a_whole_is_found_when_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 3 comes with a mask by which all tokens of a prompt see each other, and does not go by it. Here it does."""
    from mlx_vlm.models.gemma3.language import LanguageModel

    causal = cast(Any, LanguageModel).__call__

    def seeing(self: Any, *given: Any, attention_mask_4d: mx.array | None = None, **rest: Any) -> Any:
        mask = None if attention_mask_4d is None else attention_mask_4d.astype(mx.bool_)
        return causal(self, *given, **{"mask": mask, **rest})

    directory = made(tmp_path, "gemma3")
    assert loaded(directory).facts.is_vision_model
    monkeypatch.setattr(LanguageModel, "__call__", seeing)
    with pytest.raises(UnsupportedParameter, match="its prompts in pieces are not the same as whole ones"):
        check_images(PLACE, given(), loaded(directory))


def test_a_window_is_known_for_one(tmp_path: Path) -> None:
    """mlx-vlm has a class of its own for it. A window that was full cannot be cut back."""
    assert not loaded(made(tmp_path, "gemma3")).facts.capabilities.trim


def test_a_model_without_a_processor_names_it(tmp_path: Path) -> None:
    directory = made(tmp_path, "llava")
    (directory / "preprocessor_config.json").unlink()
    with pytest.raises(ModelLoadError, match="because of its processor"):
        loaded(directory)


def test_low_detail_takes_fewer_tokens(tmp_path: Path) -> None:
    model = loaded(made(tmp_path))
    counts = {
        detail: len(prepared(model, chat([picture(1, 200, 160, detail), "?"])).token_ids)
        for detail in ("low", "auto", "high")
    }
    assert counts["low"] < counts["auto"] == counts["high"]


def test_models_that_make_something_else_of_an_image_are_others(tmp_path: Path) -> None:
    directory = made(tmp_path)
    before = loaded(directory)
    edit(directory / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3])
    after = loaded(directory)
    assert after.fingerprint != before.fingerprint
    assert after.facts.config_digest != before.facts.config_digest


def test_what_another_mlx_vlm_has_computed_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(made(tmp_path))
    installed = disk.version

    def asked() -> tuple[list[int], int]:
        """The tokens, and how many of the prompt's were kept."""
        with on_disk(model, tmp_path / "prefixes") as bench:
            stream = bench.ask(PROMPT, SHORT)
            return stream.tokens, stream.completed.stats.cached_tokens

    def other(name: str) -> str:
        return "0.0.1" if name == "mlx-vlm" else installed(name)

    monkeypatch.setattr(disk, "version", other)
    tokens, _ = asked()
    monkeypatch.undo()
    assert asked() == (tokens, 0)
    assert asked() == (tokens, len(PROMPT) - 1)
