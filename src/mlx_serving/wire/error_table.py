"""JSON-RPC error numbers and the classes that stand for them.

A class is sent as its number and its stable code; the code decides, the number is for clients that know nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from mlx_serving import errors
from mlx_serving.errors import EngineError

BY_NUMBER: Mapping[int, type[EngineError]] = {
    -32700: errors.MalformedMessage,
    -32600: errors.InvalidEnvelope,
    -32601: errors.UnknownMethod,
    -32602: errors.InvalidRequest,
    -32603: errors.ProtocolError,
    -32000: errors.WorkerDied,
    -32001: errors.ModelLoadError,
    -32002: errors.GenerationError,
    -32003: errors.TokenizerError,
    -32004: errors.GuidanceError,
    -32005: errors.ModelNotLoaded,
    -32006: errors.Aborted,
    -32007: errors.DeadlineExceeded,
    -32008: errors.Overloaded,
    -32099: EngineError,
}


def from_wire(number: int, code: object, message: str, details: object) -> EngineError:
    """The error to raise for one that came over the pipe."""
    facts = cast("Mapping[str, object]", details) if isinstance(details, Mapping) else dict[str, object]()
    if isinstance(code, str) and code in errors.BY_CODE:
        return errors.from_code(code, message, facts)
    return errors.from_code(BY_NUMBER.get(number, EngineError).code, message, facts)
