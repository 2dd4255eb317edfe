"""Phi-3-Vision: tags in the text in place of image tokens, ids below zero, a model that is its own language model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_serving.core.generation import SamplingParams
from mlx_serving.errors import InvalidRequest

from .vision_bench import MARGIN, Reference, VisionBench, chat, make, picture, prepared

TOKENS = 12
ENDLESS = SamplingParams(max_tokens=TOKENS, temperature=0.0)
A, B = picture(1), picture(2)
ASKED = [chat([A, f"{word}?"]) for word in ("What is it", "Where", "Tell me", "Which one", "Who")]

pytestmark = pytest.mark.timeout(600)  # an encoder 1024 wide, without a fast BLAS


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("phi3_v", tmp_path_factory.mktemp("vision") / "phi3_v")


@pytest.fixture(scope="module")
def bench(directory: Path) -> VisionBench:
    return VisionBench(directory)


def test_greedy_tokens_equal_mlx_vlm_s(directory: Path, bench: VisionBench) -> None:
    reference = Reference(directory)
    for prompt in ASKED:
        ready = prepared(bench.model, prompt)
        inputs = reference.inputs("<|image_1|>?", prompt.images)
        # Its processor loses the first token behind an image: the rest of what it makes is compared.
        inputs["input_ids"] = mx.array([list(ready.fed)])
        inputs["attention_mask"] = mx.ones_like(inputs["input_ids"])
        expected, margin = reference.tokens(inputs, TOKENS)
        if margin >= MARGIN:
            assert bench.answer(prompt, ENDLESS) == expected
            return
    raise AssertionError("no prompt leaves enough of a margin")


def test_rows_with_images_and_rows_of_text_give_what_they_give_alone(bench: VisionBench) -> None:
    prompts = [ASKED[0], chat(["Hello there"]), chat(["Compare ", A, " with ", B]), chat([A, "What?"], ["It."], ["h"])]
    params = [replace(ENDLESS, temperature=0.9, seed=number) for number in range(len(prompts))]
    alone = [bench.answer(prompt, each) for prompt, each in zip(prompts, params, strict=True)]
    for number, (prompt, each) in enumerate(zip(prompts, params, strict=True)):
        bench.ask(str(number), prompt, each)
        bench.step(number)
    bench.finish()
    assert [bench.streams[str(number)].tokens for number in range(len(prompts))] == alone
    assert len(set(map(tuple, alone))) == len(alone)


def test_tags_in_what_people_write_are_text(bench: VisionBench) -> None:
    ready = prepared(bench.model, chat(["See <|image_1|> and <|image_7|>: ", A]))
    [shown] = ready.pictures
    around = [*ready.token_ids[: shown.span.start], *ready.token_ids[shown.span.end :]]
    text = bench.model.tokenizer.decode(around, skip_special_tokens=False)
    assert "See <|image_1|> and <|image_7|>: \n" in text
    assert set(shown.token_ids) == {-1}
    with pytest.raises(InvalidRequest, match="has placed 2 images, and 1 are given"):
        prepared(bench.model, replace(chat([A, "?"]), chat_template="{{ '<|image_1|><|image_2|>?' }}"))
