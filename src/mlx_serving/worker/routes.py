"""How a call finds its handler, and the handler its caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from mlx_serving.errors import EngineError, ProtocolError
from mlx_serving.wire import jsonrpc
from mlx_serving.wire.methods import Method
from mlx_serving.worker.pipe import Outbox

P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Reply(Generic[R]):
    """Where the answer to one request goes; called once, now or later. A notification's goes nowhere."""

    outbox: Outbox
    request_id: jsonrpc.RequestId | msgspec.UnsetType

    def send(self, result: R) -> None:
        if not isinstance(self.request_id, msgspec.UnsetType):
            self.outbox.send(jsonrpc.encode_result(self.request_id, result))

    def fail(self, error: EngineError) -> None:
        if not isinstance(self.request_id, msgspec.UnsetType):
            self.outbox.send(jsonrpc.encode_error(self.request_id, error))


@dataclass(frozen=True, slots=True)
class Route(Generic[P, R]):
    """A method of the table and what it does: the types of both are checked against each other."""

    method: Method[P, R]
    handle: Callable[[P, Reply[R]], None]


def attempt(route: Route[Any, Any], params: object, reply: Reply[Any]) -> None:
    """Do it; what goes wrong is the answer."""
    try:
        route.handle(params, reply)
    except EngineError as error:
        reply.fail(error)
    except Exception as error:  # noqa: BLE001  a defect in one handler must not end every stream
        reply.fail(ProtocolError(f"{route.method.name} failed inside the worker: {type(error).__name__}: {error}"))
