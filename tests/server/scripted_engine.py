"""A `ServingEngine` that does what a test tells it to, and remembers what was asked of it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from mlx_serving.core.alias_table import AliasTable, AliasView, Target
from mlx_serving.core.batch_queue import BatchQueueStats
from mlx_serving.core.generation import (
    ChatPrompt,
    Delta,
    Embedding,
    EmbeddingInputs,
    FinishReason,
    GenerationRequest,
    GenerationStats,
    Logprobs,
    TokenLogprob,
)
from mlx_serving.core.model_profile import NO_PROFILE, ModelProfile
from mlx_serving.core.response_index import ResponseCacheStats
from mlx_serving.core.serving import (
    EngineTelemetry,
    HealthReport,
    ReuseStats,
    ServedModel,
    WorkerHealth,
    WorkerTelemetry,
)
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.errors import EngineError, ModelNotFound
from mlx_serving.wire.methods import TokenizeResult

PROMPT_TOKENS = 7
HEALTHY = HealthReport("healthy", 12.5, 0, ("tiny",), (WorkerHealth("ready", since=1_700_000_000.0, pid=4711),))
TELEMETRY = EngineTelemetry(
    uptime_s=12.5,
    active_streams=1,
    worker_state="ready",
    worker_restarts=2,
    batch_queue=BatchQueueStats(1, 3, 0, 0, 0, 0, 0, 0, 3.0),
    runtime=None,
    workers=(WorkerTelemetry("ready", 2, 1, None),),
)
REUSE = ReuseStats(4, 1, ResponseCacheStats(3, 30, 300, 2, 1, 5, 1, 1))
TINY = ServedModel("tiny", "org/tiny", 1_700_000_000, "ready", context_length=2048, default=True)
OTHER = ServedModel("org/other", "org/other", 1_700_000_001, "absent")


@dataclass(frozen=True)
class Script:
    """Refuse at entry, or deliver the pieces and then end, fail, stop without a word, or hang.

    A piece is text, or a delta of anything else. `logprob` is what every token has, if log-probabilities are asked for.
    `drafted` says how, and how many tokens were drafted and accepted.
    """

    pieces: tuple[str | Delta, ...] = ("Hello", " world")
    last_text: str = ""
    stop: str | None = None
    finish: FinishReason = FinishReason.STOP
    refusal: Exception | None = None
    failure: Exception | None = None
    hang: bool = False
    hang_at_entry: bool = False
    end_silently: bool = False
    without_stats: bool = False
    cached_tokens: int = 0
    logprob: float = -1.0
    drafted: tuple[str | None, int, int] = (None, 0, 0)


@dataclass
class Run:
    """One generation as the engine saw it."""

    request: GenerationRequest
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    delivered: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    finished: bool = False
    taken: int = 0  # pieces that were asked for

    @property
    def aborted(self) -> bool:
        return self.left.is_set() and not self.finished


class ScriptedEngine:
    """Plays one of `scripts` for each generation, in their order, and `script` when there are none left."""

    def __init__(self) -> None:
        self._started: asyncio.Queue[Run] = asyncio.Queue()
        self.reset()

    def reset(self) -> None:
        self.script = Script()
        self.scripts: list[Script] = []
        self.runs: list[Run] = []
        self.models: list[ServedModel] = [TINY, OTHER]
        self.aliases = AliasTable({"configured": Target("tiny")})
        self.report: HealthReport | Exception = HEALTHY
        self.loads: list[tuple[str, str | None, str | None, bool]] = []
        self.tokenized: list[tuple[str, object, bool]] = []
        self.forms: list[WeightOptions | None] = []
        self.stays: list[tuple[bool | None, float | None]] = []
        self.unloads: list[tuple[str, bool]] = []
        self.restarts = 0
        self.unstartable: EngineError | None = None
        self.work_done = 0
        self._started = asyncio.Queue()

    @property
    def last_request(self) -> GenerationRequest:
        return self.runs[-1].request

    async def next_run(self) -> Run:
        """The next generation that is asked for, as soon as it is."""
        return await asyncio.wait_for(self._started.get(), 10)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        script, run = self.scripts.pop(0) if self.scripts else self.script, Run(request)
        self.runs.append(run)
        self._started.put_nowait(run)
        run.entered.set()
        try:
            if script.hang_at_entry:
                await asyncio.Event().wait()
            if script.refusal is not None:
                raise script.refusal
            if request.served is not None:
                request.served.prompt_tokens = PROMPT_TOKENS
            yield self._deltas(script, run)
        finally:
            run.left.set()

    async def _deltas(self, script: Script, run: Run) -> AsyncIterator[Delta]:
        inputs = run.request.prompt
        if isinstance(inputs, EmbeddingInputs):
            for place in reversed(range(len(inputs.inputs))):
                yield Delta("", embeddings=(Embedding(place, vector_of(place), 2),))
        for index, piece in enumerate(script.pieces):
            await asyncio.sleep(0)
            run.taken = index + 1
            if isinstance(piece, Delta):
                yield replace(piece, token_ids=(index,))
            else:
                yield Delta(piece, (index,), logprobs=_logprobs(run.request, index, piece, script.logprob))
        run.delivered.set()
        if script.hang:
            await asyncio.Event().wait()
        if script.failure is not None:
            raise script.failure
        if script.end_silently:
            return
        count = len(script.pieces)
        stats = (
            None
            if script.without_stats
            else GenerationStats(
                PROMPT_TOKENS,
                count,
                0.01,
                100.0,
                0.03,
                script.cached_tokens,
                drafted_tokens=script.drafted[1],
                accepted_tokens=script.drafted[2],
                speculation=script.drafted[0],
            )
        )
        run.finished = True
        yield Delta(script.last_text, (), script.finish, stats, stop=script.stop)

    def served_models(self) -> Sequence[ServedModel]:
        return tuple(self.models)

    async def health(self) -> HealthReport:
        if isinstance(self.report, Exception):
            raise self.report
        return self.report

    def progress(self) -> int:
        return self.work_done

    async def telemetry(self) -> EngineTelemetry:
        return TELEMETRY

    async def load_served(
        self,
        reference: str,
        *,
        name: str | None,
        revision: str | None,
        replace: bool = False,
        weights: WeightOptions | None = None,
        pinned: bool | None = None,
        keep_alive_s: float | None = None,
    ) -> ServedModel:
        self.loads.append((reference, name, revision, replace))
        self.forms.append(weights)
        self.stays.append((pinned, keep_alive_s))
        if reference == "org/missing":
            raise ModelNotFound(f"There is no model {reference!r}", model=reference)
        return ServedModel(name or reference, reference, 1_700_000_002, "ready", context_length=512)

    def list_aliases(self) -> list[AliasView]:
        return self.aliases.views()

    async def set_alias(
        self, name: str, model: str, *, revision: str | None = None, profile: ModelProfile = NO_PROFILE
    ) -> AliasView:
        if model == "org/missing":
            raise ModelNotFound(f"There is no model {model!r}", model=model)
        self.aliases = self.aliases.with_target(name, Target(model, profile, 1_700_000_003.0, revision=revision))
        return self.aliases.view(name)

    async def roll_back_alias(self, name: str) -> AliasView | None:
        self.aliases = self.aliases.rolled_back(name, is_served=name in {model.name for model in self.models})
        return None if self.aliases.target(name) is None else self.aliases.view(name)

    def remove_alias(self, name: str) -> None:
        self.aliases = self.aliases.without(name)

    async def unload_served(self, name: str, *, force: bool) -> None:
        if name not in {model.name for model in self.models}:
            raise ModelNotFound(f"The model {name!r} is not served", model=name)
        self.unloads.append((name, force))

    async def tokenize(self, name: str, text: str, *, add_special_tokens: bool = True) -> TokenizeResult:
        self.tokenized.append((name, text, add_special_tokens))
        return TokenizeResult([1, 2], ["He", "llo"])

    async def tokenize_chat(self, name: str, prompt: ChatPrompt) -> TokenizeResult:
        self.tokenized.append((name, prompt, True))
        return TokenizeResult([1, 2, 3], ["<s>", "He", "llo"])

    async def detokenize(self, name: str, token_ids: Sequence[int]) -> str:
        self.tokenized.append((name, tuple(token_ids), True))
        return "Hello"

    def reuse(self) -> ReuseStats:
        return REUSE

    async def clear_responses(self) -> int:
        return 3

    async def restart_workers(self) -> None:
        self.restarts += 1
        if self.unstartable is not None:
            raise self.unstartable


def vector_of(place: int) -> bytes:
    """What the input at this place is made into."""
    return struct.pack("<2f", place / 8, 1 - place / 8)


def _logprobs(request: GenerationRequest, token_id: int, piece: str, logprob: float) -> tuple[Logprobs, ...]:
    """If they are asked for: the piece's, and each other token's is 1 less than the one before."""
    count = request.sampling.logprobs
    if count is None:
        return ()
    top = tuple(TokenLogprob(100 + place, logprob - 1 - place, b"other%d" % place) for place in range(count))
    return (Logprobs(TokenLogprob(token_id, logprob, piece.encode()), top),)
