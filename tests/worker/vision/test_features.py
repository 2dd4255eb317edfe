"""What encoders made is kept for whoever comes with the same image, as far as there is room, and while it is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np
import pytest

from mlx_serving.core.generation import SamplingParams
from mlx_serving.wire.methods import KnownCapabilities
from mlx_serving.worker.speculation.drafter import Wanted
from mlx_serving.worker.vision.features import FeatureCache, Features
from mlx_serving.worker.vision.pictures import Picture, Prepared

from ... import tiny_vision_models
from .vision_bench import VisionBench, chat, picture, prepared

ENDLESS = SamplingParams(max_tokens=12, temperature=0.0)
SIZE = 4 * 2 * 8


def features(value: float) -> Features:
    return Features(mx.full((2, 8), value))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision_models.make("qwen3_vl", tmp_path_factory.mktemp("vision"))


def test_who_brings_the_same_image_to_the_same_model_claims_it() -> None:
    cache = FeatureCache()
    for name, fingerprint in (("a", "m"), ("b", "m"), ("c", "another")):
        cache.open(name, fingerprint, ["x", "y"])
    assert not cache.claim("a", 1)
    cache.put("a", 1, features(1))
    assert cache.claim("b", 1)
    assert not cache.claim("b", 0)
    assert not cache.claim("c", 1)
    assert cache.get("b", 1) is cache.get("a", 1)
    assert (len(cache), cache.nbytes, cache.hits, cache.misses) == (1, SIZE, 1, 1)


def test_what_is_needed_stays_and_goes_afterwards() -> None:
    cache = FeatureCache(SIZE)
    cache.open("a", "m", ["x", "y"])
    cache.put("a", 0, features(0))
    cache.put("a", 1, features(1))
    assert cache.nbytes == 2 * SIZE
    cache.release("a")
    assert cache.nbytes == SIZE
    cache.allow(0)
    assert len(cache) == 0
    cache.close("a")
    cache.close("unknown")


def test_a_model_that_goes_takes_its_features_along() -> None:
    cache = FeatureCache()
    cache.open("a", "m", ["x"])
    cache.open("b", "n", ["x"])
    cache.put("a", 0, features(0))
    cache.put("b", 0, features(1))
    cache.close("a")
    cache.remove_model("m")
    assert len(cache) == 1
    assert cache.get("b", 0) is not None


def test_names_tell_images_apart_and_are_no_tokens() -> None:
    def named(digest: str) -> list[int]:
        return list(Prepared([1, 0, 0, 0, 2], (Picture(digest, (-1, -1, -1), dict, 1),)).names)

    assert named("a") == named("a")
    assert all(one != other for one, other in zip(named("a")[1:4], named("b")[1:4], strict=True))
    assert all(1 << 31 <= name < 1 << 32 for name in named("a")[1:4])
    assert (named("a")[0], named("a")[4]) == (1, 2)
    assert list(Prepared([1, 0, 0, 0, 2], (Picture("a", (-1, -1, -1), dict, 1),)).fed) == [1, -1, -1, -1, 2]


def test_an_image_that_cannot_be_encoded_ends_its_stream_alone(directory: Path) -> None:
    bench = VisionBench(directory)
    expected = bench.answer(chat([picture(2), "Where?"]), ENDLESS)
    ready = prepared(bench.model, chat([picture(1), "What?"]))
    broken = replace(ready.pictures[0], token_ids=ready.pictures[0].token_ids[:-1])
    failing = bench.start("failing", ready.token_ids, ENDLESS, pictures=(broken,))
    beside = bench.ask("beside", chat([picture(2), "Where?"]), ENDLESS)
    bench.finish()
    assert "has an image that cannot be encoded" in failing.failed.error.message
    assert beside.tokens == expected


def test_the_memory_of_images_is_free_when_their_prompts_are_computed(directory: Path) -> None:
    bench = VisionBench(directory)
    bench.features.allow(0)
    stream = bench.ask("a", chat([picture(1), picture(2), "?"]), ENDLESS)
    bench.step(2)
    assert bench.features.nbytes > 0
    while not stream.tokens:
        bench.step()
    assert bench.features.nbytes == 0
    bench.finish()


def test_rows_of_a_model_that_cannot_be_batched_take_turns(directory: Path) -> None:
    bench = VisionBench(directory)
    prompts = [chat([picture(1), "What?"]), chat(["Text"]), chat([picture(2), " and ", picture(3)])]
    alone = [bench.answer(prompt, ENDLESS) for prompt in prompts]
    facts = bench.model.facts
    able = msgspec.structs.replace(facts.capabilities, batch=False, batch_prefill=False)
    unbatched = VisionBench(directory, known=KnownCapabilities(facts.config_digest, able))
    assert not unbatched.model.facts.capabilities.batch
    for number, prompt in enumerate(prompts):
        unbatched.ask(str(number), prompt, ENDLESS)
    unbatched.finish()
    assert [unbatched.streams[str(number)].tokens for number in range(3)] == alone


def test_guessed_tokens_change_nothing_in_rows_with_images(directory: Path) -> None:
    bench = VisionBench(directory)
    params = replace(ENDLESS, max_tokens=60, logit_bias=dict.fromkeys(bench.model.eos_token_ids, -100.0))
    prompts = [chat([picture(number), "Again and again and again and"]) for number in (1, 2)]
    alone = [bench.answer(prompt, params) for prompt in prompts]
    for number, prompt in enumerate(prompts):
        bench.ask(str(number), prompt, params, speculation=Wanted("ngram"))
    bench.finish()
    assert [bench.streams[str(number)].tokens for number in range(2)] == alone


def test_pixels_that_are_not_kept_any_more_are_made_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = chat([picture(1), "and ", picture(2), "?"])
    expected = VisionBench(directory).answer(prompt, ENDLESS)
    monkeypatch.setattr("mlx_serving.worker.vision.processing._KEPT_BYTES", 1)
    bench = VisionBench(directory)
    assert bench.answer(prompt, ENDLESS) == expected
    [first, second] = prepared(bench.model, prompt).pictures
    assert first.inputs() is not first.inputs()
    assert np.array_equal(first.inputs()["pixel_values"], first.inputs()["pixel_values"])
    assert not np.array_equal(first.inputs()["pixel_values"], second.inputs()["pixel_values"])


def test_pixels_are_kept_for_who_comes_again(directory: Path) -> None:
    bench = VisionBench(directory)
    [first] = prepared(bench.model, chat([picture(1), "?"])).pictures
    [again] = prepared(bench.model, chat(["Once more: ", picture(1)])).pictures
    assert first.inputs() is again.inputs()
