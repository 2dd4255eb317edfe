"""The file in which a server leaves unfinished requests for its next start.

A line that says what it is, then MessagePack. Only its owner may read it: it holds prompts and answers, and salted
hashes of keys.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias, assert_never

import msgspec

from mlx_serving.core.choices import Choices
from mlx_serving.core.generation import (
    ChatPrompt,
    Delta,
    EmbeddingInputs,
    GenerationRequest,
    Priority,
    Prompt,
    SamplingParams,
    Structure,
    TextPrompt,
    TokenPrompt,
    ToolChoice,
)
from mlx_serving.core.resumption import Api, RequestLog, SequenceLog
from mlx_serving.core.speculation.request import Speculation
from mlx_serving.errors import InvalidConfig
from mlx_serving.server.keys.hashing import KeyHash
from mlx_serving.telemetry.logger import get_logger

_log = get_logger("mlx_serving.server")
_HEADER = b"mlx-serving unfinished requests 1\n"


class _Text(msgspec.Struct, tag="text"):
    text: str


class _Tokens(msgspec.Struct, tag="tokens"):
    token_ids: tuple[int, ...]


class _Chat(msgspec.Struct, tag="chat"):
    messages: tuple[dict[str, Any], ...]
    template_kwargs: dict[str, Any]
    tools: tuple[dict[str, Any], ...]


_Prompt: TypeAlias = _Text | _Tokens | _Chat


class _Sequence(msgspec.Struct):
    """A `GenerationRequest` but for what its log has or its next server decides, and what became of it."""

    request_id: str
    prompt: _Prompt
    sampling: SamplingParams
    priority: Priority
    caller: str
    fork_of: str | None
    structure: Structure | None
    parse_output: bool
    tool_choice: ToolChoice
    reasoning_budget: int | None
    sent: tuple[Delta, ...]
    unsent: tuple[Delta, ...]
    cut_to_fit: bool = False
    cache_salt: str = ""
    speculation: Speculation = Speculation()


class _Request(msgspec.Struct):
    completion_id: str
    api: Api
    created: int
    model: str
    system_fingerprint: str
    stream: bool
    include_usage: bool
    logprobs: bool
    n: int
    best_of: int
    opened: bool
    cut_at: float
    key: KeyHash | None
    sequences: list[_Sequence]
    service_tier: str | None = None
    facts: dict[str, Any] = {}
    events: int = 0


SEQUENCE_FIELDS = _Sequence.__struct_fields__

Saved: TypeAlias = tuple[RequestLog, KeyHash | None]
"""A request, and the hash of the key that made it; None if keys were off."""


def check(path: Path) -> None:
    """Raises `InvalidConfig` when nothing could be written there, told at the start and not at the end."""
    directory = path.parent
    if not directory.is_dir():
        raise _refused(path, f"there is no directory {directory}")
    if path.is_dir():
        raise _refused(path, "it is a directory")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise _refused(path, f"the directory {directory} cannot be written to")


def take(path: Path) -> list[Saved]:
    """What the last server left there, in its order; the file is gone then.

    A file of ours that is damaged is kept under another name, which is logged, and nothing is resumed. Raises
    `InvalidConfig` for a file that cannot be read and for one that is not ours, which stays as it is.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _refused(path, f"it cannot be read: {error.strerror}") from None
    if data and not data.startswith(_HEADER):
        raise _refused(path, "it is something else; it was left as it is")
    saved: list[Saved] = []
    if data:
        try:
            saved = [_restored(each) for each in msgspec.msgpack.decode(data[len(_HEADER) :], type=list[_Request])]
        except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
            kept = _set_aside(path)
            _log.error("resume file damaged", file=str(path), kept_as=str(kept), problem=str(error))
            return []
    path.unlink(missing_ok=True)
    return saved


def leave(path: Path, requests: Sequence[Saved]) -> None:
    """Write them for the next start: all or nothing. Raises OSError."""
    data = _HEADER + msgspec.msgpack.encode([_saved(request, key) for request, key in requests])
    # Made readable for nobody else, in the same directory, so that it can take the place of the file in one step.
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise


def _set_aside(path: Path) -> Path:
    number = 0
    while (kept := path.with_name(f"{path.name}.damaged{number or ''}")).exists():
        number += 1
    return path.rename(kept)


def _refused(path: Path, why: str) -> InvalidConfig:
    message = f"{path} cannot be the resume file: {why}"
    return InvalidConfig(
        message,
        issues=[
            {
                "path": "server.resume_file",
                "message": message,
                "suggestion": "name a file that only this server writes, in a directory that it can write to",
            }
        ],
    )


def _saved(log: RequestLog, key: KeyHash | None) -> _Request:
    assert log.cut_at is not None  # it was cut off
    return _Request(
        completion_id=log.completion_id,
        api=log.api,
        created=log.created,
        model=log.model,
        system_fingerprint=log.system_fingerprint,
        stream=log.stream,
        include_usage=log.include_usage,
        logprobs=log.logprobs,
        n=log.choices.n,
        best_of=log.choices.best_of,
        opened=log.opened,
        cut_at=log.cut_at,
        key=key,
        sequences=[_saved_sequence(sequence) for sequence in log.sequences],
        service_tier=log.service_tier,
        facts=dict(log.facts),
        events=log.events,
    )


def _saved_sequence(sequence: SequenceLog) -> _Sequence:
    request, (sent, unsent) = sequence.request, sequence.parts()
    return _Sequence(
        request_id=request.request_id,
        prompt=_saved_prompt(request.prompt),
        sampling=request.sampling,
        priority=request.priority,
        caller=request.caller,
        fork_of=request.fork_of,
        structure=request.structure,
        parse_output=request.parse_output,
        tool_choice=request.tool_choice,
        reasoning_budget=request.reasoning_budget,
        cut_to_fit=request.cut_to_fit,
        cache_salt=request.cache_salt,
        speculation=request.speculation,
        sent=sent,
        unsent=unsent,
    )


def _saved_prompt(prompt: Prompt | EmbeddingInputs) -> _Prompt:
    match prompt:
        case EmbeddingInputs():
            raise TypeError("requests for vectors are not written: whoever asks again gets the same")
        case TextPrompt():
            return _Text(prompt.text)
        case TokenPrompt():
            return _Tokens(prompt.token_ids)
        case ChatPrompt():
            messages, tools = map(_plain, prompt.messages), map(_plain, prompt.tools)
            return _Chat(tuple(messages), _plain(prompt.template_kwargs), tuple(tools))
        case _:
            assert_never(prompt)


def _plain(value: Mapping[str, object]) -> dict[str, Any]:
    return dict(value)


def _restored(saved: _Request) -> Saved:
    log = RequestLog(
        completion_id=saved.completion_id,
        api=saved.api,
        created=saved.created,
        model=saved.model,
        system_fingerprint=saved.system_fingerprint,
        stream=saved.stream,
        include_usage=saved.include_usage,
        logprobs=saved.logprobs,
        choices=Choices(saved.n, saved.best_of),
        sequences=[_restored_sequence(each, saved.model) for each in saved.sequences],
        opened=saved.opened,
        cut_at=saved.cut_at,
        service_tier=saved.service_tier,
        facts=saved.facts,
        events=saved.events,
    )
    return log, saved.key


def _restored_sequence(saved: _Sequence, model: str) -> SequenceLog:
    request = GenerationRequest(
        request_id=saved.request_id,
        model=model,
        prompt=_restored_prompt(saved.prompt),
        sampling=saved.sampling,
        priority=saved.priority,
        caller=saved.caller,
        fork_of=saved.fork_of,
        structure=saved.structure,
        parse_output=saved.parse_output,
        tool_choice=saved.tool_choice,
        reasoning_budget=saved.reasoning_budget,
        cut_to_fit=saved.cut_to_fit,
        cache_salt=saved.cache_salt,
        speculation=saved.speculation,
    )
    return SequenceLog.of_parts(request, saved.sent, saved.unsent)


def _restored_prompt(saved: _Prompt) -> Prompt:
    match saved:
        case _Text():
            return TextPrompt(saved.text)
        case _Tokens():
            return TokenPrompt(saved.token_ids)
        case _Chat():
            return ChatPrompt(saved.messages, saved.template_kwargs, saved.tools)
        case _:
            assert_never(saved)
