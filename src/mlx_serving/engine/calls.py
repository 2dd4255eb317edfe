"""Calls of workers that are no generation: what they know, and what their tokenizers say."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from mlx_serving.core import retry
from mlx_serving.core.batch_queue import BatchQueueStats
from mlx_serving.core.generation import ChatPrompt
from mlx_serving.core.speculation.report import CompatibilityReport
from mlx_serving.engine.parts import Parts
from mlx_serving.engine.translation import tokenize_chat_params
from mlx_serving.engine.worker_client import WorkerClient
from mlx_serving.errors import EngineError
from mlx_serving.wire import methods
from mlx_serving.wire.methods import Method

P = TypeVar("P")
R = TypeVar("R")

CALL_TIMEOUT_S = 60.0
"""How long a call may take that is no generation."""


class CallingCore:
    """What `EngineCore` asks of workers. All of it can be asked again: it is, when the worker dies under it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def call(self, method: Method[P, R], params: P) -> R:
        """An idempotent call: repeated when the worker dies under it, as the retry policy allows."""

        async def once() -> R:
            client = await self._parts.pool.client()
            return await client.call(method, params, timeout_s=CALL_TIMEOUT_S)

        return await self._retrying(once)

    async def call_with_model(self, name: str, method: Method[P, R], make_params: Callable[[str], P]) -> R:
        """The same for a call that needs a model loaded; `make_params` gets the name that the worker knows it by."""

        async def call(client: WorkerClient, model_id: str) -> R:
            return await client.call(method, make_params(model_id), timeout_s=CALL_TIMEOUT_S)

        return await self._with_model(name, call)

    async def tokenize(self, name: str, text: str, *, add_special_tokens: bool = True) -> methods.TokenizeResult:
        """Text to the ids of a model, as `call_with_model`. Calls at the same time share messages to the worker."""

        async def call(client: WorkerClient, model_id: str) -> methods.TokenizeResult:
            params = methods.TokenizeParams(model_id=model_id, text=text, add_special_tokens=add_special_tokens)
            return await self._parts.batch_queue.tokenize(client, params)

        return await self._with_model(name, call)

    async def check_draft(self, primary: str, draft: str) -> CompatibilityReport:
        """Whether one model can draft for another, as `call_with_model`; both are loaded in one worker for it. Calls at
        the same time share messages to the worker."""

        async def once() -> CompatibilityReport:
            model, helper = (self._parts.aliases.resolve(name)[0] for name in (primary, draft))
            async with (
                self._parts.models.lease_in_worker(model, helper) as (worker, facts),
                worker.models.lease(helper, modest=True) as draft_facts,
            ):
                params = methods.CheckDraftParams(primary_id=facts.model_id, draft_id=draft_facts.model_id)
                return await self._parts.batch_queue.check_draft(await worker.supervisor.client(), params)

        return (await self._retrying(once)).called(primary, draft)

    async def tokenize_chat(self, name: str, prompt: ChatPrompt) -> methods.TokenizeResult:
        """The prompt that a model's template makes of a conversation, as `call_with_model`, with what the profile of
        the name says of prompts, and its pictures."""
        model, profile = self._parts.aliases.resolve(name)
        rendered = profile.prompt(prompt)
        assert isinstance(rendered, ChatPrompt)
        prompt = await self._parts.images.fill(model, rendered)

        def params(model_id: str) -> methods.TokenizeChatParams:
            return tokenize_chat_params(model_id, prompt)

        with self._parts.images.telling(model, rendered.sources):
            return await self.call_with_model(name, methods.TOKENIZE_CHAT, params)

    async def detokenize(self, name: str, token_ids: Sequence[int]) -> str:
        """Ids to text, special tokens included, as `call_with_model`."""

        def params(model_id: str) -> methods.DetokenizeParams:
            return methods.DetokenizeParams(model_id=model_id, tokens=list(token_ids))

        return (await self.call_with_model(name, methods.DETOKENIZE, params)).text

    def batch_stats(self) -> BatchQueueStats:
        """How calls shared messages."""
        return self._parts.batch_queue.stats()

    def reset_batch_stats(self) -> None:
        self._parts.batch_queue.reset_stats()

    def flush_batches(self) -> None:
        """Send at once what waits to share a message."""
        self._parts.batch_queue.flush()

    async def _with_model(self, name: str, call: Callable[[WorkerClient, str], Awaitable[R]]) -> R:
        async def once() -> R:
            model = self._parts.aliases.resolve(name)[0]
            async with self._parts.models.lease_in_worker(model) as (worker, facts):
                return await call(await worker.supervisor.client(), facts.model_id)

        return await self._retrying(once)

    async def _retrying(self, once: Callable[[], Awaitable[R]], of: type[EngineError] = EngineError) -> R:
        """Only errors `of` this kind are a reason to ask again."""
        attempt = 0.0
        while True:
            try:
                return await once()
            except of as error:
                if not retry.should_retry(error, attempt, self._parts.retry):
                    raise
                spent = retry.spent(error)
            await asyncio.sleep(retry.delay(self._parts.retry.backoff, attempt, random.random()))  # noqa: S311
            attempt += spent

    async def runtime_info(self) -> methods.RuntimeInfoResult:
        """What a worker says of itself, now."""
        binary = [methods.STEP_FRAMES, methods.PROTOCOL_VERSION]
        return await self.call(methods.RUNTIME_INFO, methods.RuntimeInfoParams(protocols=binary))

    async def runtime_state(self) -> methods.RuntimeStateResult:
        return await self.call(methods.RUNTIME_STATE, methods.NoParams())
