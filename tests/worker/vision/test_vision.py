"""Each family's greedy tokens are mlx-vlm's own, whatever stands beside them and however the prompt is computed.

Phi-3-Vision, whose encoder takes seconds here, has a file of its own.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest

from mlx_serving.core.generation import ChatPrompt, SamplingParams, Structure
from mlx_serving.core.prefix.index import PrefixCachePolicy
from mlx_serving.errors import InvalidRequest
from mlx_serving.wire.notifications import Row
from mlx_serving.worker.vision.attention import CAUSAL, MUTUAL

from ... import tiny_vision_models
from ...tiny_vision_models import FAMILIES, Family
from ..bench import POLICY
from .vision_bench import MARGIN, Reference, VisionBench, chat, make, picture, prepared, sight

# Gemma 4's processor makes one of sounds as well, with figures that the library does not like.
pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter:UserWarning")

TOKENS = 12
ENDLESS = SamplingParams(max_tokens=TOKENS, temperature=0.0)
A, B = picture(1), picture(2, 90, 50)
CHATS = {
    "one image": [chat([A, f"{word}?"]) for word in ("What is it", "Where", "Tell me", "Which one", "Who", "Why so")],
    "two images": [chat([A, f"{word} ", B, "."]) for word in ("Compare", "and", "with", "versus", "or", "then")],
    "an image in an earlier turn": [
        chat([A, f"{word}?"], ["A square."], ["And now?"])
        for word in ("What is it", "Where", "Tell me", "Which", "Who")
    ],
    "text": [chat([f"{word}?"]) for word in ("What is it", "Where", "Tell me", "Which one", "Who", "Why so")],
}


@pytest.fixture(scope="module", params=[family for family in FAMILIES if family != "phi3_v"])
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def directory(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(family, tmp_path_factory.mktemp("vision") / family)


@pytest.fixture(scope="module")
def bench(directory: Path) -> VisionBench:
    return VisionBench(directory)


@pytest.fixture(scope="module")
def reference(directory: Path) -> Reference:
    return Reference(directory)


def whole_inputs(family: Family, bench: VisionBench, reference: Reference, prompt: ChatPrompt) -> dict[str, mx.array]:
    """What the processor makes of a prompt as a whole."""
    inputs = reference.inputs(rendered(family, prompt), prompt.images)
    assert inputs["input_ids"].tolist() == [list(prepared(bench.model, prompt).fed)]
    return inputs


def rendered(family: Family, prompt: ChatPrompt) -> str:
    """The chat as the templates of the tiny models write it."""
    text = ""
    for message in prompt.messages:
        content = message["content"]
        parts = cast("list[dict[str, str]]", content if isinstance(content, list) else [{"text": content}])
        inside = "".join(part.get("text", slot(family)) for part in parts)
        text += f"<|im_start|>{message['role']}\n{inside}<|im_end|>\n"
    return text + "<|im_start|>assistant\n"


def slot(family: Family) -> str:
    slots = {"llava": "<image>", "gemma3": "<start_of_image>"}
    if family.startswith("gemma4"):
        return "<|image|>"
    return slots.get(family, "<|vision_start|><|image_pad|><|vision_end|>")


@pytest.mark.parametrize("kind", CHATS)
def test_greedy_tokens_equal_mlx_vlm_s(family: Family, bench: VisionBench, reference: Reference, kind: str) -> None:
    compared = 0
    for prompt in CHATS[kind]:
        expected, margin = reference.tokens(whole_inputs(family, bench, reference, prompt), TOKENS)
        if margin < MARGIN:
            continue
        tokens = bench.answer(prompt, ENDLESS)
        assert tokens == expected[: len(tokens)]
        assert len(tokens) == TOKENS or expected[len(tokens)] in bench.model.eos_token_ids
        compared += 1
        if compared == 2:
            break
    assert compared, "no prompt leaves enough of a margin"


def test_what_is_in_the_image_matters(bench: VisionBench) -> None:
    answers = {tuple(bench.answer(chat([picture(number), "What is it?"]), ENDLESS)) for number in range(1, 5)}
    assert len(answers) > 1
    one, other = (bench.answer(chat([first, "and ", second, "?"]), ENDLESS) for first, second in ((A, B), (B, A)))
    assert bench.answer(chat([A, "and ", A, "?"]), ENDLESS) != one or one != other


def test_rows_with_images_and_rows_of_text_give_what_they_give_alone(bench: VisionBench) -> None:
    prompts = [
        chat([A, "What is it?"]),
        chat(["Hello there"]),
        chat([A, "Compare ", B, "."]),
        chat(["h"]),
        chat(["What is it?", B]),
        chat(["A text that is longer than the others, so that rows are of different lengths."]),
        chat([picture(3), "Where?"], ["A square."], ["And now?"]),
        chat(["Who?"]),
    ]
    sampled = [
        ENDLESS if number % 2 else replace(ENDLESS, temperature=0.9, seed=number) for number in range(len(prompts))
    ]
    alone = [bench.answer(prompt, params) for prompt, params in zip(prompts, sampled, strict=True)]
    for number, (prompt, params) in enumerate(zip(prompts, sampled, strict=True)):
        bench.ask(str(number), prompt, params)
        bench.step(number)
    bench.finish()
    assert [bench.streams[str(number)].tokens for number in range(len(prompts))] == alone


def test_a_prompt_in_chunks_is_the_same_as_a_whole_one(directory: Path, bench: VisionBench) -> None:
    """The bench computes eight tokens a step."""
    whole = VisionBench(directory, replace(POLICY, min_prefill_chunk=4096, max_prefill_chunk=4096))
    for prompt in (chat([A, "What is it?"]), chat(["Compare ", A, " with ", B, "."])):
        assert bench.answer(prompt, ENDLESS) == whole.answer(prompt, ENDLESS)


def test_an_answer_goes_on_behind_what_was_delivered(bench: VisionBench) -> None:
    prompt = chat([A, "What is it?"])
    params = replace(ENDLESS, temperature=0.8, seed=3, logit_bias=dict.fromkeys(bench.model.eos_token_ids, -100.0))
    tokens = bench.answer(prompt, params)
    assert len(tokens) == TOKENS
    for delivered in (1, 5, TOKENS - 1):
        stream = bench.ask("again", prompt, params, drawn=tokens[:delivered])
        bench.finish()
        assert stream.tokens == tokens[delivered:]
        del bench.streams["again"]


def test_pausing_preempting_and_forking_change_nothing(directory: Path, bench: VisionBench) -> None:
    bias = dict.fromkeys(bench.model.eos_token_ids, -100.0)
    params = replace(ENDLESS, temperature=0.8, seed=3, logit_bias=bias)
    prompt = chat([A, "What is it?"])
    alone = bench.answer(prompt, params)
    other = bench.answer(prompt, replace(params, seed=4))
    beside = bench.answer(chat([B, "Where?"]), replace(params, seed=5))

    one = VisionBench(directory, replace(POLICY, max_num_seqs=2))
    one.ask("paused", prompt, params)
    one.ask("fork", prompt, replace(params, seed=4), fork_of="paused")
    while len(one.streams["paused"].tokens) < 3:
        one.step()
    one.pause("paused")
    one.finish()
    one.generation.resume("paused")
    one.step(2)
    # Both places are wanted by others of a higher priority.
    for number in range(2):
        one.ask(f"urgent{number}", chat([B, "Where?"]), replace(params, seed=5), priority="critical")
    one.finish()
    assert one.scheduler.load().preemptions > 0
    assert one.streams["paused"].tokens == alone
    assert one.streams["fork"].tokens == other
    assert one.streams["urgent0"].tokens == one.streams["urgent1"].tokens == beside


def test_the_same_image_is_encoded_once(directory: Path) -> None:
    bench = VisionBench(directory)
    bench.answer(chat([A, "What is it?"]), ENDLESS)
    bench.answer(chat(["Compare ", A, " with ", A]), ENDLESS)
    assert bench.encoded == 1
    bench.answer(chat([B, "What is it?"]), ENDLESS)
    assert bench.encoded == 2
    bench.features.allow(0)
    assert len(bench.features) == 0
    bench.answer(chat([B, "What is it?"]), ENDLESS)
    assert bench.encoded == 3


def test_a_conversation_about_an_image_goes_on_from_what_is_kept(directory: Path) -> None:
    first, turn = chat([A, "What is it?"]), chat([A, "What is it?"], ["A square."], ["And now?"])
    plain = VisionBench(directory)
    expected = plain.answer(turn, ENDLESS)
    bench = VisionBench(directory, prefix_policy=PrefixCachePolicy(block_tokens=16))
    bench.answer(first, ENDLESS)
    before = bench.prefilled
    bench.features.allow(0)  # nothing but the prefix can save the encoding
    assert bench.answer(turn, ENDLESS) == expected
    size = len(prepared(bench.model, first).token_ids)
    assert bench.prefilled - before < plain.prefilled - size + 8
    assert bench.encoded == 1


def test_another_image_is_never_taken_for_the_one_that_is_kept(directory: Path) -> None:
    bench = VisionBench(directory, prefix_policy=PrefixCachePolicy(block_tokens=16))
    plain = VisionBench(directory)
    for number in (1, 2, 3, 1):
        prompt = chat([picture(number), "What is it? Tell me all about it, please."])
        assert bench.answer(prompt, ENDLESS) == plain.answer(prompt, ENDLESS)
    assert bench.encoded == 3


def test_how_the_tokens_of_an_image_see_each_other_is_found_out(family: Family, bench: VisionBench) -> None:
    model = sight(bench.model)
    assert (model.attention is MUTUAL) == (family in ("gemma4_both_ways", "gemma4_unified"))
    assert model.attention is MUTUAL or model.attention is CAUSAL


def test_what_is_kept_may_end_within_an_image_whose_tokens_see_each_other(tmp_path: Path) -> None:
    directory = tiny_vision_models.make("gemma4_both_ways", tmp_path / "plain", windows=False)
    plain = VisionBench(directory)
    assert plain.model.facts.capabilities.trim
    prompts = [chat([A, f"{word} is it?"]) for word in ("What", "Where", "Who", "How large")]
    [shown] = prepared(plain.model, prompts[0]).pictures
    kept = 16
    assert shown.span.start < kept < shown.span.end
    policy = PrefixCachePolicy(block_tokens=kept, memory_bytes=kept * plain.model.kv_bytes_per_token)
    bench = VisionBench(directory, prefix_policy=policy)
    for number, prompt in enumerate(prompts):
        before = bench.prefilled
        assert bench.answer(prompt, ENDLESS) == plain.answer(prompt, ENDLESS)
        size = len(prepared(bench.model, prompt).token_ids)
        assert bench.prefilled - before == size - (kept if number else 0)


def test_image_tokens_are_counted(bench: VisionBench) -> None:
    ready = prepared(bench.model, chat([A, "?"]))
    bare = prepared(bench.model, chat(["?"]))
    [shown] = ready.pictures
    assert len(ready.token_ids) >= len(bare.token_ids) + len(shown.token_ids)
    stream = bench.ask("counted", chat([A, "?"]), ENDLESS)
    bench.finish()
    assert stream.completed.stats.prompt_tokens == len(ready.token_ids)
    del bench.streams["counted"]
    assert all(0 <= token_id < bench.model.facts.vocab_size for token_id in ready.token_ids)


@pytest.mark.parametrize(
    "written",
    [
        "<image>",
        "<start_of_image>",
        "<image_soft_token>",
        "<|image_pad|>",
        "<|image_1|>",
        "<|video_pad|>",
        "<|vision_start|><|image_pad|><|vision_end|>",
    ],
)
def test_what_people_write_is_text(bench: VisionBench, written: str) -> None:
    prompt = chat([f"See {written} there: ", A, written])
    ready = prepared(bench.model, prompt)
    assert len(ready.pictures) == 1
    around = [*ready.token_ids[: ready.pictures[0].span.start], *ready.token_ids[ready.pictures[0].span.end :]]
    assert bench.model.tokenizer.decode(around, skip_special_tokens=False).count(written) >= 2
    alone = prepared(bench.model, chat([written]))
    assert alone.pictures == ()
    assert written in bench.model.tokenizer.decode(alone.token_ids, skip_special_tokens=True)
    assert bench.answer(prompt, ENDLESS) != bench.answer(chat(["See  there: ", A]), ENDLESS)


def test_a_template_that_places_another_number_of_images_is_refused(bench: VisionBench, family: Family) -> None:
    prompt = chat([A, "What is it?"])
    with pytest.raises(InvalidRequest, match="has placed 0 images, and 1 are given"):
        prepared(bench.model, replace(prompt, chat_template="{{ 'nothing' }}"))
    place = slot(family)
    with pytest.raises(InvalidRequest, match="has placed 2 images, and 1 are given"):
        prepared(bench.model, replace(prompt, chat_template=f"{{{{ '{place}{place}?' }}}}"))
    with pytest.raises(InvalidRequest, match="none is given"):
        prepared(bench.model, replace(chat(["?"]), chat_template=f"{{{{ '{place}?' }}}}"))
    if family == "gemma3":  # its processor wants lines behind an image
        return
    with pytest.raises(InvalidRequest, match="nothing behind the last image"):
        prepared(bench.model, replace(prompt, chat_template=f"{{{{ '{place.removesuffix('<|vision_end|>')}' }}}}"))


def test_a_structure_and_log_probabilities_hold_for_rows_with_images(tmp_path: Path) -> None:
    """Of one family: what chooses tokens knows nothing of them."""
    directory = make("qwen2_5_vl", tmp_path)
    bench = VisionBench(directory)
    ready = prepared(bench.model, chat([A, "What is it?"]))
    properties = {"a": {"enum": ["red", "blue"]}}
    schema = {"type": "object", "properties": properties, "required": ["a"], "additionalProperties": False}
    structure = Structure("json_schema", json.dumps(schema), "response_format")
    params = SamplingParams(max_tokens=60, temperature=0.0, logprobs=2)
    shaped = bench.start("shaped", ready.token_ids, params, pictures=ready.pictures, structure=structure)
    beside = bench.ask("beside", chat([B, "Where?"]), ENDLESS)
    rows: list[Row] = []
    while not bench.generation.is_idle:
        rows += bench.step()
    assert json.loads(shaped.text)["a"] in ("red", "blue")
    named = [one for row in rows if row.stream_id == "shaped" for one in row.logprobs or []]
    assert len(named) == len(shaped.tokens)
    assert beside.tokens == VisionBench(directory).answer(chat([B, "Where?"]), ENDLESS)
    bench.close()
