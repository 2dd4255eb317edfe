"""Tokenizers and their thread."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from mlx_lm.utils import load_tokenizer

from mlx_serving.core.generation import ChatPrompt, TextPrompt, TokenPrompt
from mlx_serving.errors import EngineError, InvalidRequest, ProtocolError, TokenizerError
from mlx_serving.worker import tokenizer_thread
from mlx_serving.worker.tokenizer_thread import TokenizerThread
from mlx_serving.worker.tokenizing import PromptTokenizer, make_decoder

from ..tiny_models import BOS, token_ids
from .driver import TIMEOUT_S


@pytest.fixture(scope="module")
def tokenizer(llama: Path) -> PromptTokenizer:
    return PromptTokenizer(load_tokenizer(llama))


def test_a_text_prompt_becomes_its_tokens(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.prompt_ids(TextPrompt("héé")) == token_ids("héé")
    assert tokenizer.prompt_ids(TextPrompt("<|endoftext|>a")) == [BOS, *token_ids("a")]
    assert tokenizer.prompt_ids(TokenPrompt((1, 2))) == [1, 2]


def test_a_chat_is_rendered_with_an_opening_for_the_answer(tokenizer: PromptTokenizer) -> None:
    ids = tokenizer.prompt_ids(ChatPrompt(({"role": "user", "content": "hi"},)))
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_chats_may_go_on_differently_behind_the_system_prompt_and_before_the_answer(tokenizer: PromptTokenizer) -> None:
    system, question = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}
    prompt = ChatPrompt((system, question))
    ids = tokenizer.prompt_ids(prompt)
    beginnings = [tokenizer.decode(ids[:stop], skip_special_tokens=False) for stop in tokenizer.stops(prompt, ids)]
    shared = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    assert beginnings == [shared, shared + "hi<|im_end|>\n"]
    alone = ChatPrompt((question,))
    assert len(tokenizer.stops(alone, tokenizer.prompt_ids(alone))) == 1
    assert tokenizer.stops(TextPrompt("hi"), tokenizer.prompt_ids(TextPrompt("hi"))) == ()


def test_a_template_that_refuses_what_nobody_asked_names_no_stops(untemplated: Path) -> None:
    tokenizer = PromptTokenizer(load_tokenizer(untemplated))
    assert tokenizer.stops(ChatPrompt(({"role": "user", "content": "hi"},)), [1, 2, 3]) == ()


def test_a_chat_that_the_template_refuses_names_the_messages(tokenizer: PromptTokenizer) -> None:
    with pytest.raises(InvalidRequest, match="refused the messages") as caught:
        tokenizer.prompt_ids(ChatPrompt(({"role": "user"},)))
    assert caught.value.field == "messages"


def test_token_strings_has_one_string_an_id(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.token_strings([*token_ids("a "), BOS]) == ["a", "Ġ", "<|endoftext|>"]


def test_a_banned_word_is_written_alone_and_after_a_space(tokenizer: PromptTokenizer) -> None:
    word, spaced = tuple(token_ids("né")), tuple(token_ids(" né"))
    assert tokenizer.banned_sequences(["né"]) == (word, spaced)
    assert tokenizer.banned_sequences([" né", "né", "x"]) == (word, spaced, *tokenizer.banned_sequences(["x"]))
    assert tokenizer.banned_sequences([]) == ()


def test_the_decoder_leaves_special_tokens_out(llama: Path) -> None:
    decode = make_decoder(load_tokenizer(llama))
    assert decode([BOS, *token_ids("a 🙂"), BOS]) == "a 🙂"
    assert decode(token_ids("🙂")[:2]).endswith("\ufffd")


def test_two_threads_never_borrow_one_tokenizer(llama: Path) -> None:
    """Decoding here while the tokenizer thread encodes long texts."""
    wrapper = load_tokenizer(llama)
    decode, prompts = make_decoder(wrapper), PromptTokenizer(wrapper)
    outcomes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    thread = TokenizerThread(outcomes.put)
    counts: list[int] = []
    failures: list[EngineError] = []
    for _ in range(20):
        thread.submit(lambda: prompts.encode("x" * 5000), lambda ids: counts.append(len(ids)), failures.append)
    while outcomes.empty():
        assert decode(token_ids("some text")) == "some text"
    for _ in range(20):
        outcomes.get(timeout=TIMEOUT_S)()
    thread.close()
    assert (counts, failures) == ([5000] * 20, [])


class Desk:
    """A tokenizer thread and the thread that it answers to, which is the test's."""

    def __init__(self) -> None:
        self._outcomes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.thread = TokenizerThread(self._outcomes.put)
        self.done: list[object] = []
        self.failed: list[EngineError] = []

    def settle(self) -> None:
        while self.thread.pending:
            self._outcomes.get(timeout=TIMEOUT_S)()


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.thread.close()


def test_outcomes_come_in_order_on_the_asking_thread(desk: Desk) -> None:
    workers: set[int] = set()
    for index in range(5):
        desk.thread.submit(
            lambda index=index: workers.add(threading.get_ident()) or index,
            lambda result: desk.done.append((result, threading.get_ident())),
            desk.failed.append,
        )
    assert desk.thread.pending == 5
    desk.settle()
    assert desk.done == [(index, threading.get_ident()) for index in range(5)]
    assert workers.isdisjoint({threading.get_ident()})
    assert len(workers) == 1


def test_outcomes_wait_for_quick_work_behind_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_thread, "_HOLD_S", math.inf)
    executed: list[str] = []
    posted: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
    thread = TokenizerThread(lambda _: posted.put(list(executed)))
    gate = threading.Event()

    def work(name: str) -> None:
        gate.wait(TIMEOUT_S)
        executed.append(name)

    for name in ("first", "quick", "quick too", "plain"):
        thread.submit(partial(work, name), lambda _: None, _raise, quick="quick" in name)
    gate.set()
    seen = [posted.get(timeout=TIMEOUT_S) for _ in range(4)]
    thread.close()
    assert seen[:3] == [["first", "quick", "quick too"]] * 3
    assert seen[3] == ["first", "quick", "quick too", "plain"]


def _raise(error: Exception) -> None:
    raise error


def test_what_the_work_raises_is_the_answer(desk: Desk) -> None:
    refusal = InvalidRequest("no")
    desk.thread.submit(lambda: _raise(refusal), desk.done.append, desk.failed.append)
    desk.thread.submit(lambda: _raise(RuntimeError("Already borrowed")), desk.done.append, desk.failed.append)
    desk.settle()
    assert desk.done == []
    assert desk.failed[0] is refusal
    assert isinstance(desk.failed[1], TokenizerError)
    assert "RuntimeError: Already borrowed" in desk.failed[1].message


def test_what_is_raised_over_a_result_is_the_answer_too(desk: Desk) -> None:
    """A defect in one request must not end the loop that runs everybody's outcomes."""
    refusal = InvalidRequest("no")
    desk.thread.submit(lambda: None, lambda _: _raise(refusal), desk.failed.append)
    desk.thread.submit(lambda: None, lambda _: _raise(KeyError("x")), desk.failed.append)
    desk.thread.submit(lambda: 1, desk.done.append, desk.failed.append)
    desk.settle()
    assert desk.failed[0] is refusal
    assert isinstance(desk.failed[1], ProtocolError)
    assert desk.done == [1]
