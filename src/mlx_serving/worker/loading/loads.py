"""Loads under way: one model at a time, in slices between the steps of others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from mlx_serving.errors import EngineError, ProtocolError
from mlx_serving.wire import methods
from mlx_serving.worker.embedding.loader import AnyLoading
from mlx_serving.worker.embedding.model import EmbeddingModel
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.loading.loader import Aside
from mlx_serving.worker.routes import Reply
from mlx_serving.worker.tokenizer_thread import TokenizerThread

LoadReply = Reply[methods.LoadModelResult]


@dataclass(slots=True)
class _Load:
    params: methods.LoadModelParams
    replies: list[LoadReply]
    afterwards: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    slices: AnyLoading | None = None
    is_aside: bool = False


class Loads:
    """Belongs to the thread that owns MLX, but for what is `Aside`, which `thread` does. `begin` makes the slices of a
    load, `done` takes the model, `gave_up` hears that there will be none."""

    def __init__(
        self,
        thread: TokenizerThread,
        begin: Callable[[methods.LoadModelParams], AnyLoading],
        done: Callable[[LoadedModel | EmbeddingModel], None],
        gave_up: Callable[[str], None],
    ) -> None:
        self._thread = thread
        self._begin = begin
        self._done = done
        self._gave_up = gave_up
        self._loads: deque[_Load] = deque()

    def __len__(self) -> int:
        return len(self._loads)

    def __contains__(self, model_id: object) -> bool:
        return any(load.params.model_id == model_id for load in self._loads)

    def find(self, model_id: str) -> methods.LoadModelParams | None:
        """What was asked for, if that model is being loaded."""
        return next((load.params for load in self._loads if load.params.model_id == model_id), None)

    @property
    def is_due(self) -> bool:
        """Whether there is a slice to be done."""
        return bool(self._loads) and not self._loads[0].is_aside

    def add(self, params: methods.LoadModelParams, reply: LoadReply) -> None:
        """Load a model when those asked for before are loaded. Who asks for one again gets the same."""
        for load in self._loads:
            if load.params.model_id == params.model_id:
                load.replies.append(reply)
                return
        self._loads.append(_Load(params, [reply]))

    def afterwards(self, model_id: str, action: Callable[[], None]) -> None:
        """Do this when the load of a model has ended, whatever came of it."""
        next(load for load in self._loads if load.params.model_id == model_id).afterwards.append(action)

    def advance(self) -> None:
        """Do a slice, if one is due."""
        if not self.is_due:
            return
        load = self._loads[0]
        try:
            if load.slices is None:
                load.slices = self._begin(load.params)
            aside = next(load.slices)
        except StopIteration as end:
            self._end(load, end.value)
        except EngineError as error:
            self._end(load, error)
        except Exception as error:  # noqa: BLE001  a defect in one load must not end every stream
            self._end(load, ProtocolError(f"load_model failed inside the worker: {type(error).__name__}: {error}"))
        else:
            if aside is not None:
                self._put_aside(load, aside)

    def _put_aside(self, load: _Load, aside: Aside) -> None:
        load.is_aside = True

        def done(_: None) -> None:
            load.is_aside = False

        def failed(error: EngineError) -> None:
            load.is_aside = False
            self._end(load, error)

        self._thread.submit(aside.work, done, failed)

    def _end(self, load: _Load, outcome: LoadedModel | EmbeddingModel | EngineError) -> None:
        self._loads.remove(load)
        if load.slices is not None:
            load.slices.close()
            load.slices = None  # and with it what it has read
        if isinstance(outcome, EngineError):
            self._gave_up(load.params.model_id)
            for reply in load.replies:
                reply.fail(outcome)
        else:
            self._done(outcome)
            for reply in load.replies:
                reply.send(outcome.facts)
        for action in load.afterwards:
            action()
