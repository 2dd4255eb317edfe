"""A greedy sequence gives mlx-lm's tokens and a seeded one its own, whoever comes and goes beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_serving.core.generation import SamplingParams
from mlx_serving.core.prefix.index import PrefixCachePolicy

from ..tiny_models import EOS
from .bench import POLICY, Bench, Reference, load

PROMPTS = {
    "one": "h",
    "short": "The sun",
    "chunk": "12345678",
    "long": "A prompt of more than four chunks of eight tokens.",
    "other": "Zebras!",
}
ARCHITECTURES = ["llama", "qwen3", "gemma3", "lfm2", "mamba", "llama4", "quantised"]


@pytest.fixture(params=ARCHITECTURES)
def directory(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def come_and_go(bench: Bench, start: Callable[[str], None]) -> None:
    """Five sequences that begin at different steps, one of which is aborted on the way."""
    start("short")
    start("long")
    bench.step(5)
    start("one")
    start("other")
    bench.step(12)
    row = bench.generation.abort("other")
    assert row is not None
    bench.streams["other"].end = row.end
    start("chunk")
    bench.finish()


def test_greedy_tokens_equal_mlx_lm_s_in_a_changing_batch(directory: Path) -> None:
    reference, bench = Reference(directory), Bench(load(directory))
    come_and_go(bench, lambda name: bench.start(name, PROMPTS[name]) and None)
    for name, prompt in PROMPTS.items():
        expected = reference.tokens(prompt, 24)
        tokens = bench.streams[name].tokens
        assert tokens == expected[: len(tokens)] if name == "other" else tokens == expected, name
    assert 0 < len(bench.streams["other"].tokens) < 24


@pytest.mark.parametrize("kept", [None, PrefixCachePolicy()], ids=["forgetful", "keeping"])
def test_one_token_after_one_token_equals_mlx_lm_s(directory: Path, kept: PrefixCachePolicy | None) -> None:
    """Nothing was computed when the sequence begins to decode, and that step is its last."""
    expected = Reference(directory).tokens("h", 1)
    bench = Bench(load(directory), prefix_policy=kept)
    last = SamplingParams(max_tokens=1)
    assert bench.run("h", last).tokens == expected
    for name in ("first", "second"):
        bench.start(name, "h", last)
    bench.finish()
    assert [stream.tokens for stream in bench.streams.values()] == [expected, expected]


def test_greedy_text_equals_mlx_lm_s(speller: Path) -> None:
    reference, bench = Reference(speller), Bench(load(speller))
    for prompt in ("a", "é", "some text, then k"):
        assert bench.run(prompt).text == reference.text(prompt, 24) != ""


def test_a_seeded_sequence_is_the_same_alone_and_in_a_crowd(directory: Path) -> None:
    def params(name: str) -> SamplingParams:
        bias = {EOS: -100.0} if name == "other" else dict[int, float]()  # it must live until it is aborted
        return SamplingParams(temperature=1.0, seed=list(PROMPTS).index(name), top_p=0.95, logit_bias=bias)

    bench = Bench(load(directory))
    alone = {name: bench.run(prompt, params(name)).tokens for name, prompt in PROMPTS.items()}
    come_and_go(bench, lambda name: bench.start(name, PROMPTS[name], params(name)) and None)
    for name, tokens in alone.items():
        crowded = bench.streams[name].tokens
        assert crowded == (tokens[: len(crowded)] if name == "other" else tokens), name


@pytest.mark.parametrize("name", ["llama", "llama4"])
def test_a_long_prompt_does_not_hold_up_a_running_sequence(name: str, request: pytest.FixtureRequest) -> None:
    """A batch decodes in every step; sequences that take turns wait for one chunk at most."""
    bench = Bench(load(request.getfixturevalue(name)), replace(POLICY, max_num_seqs=2))
    bench.start("running", "a", SamplingParams(max_tokens=100, logit_bias={258: -100}))
    while not bench.streams["running"].tokens:
        bench.step()
    bench.start("long", "b" * 160)
    before = len(bench.streams["running"].tokens)
    bench.step(20)
    assert bench.streams["long"].tokens == []
    assert len(bench.streams["running"].tokens) - before >= 10
