"""What is left for the next start comes back as it was."""

from __future__ import annotations

import dataclasses
import math
import stat
from pathlib import Path

import pytest

from mlx_serving.core.choices import Choices
from mlx_serving.core.generation import (
    ChatPrompt,
    Delta,
    FinishReason,
    GenerationRequest,
    GenerationStats,
    Logprobs,
    Prompt,
    SamplingParams,
    Structure,
    TextPrompt,
    TokenLogprob,
    TokenPrompt,
    ToolCallDelta,
    ToolChoice,
)
from mlx_serving.core.resumption import RequestLog, SequenceLog
from mlx_serving.errors import InvalidConfig
from mlx_serving.server.keys.hashing import hash_of
from mlx_serving.server.resume import file as resume_file

from ..conftest import LogLines

FULL = SamplingParams(
    max_tokens=9,
    temperature=0.5,
    logit_bias={3: -1.5},
    banned_token_ids=(1, 2),
    allowed_token_ids=(4,),
    bad_words=("no",),
    seed=2**64 - 1,
    stop=("\n", "\x00é"),
    logprobs=2,
)
PROMPTS: list[Prompt] = [
    TextPrompt("Hi é"),
    TokenPrompt((1, 2, 3)),
    ChatPrompt(({"role": "user", "content": [{"type": "text", "text": "é€🙈"}]},), {"deep": [1, None]}, ({"a": {}},)),
]
PLACE = Logprobs(TokenLogprob(1, -math.inf, b"\xff", special=True), (TokenLogprob(2, -0.5, b"a"),))
DELTAS = [
    Delta("a", (1,), logprobs=(PLACE,), reasoning="why"),
    Delta("b", (2, 3), tool_calls=(ToolCallDelta(0, "id", "name", "{"),)),
    Delta("", (), FinishReason.LENGTH, GenerationStats(1, 3, 0.1, 9.0, 0.3)),
]


def request(prompt: Prompt) -> GenerationRequest:
    return GenerationRequest(
        "cmpl-1",
        "org/model",
        prompt,
        FULL,
        priority="high",
        caller="someone",
        fork_of="cmpl-0",
        structure=Structure("json_schema", {"type": "object"}),
        parse_output=True,
        tool_choice=ToolChoice("required", "name", parallel=False),
        reasoning_budget=5,
    )


def log_of(*sequences: SequenceLog) -> RequestLog:
    return RequestLog(
        "cmpl-1", "chat", 1_700_000_000, "org/model", "f", True, True, True, Choices(1, 2), [*sequences], True, 5.5
    )


@pytest.mark.parametrize("prompt", PROMPTS, ids=["text", "tokens", "chat"])
def test_every_part_of_a_request_comes_back(tmp_path: Path, prompt: Prompt) -> None:
    file = tmp_path / "left"
    log, key = log_of(SequenceLog(request(prompt), DELTAS, 1), SequenceLog(request(prompt))), hash_of("key")
    resume_file.leave(file, [(log, key), (log, None)])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["left"]
    (back, back_key), (_, no_key) = resume_file.take(file)
    assert list(tmp_path.iterdir()) == []
    assert (back_key, no_key) == (key, None)
    for name in (field.name for field in dataclasses.fields(RequestLog) if field.name != "sequences"):
        assert getattr(back, name) == getattr(log, name)
    for one, other in zip(back.sequences, log.sequences, strict=True):
        assert one.request == other.request
        assert one.parts() == other.parts()
        assert (one.ended, one.next_request()) == (other.ended, other.next_request())


def test_every_field_of_a_request_is_kept() -> None:
    """Who adds one decides here what becomes of it."""
    elsewhere = {"model", "timeout_s", "delivered", "served"}
    kept = set(resume_file.SEQUENCE_FIELDS)
    assert {field.name for field in dataclasses.fields(GenerationRequest)} - elsewhere <= kept


def test_a_file_takes_the_place_of_the_last_one_or_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "left"
    log = log_of(SequenceLog(request(TextPrompt("Hi"))))
    resume_file.leave(file, [(log, None)])
    resume_file.leave(file, [(log, None), (log, None)])
    broken = log_of(SequenceLog(request(ChatPrompt(({"content": object()},)))))
    with pytest.raises(TypeError):
        resume_file.leave(file, [(broken, None)])
    assert len(list(tmp_path.iterdir())) == 1
    assert len(resume_file.take(file)) == 2


def test_no_file_and_an_empty_one_are_nothing(tmp_path: Path) -> None:
    file = tmp_path / "left"
    assert resume_file.take(file) == []
    file.touch()
    assert resume_file.take(file) == []


def test_what_is_not_ours_is_refused_and_stays(tmp_path: Path) -> None:
    file = tmp_path / "diary"
    file.write_text("dear diary")
    with pytest.raises(InvalidConfig, match=r"diary cannot be the resume file: it is something else") as refused:
        resume_file.take(file)
    assert refused.value.details["issues"][0]["path"] == "server.resume_file"  # pyright: ignore[reportIndexIssue]
    assert file.read_text() == "dear diary"


def test_damaged_files_are_kept_under_names_of_their_own(tmp_path: Path, log_lines: LogLines) -> None:
    file = tmp_path / "left"
    for cut in (1, 20):
        resume_file.leave(file, [(log_of(SequenceLog(request(TextPrompt("secret prompt")))), None)])
        file.write_bytes(file.read_bytes()[:-cut])
        assert resume_file.take(file) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["left.damaged", "left.damaged1"]
    told = [line for line in log_lines if line["event"] == "resume file damaged"]
    assert [line["file"] for line in told] == [str(file)] * 2
    assert "secret prompt" not in str(told)


@pytest.mark.parametrize(("name", "problem"), [("missing/left", "there is no directory"), (".", "it is a directory")])
def test_a_place_where_nothing_can_be_written_is_told_at_once(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(InvalidConfig, match=problem):
        resume_file.check(tmp_path / name)


def test_only_the_same_key_has_the_same_hash() -> None:
    made = hash_of("key")
    assert made.matches("key")
    assert not made.matches("other")
    assert not made.matches(None)
    assert hash_of("key") != made
    assert b"key" not in made.digest
