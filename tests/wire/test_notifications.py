from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.generation import FinishReason
from mlx_serving.errors import GenerationError, ProtocolError
from mlx_serving.wire import jsonrpc
from mlx_serving.wire.framing import Frame, MessageReader
from mlx_serving.wire.notifications import (
    Aside,
    CallPiece,
    Candidate,
    Completed,
    Failed,
    Heartbeat,
    MemoryWanted,
    ModelProgress,
    Notice,
    Notification,
    Row,
    Stats,
    StepFrame,
    TokenLogprobs,
    Vector,
    decode_binary,
    encode_binary,
    encode_json,
    join_rows,
)

STATS = Stats(
    prompt_tokens=3,
    tokens_generated=2,
    tokens_per_second=40.0,
    time_to_first_token=0.5,
    total_time=0.75,
    cached_tokens=3,
)

_counts = st.integers(0, 2**63)
_seconds = st.floats(0, 1e9)
_stats = st.builds(
    Stats,
    prompt_tokens=_counts,
    tokens_generated=_counts,
    tokens_per_second=_seconds,
    time_to_first_token=_seconds,
    total_time=_seconds,
)
_ends = (
    st.none()
    | st.builds(Completed, finish_reason=st.sampled_from(FinishReason), stats=_stats, stop=st.none() | st.text())
    | st.text().map(lambda message: Failed(jsonrpc.rpc_error(GenerationError(message, step=1))))
)
_candidates = st.builds(
    Candidate,
    token_id=st.integers(0, 2**31 - 1),
    logprob=st.floats(-1e6, 0),
    raw=st.binary(max_size=4),
    special=st.booleans(),
)
_logprobs = st.builds(TokenLogprobs, chosen=_candidates, top=st.lists(_candidates, max_size=3))
_rows = st.builds(
    Row,
    stream_id=st.sampled_from("abc"),
    token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=4),
    text=st.text(max_size=10),
    end=_ends,
    logprobs=st.none() | st.lists(_logprobs, max_size=4),
)
_steps = st.builds(StepFrame, rows=st.lists(_rows, max_size=6))
_notifications = (
    _steps
    | st.builds(Heartbeat, progress=_counts, busy=st.booleans())
    | st.builds(ModelProgress, model_id=st.text(), stage=st.text(), done=_counts, total=_counts)
    | st.builds(MemoryWanted, model_id=st.text(), lacking_bytes=_counts)
    | st.builds(Notice, part=st.text(), what=st.text(), facts=st.dictionaries(st.text(), st.text() | _counts))
)


def _lines(notification: Notification) -> list[dict[str, Any]]:
    encoded = encode_json(notification)
    assert encoded == b"" or encoded.endswith(b"\n")
    return [json.loads(line) for line in encoded.splitlines()]


def _params(row: Row) -> list[tuple[str, dict[str, Any]]]:
    return [(line["method"], line["params"]) for line in _lines(StepFrame([row]))]


@given(sent=st.lists(_notifications, max_size=4))
def test_frames_are_read_as_they_were_written(sent: list[Notification]) -> None:
    messages = list(MessageReader().feed(b"".join(map(encode_binary, sent))))
    assert all(isinstance(message, Frame) for message in messages)
    assert [decode_binary(message.data) for message in messages if isinstance(message, Frame)] == sent


def test_one_frame_carries_every_row_of_a_step() -> None:
    rows = [Row(str(number), [number], "x") for number in range(16)]
    assert len(list(MessageReader().feed(encode_binary(StepFrame(rows))))) == 1


@given(st.lists(st.lists(_rows, max_size=4), max_size=5))
def test_joined_rows_tell_each_stream_the_same(steps: list[list[Row]]) -> None:
    joined: list[Row] = []
    for step in steps:
        join_rows(joined, step)
    for stream in "abc":
        told = [row for step in steps for row in step if row.stream_id == stream]
        kept = [row for row in joined if row.stream_id == stream]
        for name in ("token_ids", "text"):
            assert _all(kept, name) == _all(told, name)
        assert [one for row in kept for one in row.logprobs or ()] == [
            one for row in told for one in row.logprobs or ()
        ]
        assert [row.end for row in kept if row.end] == [row.end for row in told if row.end]
        assert len(kept) <= 1 + 2 * sum(row.end is not None for row in told)


def _all(rows: list[Row], name: str) -> Any:
    parts = [getattr(row, name) for row in rows]
    return "".join(parts) if name == "text" else [one for part in parts for one in part]


def test_what_is_no_text_keeps_its_place_between_texts() -> None:
    aside = Row("a", [2], "", aside=Aside("thought", []))
    rows = [Row("a", [1], "x", cached_tokens=7)]
    join_rows(rows, [aside, Row("b", [9], "z"), Row("a", [3], "y"), Row("a", [4], "!")])
    assert rows == [Row("a", [1], "x", cached_tokens=7), aside, Row("b", [9], "z"), Row("a", [3, 4], "y!")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        msgspec.msgpack.encode([9, 1]),
        msgspec.msgpack.encode({"progress": 1}),
        msgspec.msgpack.encode([2, "many", True]),
        msgspec.msgpack.encode([2, 1, True]) + b"x",
        msgspec.msgpack.encode([2, 1, True])[:-1],
        msgspec.msgpack.encode([3, "a", "b", 1, 2]).replace(b"\xa1a", b"\xa1\xff"),
        msgspec.msgpack.encode([1, [["s", [], "", [0, "no such reason", [0, 0, 0.0, 0.0, 0.0]]]]]),
        # one row that failed with an error whose data is an array in an array in an array ...
        b"\x92\x01\x91\x94\xa1s\x90\xa0\x92\x01\x83\xa4code\x01\xa7message\xa0\xa4data\x81\xa1a"
        + b"\x91" * 100_000
        + b"\xc0",
    ],
)
def test_a_frame_of_another_shape_is_the_workers_fault(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="unknown shape"):
        decode_binary(body)


@given(body=st.binary(max_size=60))
def test_any_bytes_are_a_notification_or_the_workers_fault(body: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        written = encode_binary(decode_binary(body))
        assert encode_binary(decode_binary(written[5:])) == written


@given(step=_steps)
def test_the_json_rendering_of_a_step_carries_all_its_text_ids_and_ends(step: StepFrame) -> None:
    text, token_ids, ends = dict.fromkeys("abc", ""), {name: list[int]() for name in "abc"}, dict.fromkeys("abc", 0)
    for line in _lines(step):
        assert line["jsonrpc"] == "2.0"
        assert "id" not in line
        params = line["params"]
        name = params["stream_id"]
        match line["method"]:
            case "stream.chunk":
                assert params["is_final"] is False
                text[name] += params["token"]
                token_ids[name] += [params["token_id"]] if "token_id" in params else params["token_ids"]
            case "stream.event":
                assert params["is_final"] is True
                ends[name] += 1
            case method:
                assert method == "stream.stats"
    for name in "abc":
        rows = [row for row in step.rows if row.stream_id == name]
        assert text[name] == "".join(row.text for row in rows)
        assert token_ids[name] == [token_id for row in rows for token_id in row.token_ids]
        assert ends[name] == sum(row.end is not None for row in rows)


def test_one_token_is_the_ancestors_chunk() -> None:
    assert _params(Row("s", [7], "hi")) == [
        ("stream.chunk", {"stream_id": "s", "token": "hi", "token_id": 7, "is_final": False})
    ]


def test_a_token_without_text_is_a_chunk_as_well() -> None:
    assert _params(Row("s", [7], ""))[0][1]["token_id"] == 7


@pytest.mark.parametrize(("token_ids", "text"), [([7, 8], "hi"), ([7, 8], ""), ([], "held back")])
def test_text_of_several_tokens_or_of_none_carries_a_list_of_ids(token_ids: list[int], text: str) -> None:
    assert _params(Row("s", token_ids, text)) == [
        ("stream.chunk", {"stream_id": "s", "token": text, "token_ids": token_ids, "is_final": False})
    ]


def test_log_probabilities_come_with_their_token() -> None:
    top = [
        Candidate(8, -0.25, b"ho", False),
        Candidate(9, -2.0, b"\xe2\x82", False),
        Candidate(2, -3.0, b"<end>", True),
    ]
    [(_, params)] = _params(Row("s", [7], "hi", None, [TokenLogprobs(Candidate(7, -1.5, b"hi", False), top)]))
    assert params["logprob"] == -1.5
    assert params["top_logprobs"] == [
        {"token_id": 8, "token": "ho", "bytes": [104, 111], "logprob": -0.25},
        {"token_id": 9, "token": r"\xe2\x82", "bytes": [226, 130], "logprob": -2.0},
        {"token_id": 2, "token": "<end>", "bytes": None, "logprob": -3.0},
    ]


def test_log_probabilities_of_several_tokens_are_lists() -> None:
    first, second = Candidate(7, -1.5, b"h", False), Candidate(8, -0.5, b"i", False)
    [(_, params)] = _params(Row("s", [7, 8], "hi", None, [TokenLogprobs(first, [second]), TokenLogprobs(second, [])]))
    assert params["logprobs"] == [-1.5, -0.5]
    assert params["top_logprobs"] == [[{"token_id": 8, "token": "i", "bytes": [105], "logprob": -0.5}], []]


def test_a_row_that_was_not_asked_for_log_probabilities_pays_a_byte_for_each_thing_it_lacks() -> None:
    without = msgspec.msgpack.encode(["s", [7], "hi", None])
    assert len(msgspec.msgpack.encode(Row("s", [7], "hi"))) == len(without) + 3


def test_a_row_with_nothing_new_is_no_line() -> None:
    assert _params(Row("s", [], "")) == []


@pytest.mark.parametrize("reason", list(FinishReason))
def test_a_completed_stream_ends_with_its_stats_and_its_event(reason: FinishReason) -> None:
    assert _params(Row("s", [], "", Completed(reason, STATS))) == [
        (
            "stream.stats",
            {
                "stream_id": "s",
                "prompt_tokens": 3,
                "tokens_generated": 2,
                "tokens_per_second": 40.0,
                "time_to_first_token": 0.5,
                "total_time": 0.75,
                "cached_tokens": 3,
                "drafted_tokens": 0,
                "accepted_tokens": 0,
                "speculation": None,
            },
        ),
        (
            "stream.event",
            {"stream_id": "s", "event": "completed", "finish_reason": reason.value, "is_final": True},
        ),
    ]


def test_the_event_of_a_stream_that_a_stop_string_ended_names_it() -> None:
    _, event = _params(Row("s", [], "", Completed(FinishReason.STOP, STATS, "END")))
    assert event[1]["stop"] == "END"


def test_the_last_chunk_comes_before_the_end() -> None:
    sent = [method for method, _ in _params(Row("s", [1], "x", Completed(FinishReason.STOP, STATS)))]
    assert sent == ["stream.chunk", "stream.stats", "stream.event"]


def test_a_failed_stream_ends_with_an_event_that_keeps_the_number_and_the_code() -> None:
    error = jsonrpc.rpc_error(GenerationError("broken", step=4))
    assert _params(Row("s", [], "", Failed(error))) == [
        (
            "stream.event",
            {
                "stream_id": "s",
                "event": "error",
                "error": "broken",
                "code": -32002,
                "data": {"type": "GenerationError", "details": {"step": 4}},
                "is_final": True,
            },
        )
    ]


def test_a_heartbeat_is_a_line() -> None:
    assert _lines(Heartbeat(progress=5, busy=True)) == [
        {"jsonrpc": "2.0", "method": "runtime/heartbeat", "params": {"progress": 5, "busy": True}}
    ]


def test_the_progress_of_a_model_is_a_line() -> None:
    assert _lines(ModelProgress(model_id="m", stage="weights", done=1, total=4)) == [
        {
            "jsonrpc": "2.0",
            "method": "model.progress",
            "params": {"model_id": "m", "stage": "weights", "done": 1, "total": 4},
        }
    ]


def test_who_waits_for_memory_is_a_line() -> None:
    assert _lines(MemoryWanted("m", 4096)) == [
        {"jsonrpc": "2.0", "method": "runtime/memory_wanted", "params": {"model_id": "m", "lacking_bytes": 4096}}
    ]


def test_a_notice_is_a_line() -> None:
    assert _lines(Notice("prefix cache", "damaged", {"path": "/x", "count": 2})) == [
        {
            "jsonrpc": "2.0",
            "method": "runtime/notice",
            "params": {"part": "prefix cache", "what": "damaged", "path": "/x", "count": 2},
        }
    ]


def test_what_is_not_said_stands_beside_the_text() -> None:
    thought = _params(Row("s", [7], "", aside=Aside("hm", [])))[0][1]
    assert thought["reasoning"] == "hm"
    assert "tool_calls" not in thought
    called = _params(Row("s", [7], "", aside=Aside("", [CallPiece(0, "c", "f", "{}")])))[0][1]
    assert "reasoning" not in called
    assert called["tool_calls"] == [{"index": 0, "id": "c", "name": "f", "arguments": "{}"}]


def test_a_vector_is_numbers_for_a_person() -> None:
    vector = Vector(3, struct.pack("<2f", 0.5, -1.0), 7)
    told = _params(Row("s", [], "", aside=Aside("", [], [vector])))[0][1]
    assert told["embeddings"] == [{"place": 3, "embedding": [0.5, -1.0], "tokens": 7}]
