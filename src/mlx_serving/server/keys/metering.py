"""A Backend layer that holds each caller to the limits of the API key that it sent, and all to those of an answer.

Who that is, the access record of the request tells, which `auth` has written it to. So the limits hold for every API
that this server speaks, without any of them knowing of it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Self

from mlx_serving.core.generation import (
    ChatPrompt,
    Delta,
    EmbeddingInputs,
    GenerationRequest,
    Priority,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from mlx_serving.core.key_usage import KeyLimits, Refusal
from mlx_serving.errors import Forbidden, InvalidRequest, QuotaExceeded, RateLimited
from mlx_serving.server.http.access_log import AccessRecord, current_record
from mlx_serving.server.json_values import as_array, as_object
from mlx_serving.server.keys.ring import KeyHolder, KeyRing
from mlx_serving.server.ports import ServingEngine

_UNKEYED = "user:"
# Guesses that are put right when the worker has counted.
_CHARS_PER_TOKEN = 4
_TOKENS_PER_PICTURE = 576  # 24 by 24 patches


class MeteredEngine:
    """The engine for callers with limits. What is not said here is the engine's."""

    def __init__(self, engine: ServingEngine, keys: KeyRing, max_bytes: Callable[[], int | None]) -> None:
        """`max_bytes` of text that one request may get; it may be another one from one to the next."""
        self._engine = engine
        self._keys = keys
        self._max_bytes = max_bytes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        """See `core.generation.Backend`. Raises `Forbidden`, `RateLimited` and `QuotaExceeded`, and `InvalidRequest`
        when the answer gets too long.

        Several answers to one prompt are one request.
        """
        record = current_record()
        if record is not None:
            request = replace(request, served=record.served)
        holder = None if record is None else record.holder
        if record is None or holder is None:
            if self._keys and request.caller:
                # Who has no key of its own may say any name, but not that of a key: those have no colon.
                request = replace(request, caller=f"{_UNKEYED}{request.caller}")
            async with self._engine.generate(request) as deltas:
                _note_acceptance(record)
                yield self._bounded(deltas, record)
            return
        require_model(holder.limits, request.model)
        if request.speculation.draft_model is not None:
            require_model(holder.limits, request.speculation.draft_model, "draft_model")
        request = replace(request, caller=holder.name, priority=granted(request.priority, holder))
        counts = request.fork_of is None
        usage = holder.usage
        if counts and (refusal := usage.enter(time.monotonic(), time.time())) is not None:
            raise _refused(holder.name, refusal)
        metered = _Metered(holder, self._keys, guess_tokens(request.prompt) if counts else 0)
        try:
            async with self._engine.generate(request) as deltas:
                _note_acceptance(record)
                yield self._bounded(metered.reading(deltas), record)
        except BaseException:
            if not metered.accepted:
                metered.give_back()
            raise
        finally:
            if counts:
                usage.leave()

    def _bounded(self, deltas: AsyncIterator[Delta], record: AccessRecord | None) -> AsyncIterator[Delta]:
        limit = self._max_bytes()
        return deltas if record is None or limit is None else _bounded(deltas, record, limit)


async def _bounded(deltas: AsyncIterator[Delta], record: AccessRecord, limit: int) -> AsyncIterator[Delta]:
    async for delta in deltas:
        said = (delta.text, delta.reasoning, *(call.arguments for call in delta.tool_calls))
        record.answer_bytes += sum(len(text.encode()) for text in said)
        if record.answer_bytes > limit:
            raise InvalidRequest(
                f"The answer is longer than {limit} bytes, which is the limit here; ask for fewer tokens",
                field="max_tokens",
                limit=limit,
            )
        yield delta


class _Metered:
    """Deltas whose tokens are counted as they come. Those of the prompt are guessed at first, so that a prompt that is
    not waited for is not free."""

    def __init__(self, holder: KeyHolder, keys: KeyRing, prompt_tokens: int) -> None:
        self.accepted = False
        self._holder = holder
        self._keys = keys
        self._prompt_tokens = prompt_tokens
        self._deltas: AsyncIterator[Delta] | None = None
        self._spend(prompt_tokens)

    def reading(self, deltas: AsyncIterator[Delta]) -> Self:
        self.accepted = True
        self._deltas = deltas
        return self

    def give_back(self) -> None:
        """It was refused: nothing was computed."""
        self._spend(-self._prompt_tokens)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        assert self._deltas is not None
        delta = await anext(self._deltas)
        tokens = len(delta.token_ids)
        if delta.stats is not None and self._prompt_tokens:
            tokens += delta.stats.prompt_tokens - self._prompt_tokens
        if tokens:
            self._spend(tokens)
        return delta

    def _spend(self, tokens: int) -> None:
        self._holder.usage.spend(tokens, time.monotonic(), time.time())
        if self._holder.limits.daily_tokens is not None:
            self._keys.spent_changed()


def _note_acceptance(record: AccessRecord | None) -> None:
    if record is not None and record.accepted_s is None:
        record.accepted_s = time.monotonic() - record.started


def require_model(limits: KeyLimits, model: str, field: str = "model") -> None:
    """Raises `Forbidden` for a model that the key is not for."""
    if not limits.allows(model):
        allowed = ", ".join(sorted(limits.models or ())) or "no model"
        raise Forbidden(f"This API key is not for the model {model!r}; it is for: {allowed}", field=field, given=model)


_RANKS: Sequence[Priority] = ("critical", "high", "normal", "low", "background")


def granted(asked: Priority, holder: KeyHolder | None) -> Priority:
    """The priority that a request gets. It may ask for less than its key has, and not for more; `normal` is what asks
    for nothing. Without a key of its own it gets what it asks for."""
    if holder is None:
        return asked
    if asked == "normal":
        return holder.limits.priority
    return _RANKS[max(_RANKS.index(asked), _RANKS.index(holder.limits.priority))]


def guess_tokens(prompt: Prompt | EmbeddingInputs) -> int:
    """Tokens of the prompt, at least 1."""
    match prompt:
        case EmbeddingInputs():
            longer = sum(map(len, prompt.queries)) * (len(prompt.inputs) if len(prompt.queries) == 1 else 1)
            tokens = sum(len(each) for each in prompt.inputs if not isinstance(each, str))
            chars = sum(len(each) for each in prompt.inputs if isinstance(each, str)) + longer
            return max(1, tokens + chars // _CHARS_PER_TOKEN)
        case TokenPrompt():
            return max(1, len(prompt.token_ids))
        case TextPrompt():
            chars = len(prompt.text)
        case ChatPrompt():
            chars = sum(_chars(message.get("content")) for message in prompt.messages)
            pictures = len(prompt.images) + len(prompt.sources)
            return max(1, chars // _CHARS_PER_TOKEN + pictures * _TOKENS_PER_PICTURE)
    return max(1, chars // _CHARS_PER_TOKEN)


def _chars(content: object) -> int:
    parts = as_array(content)
    if parts is None:
        return len(str(content or ""))
    return sum(len(str((as_object(part) or {}).get("text") or "")) for part in parts)


def _refused(name: str, refusal: Refusal) -> RateLimited:
    cls = QuotaExceeded if refusal.what == "tokens per day" else RateLimited
    return cls(
        f"The API key {name} has reached its limit of {refusal.limit} {refusal.what}",
        retry_after=refusal.retry_after_s,
        limit=refusal.limit,
        what=refusal.what,
    )
