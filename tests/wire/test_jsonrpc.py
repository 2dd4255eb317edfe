from __future__ import annotations

import json
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.errors import InvalidRequest, MalformedMessage, ProtocolError
from mlx_serving.wire import jsonrpc, methods

PARSE_ERROR, INVALID_REQUEST = -32700, -32600
TOO_DEEP = b"[" * 100_000 + b"]" * 100_000

_ids = st.text() | st.integers(-(10**30), 10**30) | st.none()
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def _rejected(line: bytes) -> tuple[int, jsonrpc.RequestId]:
    with pytest.raises(jsonrpc.Rejected) as caught:
        jsonrpc.parse_request(line)
    assert str(caught.value) == caught.value.error.message
    return caught.value.error.rpc_code, caught.value.id


# -- requests


@given(method=st.text(), request_id=_ids, params=st.dictionaries(st.text(), _json, max_size=3))
def test_a_request_is_read_as_it_was_written(
    method: str, request_id: jsonrpc.RequestId, params: dict[str, object]
) -> None:
    line = json.dumps({"jsonrpc": "2.0", "method": method, "id": request_id, "params": params}).encode()
    request = jsonrpc.parse_request(line)
    assert (request.method, request.id) == (method, request_id)
    assert type(request.id) is type(request_id)
    assert json.loads(bytes(request.params)) == params


def test_our_own_encoders_write_what_we_read() -> None:
    params = methods.AbortParams(stream_id="s\n")
    line = jsonrpc.encode_request("abort", params, 7)
    assert line.index(b"\n") == len(line) - 1
    request = jsonrpc.parse_request(line)
    assert (request.method, request.id) == ("abort", 7)
    assert jsonrpc.parse_params(request.params, methods.AbortParams) == params
    notification = jsonrpc.parse_request(jsonrpc.encode_notification("abort", params))
    assert (notification.method, notification.id) == ("abort", msgspec.UNSET)


def test_a_request_without_an_id_is_a_notification_and_null_is_an_id() -> None:
    assert jsonrpc.parse_request(b'{"jsonrpc":"2.0","method":"m"}').id is msgspec.UNSET
    assert jsonrpc.parse_request(b'{"jsonrpc":"2.0","method":"m","id":null}').id is None


def test_params_may_be_left_out() -> None:
    request = jsonrpc.parse_request(b'{"jsonrpc":"2.0","method":"m","id":1}')
    assert jsonrpc.parse_params(request.params, methods.NoParams) == methods.NoParams()


def test_unknown_members_of_the_envelope_are_ignored_and_the_last_of_two_equal_ones_counts() -> None:
    request = jsonrpc.parse_request(b'{"jsonrpc":"1","x":[],"method":"a","id":1,"id":2,"method":"b","jsonrpc":"2.0"}')
    assert (request.method, request.id) == ("b", 2)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"{",
        b'{"jsonrpc":"2.0","method":"m","id":1',
        b'{"jsonrpc":"2.0","method":"m","id":1} x',
        b'{"jsonrpc":"2.0","method":"m","id":NaN}',
        b'{"jsonrpc":"2.0","method":"m","id":1,"params":{"a":Infinity}}',
        b"{'jsonrpc':'2.0'}",
        b'{"jsonrpc":"2.0","method":"m","id":1,}',
        b'{"jsonrpc":"2.0","method":"foobar, "params":"bar","baz]',
        b'[{"jsonrpc":"2.0","method":"sum","id":"1"},{"jsonrpc":"2.0","method"]',
        b"[1",
        b"1 2",
        b"\xff\xfe",
        b"\xc1\0\0\0\x01x",
        b'\xef\xbb\xbf{"jsonrpc":"2.0","method":"m"}',
        b'"\xff"',
        b'{"jsonrpc":"2.0","method":"\xff","id":1}',
        b'{"jsonrpc":"2.0","method":"m","id":1,"\xff":1}',
        b'{"jsonrpc":"2.0","method":"m","id":1,"params":{"a":"\xff"}}',
        b'{"jsonrpc":"2.0","method":"\\ud800","id":1}',
    ],
)
def test_what_is_not_json_is_a_parse_error_without_an_id(line: bytes) -> None:
    assert _rejected(line) == (PARSE_ERROR, None)


@pytest.mark.parametrize(
    "line", [b"[]", b"[1]", b"3", b'"text"', b"null", b"true", b'[{"jsonrpc":"2.0","method":"m"}]']
)
def test_json_that_is_no_object_is_an_invalid_request_without_an_id(line: bytes) -> None:
    assert _rejected(line) == (INVALID_REQUEST, None)


@pytest.mark.parametrize("request_id", ["true", "false", "1.0", "1e5", "0.5", "[]", "{}", "1e999", "1" * 5000])
def test_an_id_of_another_kind_is_an_invalid_request_answered_with_null(request_id: str) -> None:
    line = b'{"jsonrpc":"2.0","method":"m","id":%s}' % request_id.encode()
    assert _rejected(line) == (INVALID_REQUEST, None)


@pytest.mark.parametrize("member", ["", '"jsonrpc":null,', '"jsonrpc":2.0,', '"jsonrpc":"1.0",', '"jsonrpc":["2.0"],'])
def test_another_protocol_version_is_an_invalid_request_answered_with_its_id(member: str) -> None:
    assert _rejected(b'{%s"method":"m","id":"q"}' % member.encode()) == (INVALID_REQUEST, "q")


@pytest.mark.parametrize("member", ["", ',"method":null', ',"method":1', ',"method":["m"]', ',"method":{}'])
def test_a_method_that_is_no_string_is_an_invalid_request_answered_with_its_id(member: str) -> None:
    assert _rejected(b'{"id":12345678901234567890123,"jsonrpc":"2.0"%s}' % member.encode()) == (
        INVALID_REQUEST,
        12345678901234567890123,
    )


def test_a_rejection_names_the_member_and_shows_what_was_given() -> None:
    with pytest.raises(jsonrpc.Rejected) as caught:
        jsonrpc.parse_request(b'{"jsonrpc":"%s","method":"m"}' % (b"9" * 1000))
    details = caught.value.error.details
    assert details["field"] == "jsonrpc"
    assert str(details["given"]).startswith("'999")
    assert len(str(details["given"])) == 80


@pytest.mark.parametrize(
    "template",
    [
        b"%s",
        b'{"jsonrpc":"2.0","id":1,"method":%s}',
        b'{"jsonrpc":"2.0","id":%s,"method":"m"}',
        b'{"jsonrpc":%s,"id":1,"method":"m"}',
        b'{"jsonrpc":"2.0","id":1,"method":"m","x":%s}',
        b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":%s}}',
    ],
)
def test_deep_nesting_is_an_invalid_request_and_no_recursion_error(template: bytes) -> None:
    assert _rejected(template % TOO_DEEP) == (INVALID_REQUEST, None)


def test_nesting_around_the_interpreters_limit_is_read_or_rejected() -> None:
    # Showing what was given must not fail where reading it just succeeded.
    limit = sys.getrecursionlimit()
    for depth in range(limit // 2, limit + 10):
        line = b'{"jsonrpc":%s,"method":"m"}' % (b"[" * depth + b"]" * depth)
        assert _rejected(line) == (INVALID_REQUEST, None)


@given(line=st.binary(max_size=40) | st.text(alphabet='{}[]",:\\u0d8 jsonrpc2.i', max_size=40).map(str.encode))
def test_any_line_is_a_request_or_rejected(line: bytes) -> None:
    try:
        jsonrpc.parse_request(line)
        number = None
    except jsonrpc.Rejected as rejected:
        number = rejected.error.rpc_code
    assert number in ((None, INVALID_REQUEST) if _is_json(line) else (PARSE_ERROR,))


def _is_json(line: bytes) -> bool:
    try:
        text = line.decode()
        json.loads(text, parse_constant=_refuse)
        return not text.startswith("\ufeff")
    except ValueError:
        return False


def _refuse(constant: str) -> None:
    raise ValueError(constant)


# -- parameters


class Inner(methods.Params):
    size: int


class Outer(methods.Params):
    inner: Inner | None = None
    items: list[Inner] = msgspec.field(default_factory=list[Inner])
    named: dict[str, Inner] = msgspec.field(default_factory=dict[str, Inner])
    anything: Any = None


@pytest.mark.parametrize(
    ("params", "field", "given"),
    [
        (b'{"x":1}', "x", None),
        (b'{"a\\n`b":1}', "a\n`b", None),
        (b'{"inner":{}}', "inner.size", None),
        (b'{"inner":{"size":1,"y":2}}', "inner.y", None),
        (b'{"inner":{"size":"1"}}', "inner.size", '"1"'),
        (b'{"inner":3}', "inner", "3"),
        (b'{"items":[{"size":1},{}]}', "items[1].size", None),
        (b'{"items":[{"size":1},{"size":1.5}]}', "items[1].size", "1.5"),
        (b'{"items":{}}', "items", "{}"),
        (b'{"named":{"k":{"size":null}}}', "named[...].size", '{"k":{"size":null}}'),
        (b'{"named":{"k":{}}}', "named[...].size", None),
        (b'{"anything":1e999}', "anything", "1e999"),
        (b"[]", None, "[]"),
        (b'[{"inner":null}]', None, '[{"inner":null}]'),
        (b"null", None, "null"),
        (b'"text"', None, '"text"'),
    ],
)
def test_wrong_parameters_name_the_field_and_show_what_was_given(
    params: bytes, field: str | None, given: str | None
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        jsonrpc.parse_params(msgspec.Raw(params), Outer)
    error = caught.value
    assert (error.field, error.details.get("field"), error.details.get("given")) == (field, field, given)
    assert error.rpc_code == -32602


def test_parameters_inside_an_array_are_named_by_their_index() -> None:
    with pytest.raises(InvalidRequest) as caught:
        jsonrpc.parse_params(msgspec.Raw(b'[{"size":1},{"size":[]}]'), list[Inner])
    assert caught.value.details["field"] == "[1].size"
    assert caught.value.details["given"] == "[]"


def test_a_key_of_the_wrong_kind_names_the_table_it_is_in() -> None:
    with pytest.raises(InvalidRequest) as caught:
        jsonrpc.parse_params(msgspec.Raw(b'{"model_id":"m","logit_bias":{"x":1}}'), methods.GenerateParams)
    assert caught.value.details["field"] == "logit_bias"
    assert caught.value.details["given"] == '{"x":1}'


def test_what_was_given_is_shown_in_part_when_it_is_long() -> None:
    with pytest.raises(InvalidRequest) as caught:
        jsonrpc.parse_params(msgspec.Raw('{{"inner":"x{}"}}'.format("ü" * 200).encode()), Outer)
    assert caught.value.details["given"] == '"x' + "ü" * 39


def test_what_cannot_be_shown_is_left_out() -> None:
    with pytest.raises(InvalidRequest) as caught:
        jsonrpc.parse_params(msgspec.Raw(b'{"inner":1,"\\ud800":2}'), Outer)
    assert caught.value.details == {"field": "inner"}


@pytest.mark.parametrize("params", [b'{"anything":"\xff"}', b'{"anything":"\\ud800"}', b'{"anything":', b""])
def test_parameters_that_are_no_json_are_a_parse_error(params: bytes) -> None:
    with pytest.raises(MalformedMessage):
        jsonrpc.parse_params(msgspec.Raw(params), Outer)


def test_parameters_nested_too_deeply_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        jsonrpc.parse_params(msgspec.Raw(b'{"anything":%s}' % TOO_DEEP), Outer)


# -- answers


@given(request_id=_ids, result=_json)
def test_a_result_is_read_as_it_was_written(request_id: jsonrpc.RequestId, result: object) -> None:
    line = jsonrpc.encode_result(request_id, {"value": result})
    assert line.index(b"\n") == len(line) - 1
    assert json.loads(line)["jsonrpc"] == "2.0"
    response = jsonrpc.parse_response(line)
    assert response.id == request_id
    assert (response.error, response.method) == (msgspec.UNSET, msgspec.UNSET)
    assert jsonrpc.parse_result(response.result, dict[str, Any]) == json.loads(json.dumps({"value": result}))


def test_a_notification_is_told_from_an_answer_by_its_method() -> None:
    response = jsonrpc.parse_response(jsonrpc.encode_notification("stream.chunk", {"token": "x"}))
    assert (response.method, response.id, response.result) == ("stream.chunk", None, msgspec.UNSET)
    assert json.loads(bytes(response.params)) == {"token": "x"}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{",
        b'{"id":"\xff"}',
        b'{"id":true}',
        b'{"id":1,"error":"text"}',
        b'{"id":1,"error":{"code":1}}',
        b'{"id":1,"error":{"code":"1","message":"m"}}',
        b'{"id":1,"error":{"code":1,"message":"m","data":%s}}' % TOO_DEEP,
        b'{"id":1,"result":%s}' % TOO_DEEP,
    ],
)
def test_a_line_that_is_no_answer_is_the_workers_fault(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="no JSON-RPC message"):
        jsonrpc.parse_response(line)


@pytest.mark.parametrize(
    "result", [b"{}", b"null", b'{"text":1}', b'{"text":"\xff"}', b'{"text":"x"', b'{"text":%s}' % TOO_DEEP]
)
def test_a_result_of_another_shape_is_the_workers_fault(result: bytes) -> None:
    with pytest.raises(ProtocolError, match="DetokenizeResult"):
        jsonrpc.parse_result(msgspec.Raw(result), methods.DetokenizeResult)


def test_a_deeply_nested_result_is_the_workers_fault() -> None:
    with pytest.raises(ProtocolError, match="recursion"):
        jsonrpc.parse_result(msgspec.Raw(TOO_DEEP), list[Any])


def test_an_answer_with_neither_result_nor_error_is_the_workers_fault() -> None:
    response = jsonrpc.parse_response(b'{"jsonrpc":"2.0","id":1}')
    with pytest.raises(ProtocolError, match="neither result nor error"):
        jsonrpc.parse_result(response.result, methods.SuccessResult)
