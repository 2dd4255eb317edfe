from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_serving import errors
from mlx_serving.errors import EngineError
from mlx_serving.wire import error_table, jsonrpc
from mlx_serving.wire.notifications import Completed, Failed, Row, StepFrame, decode_binary, encode_binary


def _tree(root: type[EngineError]) -> list[type[EngineError]]:
    # A class made by a test elsewhere is no part of the tree.
    children = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    return [root, *(leaf for child in children for leaf in _tree(child))]


CLASSES = _tree(EngineError)

_integers = st.integers(-(2**63), 2**64 - 1)
_scalars = st.none() | st.booleans() | _integers | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_json = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
_details = st.dictionaries(st.text(st.characters(codec="ascii", categories=["L"]), min_size=8), _json, max_size=4)


def _make(cls: type[EngineError], message: str, details: dict[str, object]) -> EngineError:
    """An error of any class of the tree, each of which takes other arguments."""
    if issubclass(cls, errors.Overloaded):
        return cls(message, retry_after=1.5, **details)
    if issubclass(cls, errors.InvalidRequest):
        return cls(message, field="a.b[0]", limit=1, given="x", issues=[{"field": "a"}])
    if issubclass(cls, errors.InvalidConfig):
        return cls(message, issues=[{"path": "a"}])
    return cls(message, **details)


def _over_the_pipe(error: EngineError) -> EngineError:
    response = jsonrpc.parse_response(jsonrpc.encode_error(1, error).rstrip(b"\n"))
    assert isinstance(response.error, jsonrpc.RpcError)
    return jsonrpc.to_engine_error(response.error)


def _in_a_frame(error: EngineError) -> EngineError:
    sent = encode_binary(StepFrame([Row("s", [], "", Failed(jsonrpc.rpc_error(error)))]))
    frame = decode_binary(sent[5:])
    assert isinstance(frame, StepFrame)
    end = frame.rows[0].end
    assert not isinstance(end, Completed)
    assert end is not None
    return jsonrpc.to_engine_error(end.error)


@pytest.mark.parametrize("cls", CLASSES)
@settings(max_examples=30)
@given(message=st.text(), details=_details)
def test_every_error_keeps_its_kind_message_and_details_on_its_way(
    cls: type[EngineError], message: str, details: dict[str, object]
) -> None:
    error = _make(cls, message, details)
    for received in (_over_the_pipe(error), _in_a_frame(error)):
        assert type(received) is errors.BY_CODE[cls.code]
        assert received.to_object() == error.to_object()
        assert str(received) == message


@pytest.mark.parametrize("cls", CLASSES)
def test_what_the_caller_acts_on_survives(cls: type[EngineError]) -> None:
    received = _over_the_pipe(_make(cls, "m", {}))
    assert received.code == cls.code
    if isinstance(received, errors.Overloaded):
        assert received.retry_after == 1.5
    if isinstance(received, errors.InvalidRequest):
        assert received.field == "a.b[0]"


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_has_a_number_that_the_table_knows(cls: type[EngineError]) -> None:
    assert cls.rpc_code in error_table.BY_NUMBER
    assert jsonrpc.rpc_error(_make(cls, "m", {})).code == cls.rpc_code


@pytest.mark.parametrize(("number", "cls"), list(error_table.BY_NUMBER.items()))
def test_a_number_without_a_code_becomes_the_class_that_stands_for_it(number: int, cls: type[EngineError]) -> None:
    received = error_table.from_wire(number, None, "m", None)
    assert type(received) is cls
    assert cls.rpc_code == number
    assert received.to_object() == {"code": cls.code, "message": "m", "details": {}}


@pytest.mark.parametrize("code", [None, 7, ["ModelNotFound"], "NoSuchCode", ""])
def test_an_unknown_code_leaves_the_decision_to_the_number(code: object) -> None:
    assert type(error_table.from_wire(-32005, code, "m", {"model": "x"})) is errors.ModelNotLoaded


def test_the_code_decides_where_it_contradicts_the_number() -> None:
    assert type(error_table.from_wire(-32005, "ModelNotFound", "m", {})) is errors.ModelNotFound


@given(number=st.integers().filter(lambda number: number not in error_table.BY_NUMBER), details=_json)
def test_an_unknown_number_is_a_plain_error(number: int, details: object) -> None:
    facts = {"about": details}
    received = error_table.from_wire(number, None, "m", facts)
    assert type(received) is EngineError
    assert received.details == {key: value for key, value in facts.items() if value is not None}


@pytest.mark.parametrize("details", [None, [], "text", 3])
def test_details_that_are_no_object_are_dropped(details: object) -> None:
    assert error_table.from_wire(-32000, None, "m", details).details == {}


def test_a_detail_that_the_pipe_cannot_carry_is_told_as_text() -> None:
    unusual = {
        "big": 2**64,
        "small": -(2**63) - 1,
        "bytes": "a\udcffb",
        "object": ValueError("x"),
        "tuple": (1, {2: None}),
    }
    error = EngineError("no such file: \udcff", **unusual)
    expected = {
        "big": "18446744073709551616",
        "small": "-9223372036854775809",
        "bytes": "a\\udcffb",
        "object": "ValueError('x')",
        "tuple": [1, {"2": None}],
    }
    for received in (_over_the_pipe(error), _in_a_frame(error)):
        assert received.details == expected
        assert received.message == "no such file: \\udcff"


def test_the_error_object_has_the_shape_that_json_rpc_prescribes() -> None:
    line = jsonrpc.encode_error("q", errors.ModelNotLoaded("not here", model="m"))
    assert json.loads(line) == {
        "jsonrpc": "2.0",
        "id": "q",
        "error": {
            "code": -32005,
            "message": "not here",
            "data": {"type": "ModelNotLoaded", "details": {"model": "m"}},
        },
    }
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1


def test_an_error_without_data_is_understood() -> None:
    error = msgspec.json.decode(b'{"code": -32601, "message": "m"}', type=jsonrpc.RpcError)
    assert type(jsonrpc.to_engine_error(error)) is errors.UnknownMethod
