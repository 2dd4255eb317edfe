"""How a call finds its handler, and the handler its caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from mlx_serving.errors import EngineError
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
