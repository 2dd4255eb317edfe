"""JSON-RPC 2.0 messages: https://www.jsonrpc.org/specification

Parameters are objects, never arrays; batches are refused. An id is a string, an integer or null; a request without an
id is a notification and gets no answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypeVar, cast

import msgspec

from mlx_serving.errors import EngineError, InvalidEnvelope, InvalidRequest, MalformedMessage, ProtocolError
from mlx_serving.wire import error_table

RequestId: TypeAlias = str | int | None
T = TypeVar("T")

# msgspec tells where a value is wrong in its message only: a path, and the name of a missing or unknown field.
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(.*)`$", re.DOTALL)
_FIELD = re.compile(r"(?:required|unknown) field `(.*?)`(?: - at |$)", re.DOTALL)
_PATH_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")

_SHOWN_CHARS = 80

# What decoding raises for bytes that it cannot make the wanted value of.
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Request(msgspec.Struct, frozen=True):
    """A request whose `params` are still raw JSON. `id` is UNSET on a notification."""

    method: str
    id: str | int | msgspec.UnsetType | None = msgspec.UNSET
    params: msgspec.Raw = msgspec.Raw(b"{}")


class RpcError(msgspec.Struct, frozen=True):
    """`data` is `{type: the stable code, details: {...}}`."""

    code: int
    message: str
    data: dict[str, object] = msgspec.field(default_factory=dict[str, object])


class Response(msgspec.Struct, frozen=True):
    """The answer to a request, or a notification that came instead of one: `method` tells them apart."""

    id: str | int | None = None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: RpcError | msgspec.UnsetType = msgspec.UNSET
    method: str | msgspec.UnsetType = msgspec.UNSET
    params: msgspec.Raw = msgspec.Raw(b"{}")


class _Envelope(msgspec.Struct, frozen=True):
    jsonrpc: object = None
    method: object = None
    id: object = msgspec.UNSET
    params: msgspec.Raw = msgspec.Raw(b"{}")


_envelope_decoder = msgspec.json.Decoder(_Envelope)
_response_decoder = msgspec.json.Decoder(Response)


class Rejected(Exception):
    """A line that is no request. `id` is what the answer must carry, as far as it could be read."""

    def __init__(self, error: InvalidRequest, request_id: RequestId = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.id = request_id


def parse_request(line: bytes) -> Request:
    """Raises `Rejected` with the error that JSON-RPC prescribes."""
    try:
        envelope = _envelope_decoder.decode(line.decode())  # msgspec alone checks the encoding of what it keeps only
    except msgspec.ValidationError as error:
        raise Rejected(_not_an_object(line, error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejected(MalformedMessage(f"The line is not JSON: {error}")) from error
    except RecursionError as error:
        raise Rejected(InvalidEnvelope("The request is nested too deeply")) from error
    if not (envelope.id is msgspec.UNSET or envelope.id is None or _is_id(envelope.id)):
        raise Rejected(InvalidEnvelope("id must be a string, an integer or null", field="id"))
    request_id = envelope.id if isinstance(envelope.id, str | int) else None
    if envelope.jsonrpc != "2.0":
        raise Rejected(
            InvalidEnvelope('jsonrpc must be "2.0"', field="jsonrpc", given=_shown(envelope.jsonrpc)), request_id
        )
    if not isinstance(envelope.method, str):
        raise Rejected(
            InvalidEnvelope("method must be a string", field="method", given=_shown(envelope.method)), request_id
        )
    identity = msgspec.UNSET if envelope.id is msgspec.UNSET else request_id
    return Request(method=envelope.method, id=identity, params=envelope.params)


def _not_an_object(line: bytes, cause: msgspec.ValidationError) -> InvalidRequest:
    # msgspec stops at the first value of a wrong type, so whether the rest is JSON is not known yet.
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except msgspec.DecodeError as error:
        return MalformedMessage(f"The line is not JSON: {error}")
    except RecursionError:
        return InvalidEnvelope("The request is nested too deeply")
    return InvalidEnvelope(f"The line is no request: {cause}")


def _is_id(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))


def _shown(value: object) -> str:
    match value:
        case None | bool() | int() | float() | str():
            return repr(value)[:_SHOWN_CHARS]
        case _:  # its repr could be as deep as the request
            return type(value).__name__


def parse_params(raw: msgspec.Raw, params_type: type[T]) -> T:
    """Check `raw` against a params struct. Raises `InvalidRequest` that names the field and shows what was given."""
    try:
        return msgspec.json.decode(raw, type=params_type)
    except msgspec.ValidationError as error:
        path, name = _PATH.search(str(error)), _FIELD.search(str(error))
        field = ".".join(found[1] for found in (path, name) if found is not None and found[1])
        given = _given(raw, path[1] if path is not None else "") if name is None else None
        raise InvalidRequest(f"Invalid parameters: {error}", field=field or None, given=given) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedMessage(f"The parameters are not JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("The parameters are nested too deeply") from error


def _given(raw: msgspec.Raw, path: str) -> str | None:
    """The beginning of the JSON text at `path`, or around it where the path goes on with an unnamed key."""
    try:
        for name, index in _PATH_STEP.findall(path.partition("[...]")[0]):
            if name:
                raw = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])[name]
            else:
                raw = msgspec.json.decode(raw, type=list[msgspec.Raw])[int(index)]
    except _UNDECODABLE:  # what the first error hid, such as a key with half a surrogate pair
        return None
    return bytes(raw)[:_SHOWN_CHARS].decode(errors="replace")


def encode_request(method: str, params: object, request_id: str | int) -> bytes:
    return msgspec.json.encode({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}) + b"\n"


def encode_notification(method: str, params: object) -> bytes:
    return msgspec.json.encode({"jsonrpc": "2.0", "method": method, "params": params}) + b"\n"


def encode_result(request_id: RequestId, result: object) -> bytes:
    return msgspec.json.encode({"jsonrpc": "2.0", "id": request_id, "result": result}) + b"\n"


def encode_error(request_id: RequestId, error: EngineError) -> bytes:
    return msgspec.json.encode({"jsonrpc": "2.0", "id": request_id, "error": rpc_error(error)}) + b"\n"


def rpc_error(error: EngineError) -> RpcError:
    data = {"type": error.code, "details": _sendable(error.details)}
    return RpcError(error.rpc_code, str(_sendable(error.message)), data)


def _sendable(value: object) -> object:
    """`value` as both encodings of the pipe can carry it: an error must not fail to be told because of a detail."""
    match value:
        case None | bool() | float():
            return value
        case int():
            return value if -(2**63) <= value < 2**64 else str(value)
        case str():  # a path may hold surrogates for bytes that are no UTF-8
            return value.encode(errors="backslashreplace").decode()
        case Mapping():
            items = cast("Mapping[object, object]", value).items()
            return {str(_sendable(str(key))): _sendable(item) for key, item in items}
        case list() | tuple():
            return [_sendable(item) for item in cast("Sequence[object]", value)]
        case _:
            return _sendable(repr(value))


def parse_response(line: bytes) -> Response:
    """Raises `ProtocolError`: only a broken worker writes anything else."""
    try:
        return _response_decoder.decode(line)
    except _UNDECODABLE as error:
        raise ProtocolError(f"The worker wrote a line that is no JSON-RPC message: {error}") from error


def parse_result(raw: msgspec.Raw | msgspec.UnsetType, result_type: type[T]) -> T:
    """Raises `ProtocolError` when the result has another shape than the method's."""
    if isinstance(raw, msgspec.UnsetType):
        raise ProtocolError("The worker answered with neither result nor error")
    try:
        return msgspec.json.decode(raw, type=result_type)
    except _UNDECODABLE as error:
        raise ProtocolError(f"The worker's result does not fit {result_type.__name__}: {error}") from error


def to_engine_error(error: RpcError) -> EngineError:
    details = error.data.get("details")
    return error_table.from_wire(error.code, error.data.get("type"), error.message, details)
