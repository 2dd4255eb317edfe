"""Many small calls in one message, each with its own answer or error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import msgspec

from mlx_serving.errors import EngineError
from mlx_serving.wire import jsonrpc, methods
from mlx_serving.worker.tokenizer_thread import tokenizer_errors

P = TypeVar("P")
R = TypeVar("R")


def each_of(batch: methods.BatchParams, params: type[P], do: Callable[[P], R]) -> methods.BatchResult[R]:
    """What `do` makes of each entry, or the error that the entry alone would have been answered with."""

    def one(raw: msgspec.Raw) -> methods.BatchItem[R]:
        try:
            with tokenizer_errors():
                return methods.BatchItem(success=True, result=do(jsonrpc.parse_params(raw, params)))
        except EngineError as error:
            return methods.BatchItem(success=False, error=_told(error))

    return methods.BatchResult([one(raw) for raw in batch.requests])


def _told(error: EngineError) -> methods.BatchError:
    told = jsonrpc.rpc_error(error)
    return methods.BatchError(told.code, told.message, error.code, cast("dict[str, object]", told.data["details"]))
