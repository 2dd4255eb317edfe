"""A runner gives mlx-lm's tokens however its sequences are cut up, interrupted and mixed."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache, make_prompt_cache

from mlx_serving.core.sampling_defaults import ResolvedSampling
from mlx_serving.core.schedule.scheduling import PrefillChunk
from mlx_serving.worker.batch import DecodeBatch, Token
from mlx_serving.worker.job import Job
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.model_runner import ModelRunner
from mlx_serving.worker.sampling.row import SamplingRow

from ..tiny_models import token_ids
from .bench import Reference, load

ARCHITECTURES = ["llama", "qwen3", "gemma3", "lfm2", "mamba", "llama4", "quantised"]
PROMPT = "A prompt of more than sixteen tokens."
GREEDY = ResolvedSampling(
    max_tokens=100, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, logit_bias={258: -100.0}
)
SEEDED = ResolvedSampling(
    max_tokens=100,
    temperature=1.0,
    top_p=0.95,
    top_k=0,
    min_p=0.0,
    repetition_penalty=1.1,
    repetition_context_size=6,
    frequency_penalty=0.3,
    typical_p=0.98,
    xtc_probability=0.3,
    xtc_threshold=0.05,
    logit_bias={258: -100.0},
)


class Driver:
    """Orders the steps that the test wants, and collects what each sequence is given."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.tokens: dict[str, list[int]] = {}
        self._prompts: dict[str, list[int]] = {}

    def open(self, stream_id: str, prompt: str, sampling: ResolvedSampling = GREEDY, seed: int = 0) -> None:
        self._prompts[stream_id] = token_ids(prompt)
        self.tokens[stream_id] = []
        self.runner.open(Job(stream_id, token_ids(prompt), sampling, seed))

    def admit(self, stream_id: str, chunk: int = 1000, beside: Sequence[str] = ()) -> None:
        """Compute its prompt and what it was given before in chunks, while those `beside` decode."""
        self.runner.admit(stream_id)
        total = len(self._prompts[stream_id]) + len(self.tokens[stream_id])
        for start in range(0, total, chunk):
            count = min(chunk, total - start)
            self.step(beside, [PrefillChunk(stream_id, start, count, last=start + count == total)])

    def step(
        self, decode: Sequence[str], prefill: Sequence[PrefillChunk] = (), ending: Sequence[str] = ()
    ) -> list[str]:
        return self._take(self.runner.run(decode, prefill, ending))

    def drain(self) -> list[str]:
        return self._take(self.runner.drain())

    def decode(self, stream_id: str, count: int) -> None:
        """Go on until it has `count` tokens, and nothing is under way."""
        while len(self.tokens[stream_id]) < count:
            ending = [stream_id] if len(self.tokens[stream_id]) == count - 2 else []
            self.step([stream_id], ending=ending)
            if ending:
                self.drain()

    def _take(self, given: list[Token]) -> list[str]:
        for token in given:
            self.tokens[token.stream_id].append(token.token_id)
        return [token.stream_id for token in given]


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return load(request.getfixturevalue(request.param))


@pytest.fixture
def driver(model: LoadedModel) -> Driver:
    return Driver(model.runner)


@pytest.fixture
def plain(llama: Path) -> Driver:
    return Driver(load(llama).runner)


@pytest.mark.parametrize("chunk", [1, 3, 16, 1000])
def test_chunks_of_any_size_give_mlx_lm_s_tokens(model: LoadedModel, chunk: int) -> None:
    """A sliding window, a convolution and a chunked cache see the boundaries in other places each time."""
    directory = Path(model.facts.cached_path)
    expected = Reference(directory).tokens(PROMPT, 10)
    driver = Driver(model.runner)
    driver.open("a", PROMPT, ResolvedSampling(1, 0.0, 1.0, 0, 0.0, 1.0))
    driver.admit("a", chunk)
    for _ in range(10):
        driver.step(["a"])
    assert driver.tokens["a"][: len(expected)] == expected


@settings(max_examples=15, deadline=None)
@given(cuts=st.sets(st.integers(1, len(PROMPT) - 1)))
def test_chunks_of_different_sizes_give_the_same_tokens(llama_model: LoadedModel, cuts: set[int]) -> None:
    llama_model.renew_runner()
    driver = Driver(llama_model.runner)
    driver.open("whole", PROMPT)
    driver.open("cut", PROMPT)
    driver.admit("whole")
    driver.runner.admit("cut")
    ends = [*sorted(cuts), len(PROMPT)]
    for start, end in zip([0, *ends], ends, strict=False):
        driver.step(["whole"], [PrefillChunk("cut", start, end - start, last=end == len(PROMPT))])
    for _ in range(6):
        driver.step(["whole", "cut"])
    count = min(len(tokens) for tokens in driver.tokens.values())
    assert count >= 6
    assert driver.tokens["cut"][:count] == driver.tokens["whole"][:count]


@pytest.fixture(scope="module")
def llama_model(llama: Path) -> LoadedModel:
    return load(llama)


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded and penalised"])
@pytest.mark.parametrize("after", [1, 2, 7])
def test_a_sequence_that_was_evicted_goes_on_with_the_same_tokens(
    driver: Driver, sampling: ResolvedSampling, after: int
) -> None:
    driver.open("undisturbed", PROMPT, sampling, seed=5)
    driver.admit("undisturbed")
    for _ in range(14):
        driver.step(["undisturbed"])
    driver.runner.remove("undisturbed")

    driver.open("other", "Zebras!", sampling)
    driver.open("evicted", PROMPT, sampling, seed=5)
    driver.admit("other")
    driver.admit("evicted", 5, beside=["other"])
    while len(driver.tokens["evicted"]) < after - 1:
        driver.step(["other", "evicted"])
    driver.drain()
    driver.runner.evict("evicted")
    driver.step(["other"])
    driver.admit("evicted", 4, beside=["other"])
    for _ in range(14 - after):
        driver.step(["other"])
        driver.step(["other", "evicted"])
    count = min(len(driver.tokens["evicted"]), len(driver.tokens["undisturbed"]))
    assert count >= 10
    assert driver.tokens["evicted"][:count] == driver.tokens["undisturbed"][:count]


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded and penalised"])
@pytest.mark.parametrize("others", [(), ("before",), ("after",), ("before", "after")], ids="-".join)
def test_a_sequence_that_was_parked_goes_on_with_the_same_tokens(
    driver: Driver, sampling: ResolvedSampling, others: tuple[str, ...]
) -> None:
    """Its batch goes on meanwhile, and nobody in it notices."""
    expected: dict[str, list[int]] = {}
    for name in ("parked", *others):
        driver.open(name, PROMPT + name, sampling, seed=5)
        driver.admit(name)
        driver.decode(name, 12)
        expected[name] = driver.tokens[name]
        driver.runner.remove(name)

    present: list[str] = []
    for name in sorted(("parked", *others), key=("before", "parked", "after").index):
        driver.open(name, PROMPT + name, sampling, seed=5)
        driver.admit(name, beside=present)
        present.append(name)
    for _ in range(2):
        driver.step(present)
    driver.drain()
    driver.runner.park("parked")
    count = len(driver.tokens["parked"])
    for _ in range(2):
        driver.step(others)
    assert len(driver.tokens["parked"]) == count
    while min(len(driver.tokens[name]) for name in present) < 12:
        driver.step(present)
    for name in present:
        assert driver.tokens[name][:12] == expected[name][:12]


def test_what_is_parked_can_be_removed_and_evicted(driver: Driver) -> None:
    for name in ("removed", "evicted"):
        driver.open(name, name)
        driver.admit(name)
    driver.step(["removed", "evicted"])
    driver.drain()
    for name in ("removed", "evicted", "never there"):
        driver.runner.park(name)
    driver.runner.remove("removed")
    driver.runner.evict("evicted")
    before = len(driver.tokens["evicted"])
    assert driver.step(["removed", "evicted"]) + driver.drain() == []
    driver.admit("evicted")
    driver.step(["evicted"])
    assert len(driver.tokens["evicted"]) > before


def test_a_prompt_that_is_parked_goes_on_where_it_stopped(driver: Driver) -> None:
    for name in ("whole", "parked"):
        driver.open(name, PROMPT)
    driver.admit("whole")
    driver.runner.admit("parked")
    driver.step([], [PrefillChunk("parked", 0, 10, last=False)])
    driver.runner.park("parked")
    driver.step(["whole"])
    driver.step(["whole"], [PrefillChunk("parked", 10, len(PROMPT) - 10, last=True)])
    for _ in range(4):
        driver.step(["whole", "parked"])
    count = len(driver.tokens["parked"])
    assert count >= 4
    assert driver.tokens["parked"] == driver.tokens["whole"][:count]


def test_an_ending_row_leaves_at_once_and_gets_its_last_token(driver: Driver) -> None:
    driver.open("ends", "abc")
    driver.open("stays", "defgh")
    driver.admit("ends")
    driver.admit("stays", beside=["ends"])
    driver.step(["stays", "ends"], ending=["ends"])
    before = len(driver.tokens["ends"])
    assert driver.step(["stays"]).count("ends") == 1
    assert len(driver.tokens["ends"]) == before + 1
    for _ in range(3):
        assert "ends" not in driver.step(["stays"])


def test_a_sequence_may_end_with_its_first_token(driver: Driver) -> None:
    driver.open("one", "abc")
    driver.runner.admit("one")
    assert driver.step([], [PrefillChunk("one", 0, 3, last=True)], ending=["one"]) == []
    assert driver.drain() == ["one"]
    assert driver.drain() == []


def test_what_is_removed_between_launch_and_reading_gets_nothing_more(driver: Driver) -> None:
    for name in ("first", "gone", "last"):
        driver.open(name, name)
        driver.admit(name)
    driver.step(["first", "gone", "last"])
    driver.runner.remove("gone")
    given = driver.step(["first", "last"]) + driver.drain()
    assert sorted(set(given)) == ["first", "last"]
    driver.runner.remove("gone")
    driver.runner.remove("never there")


def test_tokens_of_a_turn_are_not_kept_until_the_sequence_s_next_turn(llama4: Path) -> None:
    """Sequences of a model that cannot be batched take turns; what one is given does not wait for it."""
    driver = Driver(load(llama4).runner)
    for name in ("a", "b"):
        driver.open(name, name)
        driver.admit(name)
    driver.step(["a"], ending=["a"])
    before = len(driver.tokens["a"])
    driver.step(["b"])
    assert len(driver.tokens["a"]) == before + 1


def test_a_drain_between_steps_changes_no_token(driver: Driver) -> None:
    """Also not with penalties and a change of membership right after it."""
    for name in ("steady", "drained"):
        driver.open(name, PROMPT, SEEDED, seed=3)
        driver.admit(name)
        for count in range(8):
            driver.step([name])
            if name == "drained":
                driver.drain()
                driver.open(f"guest {count}", "g")
                driver.admit(f"guest {count}")
                driver.runner.remove(f"guest {count}")
        driver.runner.remove(name)
    count = min(len(driver.tokens["steady"]), len(driver.tokens["drained"]))
    assert count >= 8
    assert driver.tokens["drained"][:count] == driver.tokens["steady"][:count]


def test_who_was_removed_since_the_step_was_ordered_is_passed_over(driver: Driver) -> None:
    driver.open("decodes", "abc")
    driver.open("prefills", "def")
    driver.admit("decodes")
    driver.runner.admit("prefills")
    driver.runner.remove("decodes")
    driver.runner.remove("prefills")
    assert driver.step(["decodes"], [PrefillChunk("prefills", 0, 3, last=True)]) == []
    assert driver.drain() == []


def test_a_runner_can_be_closed_with_work_under_way(plain: Driver) -> None:
    plain.open("a", "abc")
    plain.admit("a")
    plain.step(["a"])
    plain.runner.close()


def joined(model: nn.Module, batch: DecodeBatch, stream_id: str, prompt: list[int]) -> None:
    caches = make_prompt_cache(model)
    if prompt[:-1]:
        forward: object = model
        assert callable(forward)
        forward(mx.array([prompt[:-1]]), cache=caches)
    batch.slots.join(stream_id, caches, len(prompt) - 1, prompt[-1], SamplingRow(GREEDY, 0, prompt))


def test_a_step_gives_the_tokens_of_the_one_before(llama_model: LoadedModel) -> None:
    batch = DecodeBatch(llama_model.model, shared=True)
    joined(llama_model.model, batch, "a", token_ids("abc"))
    assert batch.step() == []
    joined(llama_model.model, batch, "b", [7])
    assert [token.stream_id for token in batch.step()] == ["a"]
    assert [token.stream_id for token in batch.step(["a"])] == ["a", "b"]
    assert len(batch.slots) == 1
    assert [token.stream_id for token in batch.drain()] == ["a", "b"]
    assert batch.drain() == []


def test_an_empty_batch_launches_nothing(llama_model: LoadedModel) -> None:
    batch = DecodeBatch(llama_model.model, shared=True)
    assert batch.step() == []
    joined(llama_model.model, batch, "a", token_ids("abc"))
    batch.step(["a"])
    assert [token.stream_id for token in batch.step()] == ["a"]
    joined(llama_model.model, batch, "b", token_ids("b"))
    batch.leave("b")
    assert (batch.step(), len(batch.slots)) == ([], 0)


@contextmanager
def passes_of(model: LoadedModel) -> Generator[list[tuple[int, int]]]:
    """(rows, tokens) of each forward pass meanwhile."""
    shapes: list[tuple[int, int]] = []
    kind: Any = type(model.model)

    class Counting(kind):
        def __call__(self, inputs: mx.array, *arguments: object, **named: object) -> object:
            shapes.append((inputs.shape[0], inputs.shape[1]))
            return kind.__call__(self, inputs, *arguments, **named)

    model.model.__class__ = Counting
    yield shapes
    model.model.__class__ = kind


def test_sequences_share_a_batch_while_padding_costs_less_than_another_pass(llama_model: LoadedModel) -> None:
    driver = Driver(ModelRunner(llama_model.model, llama_model.facts.capabilities, padding_tokens=25))
    for name, length in (("a", 10), ("b", 60), ("c", 30), ("d", 55), ("e", 61)):
        driver.open(name, "x" * length)
        driver.admit(name)
    with passes_of(llama_model) as passes:
        driver.step("abcde")
        driver.runner.remove("b")
        driver.step("acde")
        for name in "ac":
            driver.runner.remove(name)
        driver.step("de")
    assert passes == [(2, 1), (3, 1), (2, 1), (2, 1), (2, 1)]


def test_where_memory_has_no_place_for_padding_each_length_has_a_batch_of_its_own(llama_model: LoadedModel) -> None:
    driver = Driver(ModelRunner(llama_model.model, llama_model.facts.capabilities))
    driver.runner.spare(3)
    for name, length in (("a", 10), ("b", 12), ("c", 20)):
        driver.open(name, "x" * length)
        driver.admit(name)
    with passes_of(llama_model) as passes:
        driver.step("abc")
        assert passes == [(2, 1), (1, 1)]
        driver.runner.spare(100)
        driver.open("d", "x" * 20)
        driver.admit("d")
        driver.step("abcd")
    assert sorted(passes[-2:]) == [(2, 1), (2, 1)]


def test_batches_give_back_what_they_have_to_grow_into_and_go_on(driver: Driver, model: LoadedModel) -> None:
    crowd = Driver(ModelRunner(model.model, model.facts.capabilities))
    for one, names in ((driver, ("stays",)), (crowd, ("stays", "goes"))):
        for name in names:
            one.open(name, name * (3 if name == "stays" else 40), SEEDED, seed=3)
            one.admit(name)
    driver.decode("stays", 12)
    crowd.step(["stays", "goes"])
    crowd.runner.remove("goes")
    before = crowd.runner.cache_bytes
    crowd.runner.spare(0)
    crowd.runner.shrink()
    grows = all(type(cache) is KVCache for cache in model.make_caches())
    assert crowd.runner.cache_bytes < before / 2 if grows else crowd.runner.cache_bytes <= before
    crowd.decode("stays", 12)
    assert crowd.tokens["stays"][:12] == driver.tokens["stays"][:12]


@pytest.mark.parametrize("padding_tokens", [0, 6, 40])
def test_tokens_do_not_depend_on_who_shares_a_batch(driver: Driver, model: LoadedModel, padding_tokens: int) -> None:
    names = ["a", "bc", "def gh", "ijklm nop", "Zebras!", "q"]
    for name in names:
        driver.open(name, name * 3, SEEDED, seed=len(name))
        driver.admit(name)
        driver.decode(name, 8)
        driver.runner.remove(name)
    crowd = Driver(ModelRunner(model.model, model.facts.capabilities, padding_tokens))
    running: list[str] = []
    for name in names:
        crowd.open(name, name * 3, SEEDED, seed=len(name))
        crowd.admit(name, 4, beside=running)
        running.append(name)
    crowd.drain()
    crowd.runner.park("bc")
    crowd.runner.evict("def gh")
    rest = [name for name in names if name not in ("bc", "def gh")]
    crowd.step(rest)
    crowd.admit("def gh", 3, beside=rest)
    while min(len(tokens) for tokens in crowd.tokens.values()) < 8:
        crowd.step(names)
    assert {name: tokens[:8] for name, tokens in crowd.tokens.items()} == driver.tokens
    for name in names:
        crowd.runner.remove(name)
    assert crowd.drain() == []


@pytest.mark.parametrize("lengths", [(37, 37), (37, 30, 5, 1), (2, 2, 37, 1, 1)])
def test_prompts_that_begin_together_give_what_they_give_alone(model: LoadedModel, lengths: tuple[int, ...]) -> None:
    """Whole, and in pieces of which the first ones share a pass."""
    texts = {str(index): PROMPT[index:] + PROMPT[:index] for index in range(len(lengths))}
    prompts = {name: text[:length] for (name, text), length in zip(texts.items(), lengths, strict=True)}
    for first in (1000, 4):
        alone, crowd = Driver(model.runner), Driver(ModelRunner(model.model, model.facts.capabilities))
        chunks: list[PrefillChunk] = []
        for name, prompt in prompts.items():
            alone.open(name, prompt, SEEDED, seed=3)
            alone.admit(name)
            alone.decode(name, 6)
            alone.runner.remove(name)
            crowd.open(name, prompt, SEEDED, seed=3)
            crowd.runner.admit(name)
            count = min(first, len(prompt))
            chunks.append(PrefillChunk(name, 0, count, last=count == len(prompt)))
        crowd.step((), chunks)
        rest = [PrefillChunk(one.id, one.count, len(prompts[one.id]) - one.count, last=True) for one in chunks]
        crowd.step([one.id for one in chunks if one.last], [one for one in rest if one.count])
        while min(len(tokens) for tokens in crowd.tokens.values()) < 6:
            crowd.step(list(prompts))
        assert {name: tokens[:6] for name, tokens in crowd.tokens.items()} == alone.tokens


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", [(1, 100), (2, 24)]),
        ("gemma3", [(1, 100), (2, 24)]),
        ("mamba", [(1, 19), (1, 24), (1, 100)]),
        ("llama4", [(1, 19), (1, 24), (1, 100)]),
    ],
)
def test_beginnings_of_similar_length_share_a_pass(
    name: str, expected: list[tuple[int, int]], request: pytest.FixtureRequest
) -> None:
    model = load(request.getfixturevalue(name))
    driver = Driver(model.runner)
    for stream_id, length in (("a", 20), ("b", 25), ("long", 200)):
        driver.open(stream_id, "x" * length)
        driver.runner.admit(stream_id)
    whole = [PrefillChunk("a", 0, 20, last=True), PrefillChunk("b", 0, 25, last=True)]
    with passes_of(model) as passes:
        driver.step((), [*whole, PrefillChunk("long", 0, 100, last=False)])
    assert [shape for shape in passes if shape[1] > 1] == expected


def test_a_parked_sequence_goes_on_where_it_was(driver: Driver) -> None:
    driver.open("undisturbed", PROMPT, SEEDED, seed=5)
    driver.admit("undisturbed")
    driver.decode("undisturbed", 12)
    driver.runner.remove("undisturbed")
    for name in ("other", "parked"):
        driver.open(name, PROMPT, SEEDED, seed=5)
        driver.admit(name)
    driver.step(["other", "parked"])
    driver.drain()
    driver.runner.park("parked")
    driver.runner.park("nobody")
    before = len(driver.tokens["parked"])
    for _ in range(3):
        driver.step(["other"])
    assert len(driver.tokens["parked"]) == before
    while len(driver.tokens["parked"]) < 12:
        driver.step(["parked", "other"])
    assert driver.tokens["parked"][:12] == driver.tokens["undisturbed"][:12]
