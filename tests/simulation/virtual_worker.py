"""The worker's program without threads, files and MLX: its own handlers and its own generation on a virtual device.

The loop is that of `worker.loop`, with the time that its work takes; loading is a wait that tells of its progress.
"""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import msgspec

from mlx_serving.core.sampling_defaults import SamplingDefaults
from mlx_serving.core.schedule.prefill_memory import PrefillMemory
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.core.scheduler import Scheduler
from mlx_serving.errors import EngineError, ModelLoadError
from mlx_serving.wire import jsonrpc, methods
from mlx_serving.wire.framing import Line, MessageReader
from mlx_serving.wire.notifications import Heartbeat, ModelProgress, Notification, encode_binary
from mlx_serving.worker.embedding.embeddings import Embeddings
from mlx_serving.worker.embedding.handlers import EmbedHandlers
from mlx_serving.worker.generation import Generation
from mlx_serving.worker.heartbeat import Progress
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.loading.loaded_models import LoadedModels
from mlx_serving.worker.output_style import OutputStyle
from mlx_serving.worker.pipe import Outbox
from mlx_serving.worker.routes import Reply
from mlx_serving.worker.speculation.pairs import DraftPairs
from mlx_serving.worker.stream_handlers import StreamHandlers
from mlx_serving.worker.tokenizer_thread import TokenizerThread
from mlx_serving.worker.vision.pictures import Prepared

from .virtual_model import END_OF_TEXT, VOCABULARY, DeviceAbort, VirtualRunner, decode
from .virtual_process import Death, VirtualProcess
from .virtual_time import VirtualTime

T = TypeVar("T")

START_S = 0.3
LOAD_PIECES, LOAD_PIECE_S = 4, 0.25
TOKENIZE_S = 0.002
IDLE_S = 0.05
"""How long the loop waits when it has sequences and nothing to compute."""


@dataclass(slots=True)
class Fate:
    """What is wrong with the machine: counts of what goes wrong next."""

    failing_spawns: int = 0
    aborting_starts: int = 0
    failing_loads: int = 0
    aborting_loads: int = 0

    def heal(self) -> None:
        self.failing_spawns = self.aborting_starts = self.failing_loads = self.aborting_loads = 0


class _Outbox:
    def __init__(self, process: VirtualProcess) -> None:
        self._process = process

    def notify(self, notification: Notification) -> None:
        self.send(encode_binary(notification))

    def send(self, data: bytes) -> None:
        assert self._process.is_alive, "a dead process speaks"
        self._process.connection.say(data)


class _Tokenizers:
    """Its thread is a pause."""

    def __init__(self, post: Callable[[Callable[[], None]], None]) -> None:
        self._post = post

    def submit(
        self,
        work: Callable[[], T],
        done: Callable[[T], None],
        failed: Callable[[EngineError], None],
        *,
        quick: bool,
    ) -> None:
        assert not quick

        def settle() -> None:
            try:
                done(work())
            except EngineError as error:
                failed(error)

        asyncio.get_running_loop().call_later(TOKENIZE_S, self._post, settle)


class _Tokenizer:
    def prepare(self, prompt: Any) -> Prepared:
        return Prepared(list(prompt.token_ids))

    def expected(self, prediction: str | None) -> tuple[int, ...]:
        assert prediction is None
        return ()

    def banned_sequences(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        assert not words
        return ()


class VirtualWorker:
    """`stuck`: its device takes for ever from now on. `culprit` is the stream that killed it."""

    def __init__(
        self,
        process: VirtualProcess,
        clock: VirtualTime,
        fate: Fate,
        policy: SchedulerPolicy,
        unbatchable: frozenset[str],
    ) -> None:
        self.process = process
        self.stuck = False
        self.culprit: str | None = None
        self.scheduler = Scheduler(policy)
        self.generation = Generation(self.scheduler)
        self._clock = clock
        self._fate = fate
        self._unbatchable = unbatchable
        self._reader = MessageReader(frames=False)
        self._inbox: deque[Line | Callable[[], None]] = deque()
        self._arrived = asyncio.Event()
        self._stopping = False
        self._progress = Progress()
        self._models = LoadedModels()
        self._unloading: dict[str, list[Reply[methods.SuccessResult]]] = {}
        self._outbox = cast("Outbox", _Outbox(process))
        tokenizers = cast("TokenizerThread", _Tokenizers(self._put))
        embeds = EmbedHandlers(self._outbox, self._models, Embeddings(policy, lambda: 0), tokenizers)
        self.streams = StreamHandlers(
            self._outbox,
            self._models,
            self.generation,
            tokenizers,
            tokenizers,
            SamplingDefaults(),
            embeds,
            DraftPairs(),
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._run(self._live())

    def received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            assert isinstance(message, Line)
            self._put(message)

    def end(self) -> None:
        for task in self._tasks:
            task.cancel()

    def babble(self) -> None:
        """Say what is no message."""
        self.process.connection.say(b"\xc1\x00\x00\x00\x02\xc1\xc1")

    # -- the loop

    def _put(self, command: Line | Callable[[], None]) -> None:
        self._inbox.append(command)
        self._arrived.set()

    async def _live(self) -> None:
        try:
            await self._spend(START_S)
            if self._fate.aborting_starts:
                self._fate.aborting_starts -= 1
                raise DeviceAbort
            await self._work()
        except DeviceAbort as abort:
            self.culprit = abort.culprit
            await self._spend(self._clock.settle())
            self.process.die(Death(signal=signal.SIGABRT))
        else:
            self.process.die(Death(exit_code=0))

    async def _work(self) -> None:
        while True:
            idle = len(self.generation) == 0
            self._progress.busy = not idle
            if idle and not self._inbox:
                self._arrived.clear()
                await self._arrived.wait()
                await self._run_on()
            while self._inbox:
                self._progress.busy = True
                await self._handle(self._inbox.popleft())
                self._progress.advance()
                if self._stopping:
                    return
            frame = self.generation.step()
            await self._spend(self._clock.settle() or (IDLE_S if len(self.generation) else 0.0))
            self._progress.advance()
            if frame is not None:
                self._outbox.notify(frame)
            self._finish_unloading()

    async def _spend(self, seconds: float) -> None:
        """Time that passes for a process that is neither stopped nor stuck."""
        await asyncio.sleep(seconds)
        if self.stuck:
            await _for_ever()
        await self._run_on()

    async def _run_on(self) -> None:
        if self.process.stopped:
            await _for_ever()

    def _run(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        task.add_done_callback(_report)

    async def _beat(self, interval_s: float) -> None:
        while True:
            if not self.process.stopped:
                self._outbox.notify(Heartbeat(self._progress.count, self._progress.busy))
            await asyncio.sleep(interval_s)

    async def _handle(self, command: Line | Callable[[], None]) -> None:
        if not isinstance(command, Line):
            command()
            return
        request = jsonrpc.parse_request(command.data)
        reply: Reply[Any] = Reply(self._outbox, request.id)
        try:
            await self._answer(request.method, request.params, reply)
        except EngineError as error:
            reply.fail(error)

    async def _answer(self, method: str, raw: msgspec.Raw, reply: Reply[Any]) -> None:
        match method:
            case methods.RUNTIME_INFO.name:
                asked = jsonrpc.parse_params(raw, methods.RuntimeInfoParams)
                assert asked.heartbeat_interval_s is not None
                reply.send(_info(self.process.pid))
                self._run(self._beat(asked.heartbeat_interval_s))
            case methods.SHUTDOWN.name:
                self._stopping = True
            case methods.LOAD_MODEL.name:
                reply.send(await self._load(jsonrpc.parse_params(raw, methods.LoadModelParams).model_id))
            case methods.UNLOAD_MODEL.name:
                self._unload(jsonrpc.parse_params(raw, methods.UnloadModelParams), reply)
            case methods.GENERATE.name:
                self.streams.generate(jsonrpc.parse_params(raw, methods.GenerateParams), reply)
            case methods.ABORT.name:
                self.streams.abort(jsonrpc.parse_params(raw, methods.AbortParams), reply)
            case _:
                raise AssertionError(f"nobody calls {method} here")

    # -- models, as in `worker.model_handlers`

    async def _load(self, model_id: str) -> methods.LoadModelResult:
        assert not self._models.is_leaving(model_id)
        loaded = self._models.find(model_id)
        if loaded is not None:
            return loaded.facts
        for done in range(LOAD_PIECES):
            self._progress.advance()
            self._outbox.notify(ModelProgress(model_id, "weights", done, LOAD_PIECES))
            await self._spend(LOAD_PIECE_S)
        if self._fate.aborting_loads:
            self._fate.aborting_loads -= 1
            raise DeviceAbort
        if self._fate.failing_loads:
            self._fate.failing_loads -= 1
            raise ModelLoadError(f"{model_id} cannot be read")
        loaded = self._make(model_id)
        self._models.add(loaded)
        self.generation.models.add(loaded)
        return loaded.facts

    def _make(self, model_id: str) -> LoadedModel:
        return LoadedModel(
            facts=_facts(model_id, batching=model_id not in self._unbatchable),
            model=cast("Any", None),
            tokenizer=cast("Any", _Tokenizer()),
            structures=cast("Any", None),
            decode=decode,
            token_bytes=cast("Any", None),
            generation_config={},
            eos_token_ids=frozenset({END_OF_TEXT}),
            spared_token_ids=frozenset(),
            make_runner=lambda model, capabilities, padding, kv: cast("Any", VirtualRunner(self._clock)),
            kv_bytes_per_token=1,
            prefill_memory=PrefillMemory(),
            output=OutputStyle(),
            knows_tools=False,
            decode_marked=decode,
            fingerprint=model_id,
            cuttable=True,
        )

    def _unload(self, asked: methods.UnloadModelParams, reply: Reply[methods.SuccessResult]) -> None:
        model_id = asked.model_id
        if asked.force:
            self.streams.abort_all(model_id)
        if model_id not in self._models:
            reply.send(methods.SuccessResult())
            return
        self._models.leave(model_id)
        self._unloading.setdefault(model_id, []).append(reply)
        self._finish_unloading()

    def _finish_unloading(self) -> None:
        for model_id in [model_id for model_id in self._unloading if self.streams.count(model_id) == 0]:
            self._models.remove(model_id)
            self.generation.models.remove(model_id)
            for reply in self._unloading.pop(model_id):
                reply.send(methods.SuccessResult())


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        task.get_loop().call_exception_handler({"message": "a worker is defective", "exception": task.exception()})


def _info(pid: int) -> methods.RuntimeInfoResult:
    return methods.RuntimeInfoResult(
        version="0",
        mlx_version="0",
        mlx_lm_version="0",
        protocol=methods.PROTOCOL_VERSION,
        protocols=list(methods.PROTOCOLS),
        notifications=methods.STEP_FRAMES,
        capabilities=[],
        mlx_supported=False,
        device="virtual",
        metal=False,
        blas=methods.BlasInfo("", ""),
        memory=methods.MemoryInfo(0, 0, 0, 0, 0),
        pid=pid,
    )


def _facts(model_id: str, *, batching: bool) -> methods.LoadModelResult:
    return methods.LoadModelResult(
        model_id=model_id,
        state="ready",
        context_length=1000,
        parameter_count=0,
        dtype="",
        is_vision_model=False,
        cached_path="",
        model_type="virtual",
        vocab_size=VOCABULARY,
        memory_bytes=0,
        has_chat_template=False,
        capabilities=methods.ModelCapabilities(
            batch=batching, batch_prefill=batching, trim=True, quantise_cache=False, draft=False
        ),
        config_digest="",
        quantization=None,
        eos_token_ids=[END_OF_TEXT],
    )
