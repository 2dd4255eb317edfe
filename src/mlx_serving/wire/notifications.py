"""What the worker says unasked, and its two encodings.

As MessagePack one frame carries the deltas of every sequence of a step. As JSON-RPC, for a person at a terminal, the
same step becomes the ancestor's `stream.chunk`, `stream.stats` and `stream.event` lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias, assert_never

import msgspec

from mlx_serving.core.embedding.embeddings import floats
from mlx_serving.core.generation import FinishReason
from mlx_serving.errors import ProtocolError
from mlx_serving.wire import jsonrpc
from mlx_serving.wire.framing import encode_frame


class Stats(msgspec.Struct, frozen=True, array_like=True):
    """Times in seconds; `tokens_per_second` counts from the first token. `cached_tokens` of the prompt were not
    computed when it began: their KV was kept from others. For the last three see `core.generation.GenerationStats`."""

    prompt_tokens: int
    tokens_generated: int
    tokens_per_second: float
    time_to_first_token: float
    total_time: float
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    speculation: str | None = None


class Completed(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """`stop` is the stop string that ended it, if one did."""

    finish_reason: FinishReason
    stats: Stats
    stop: str | None = None


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=1):
    error: jsonrpc.RpcError


class Candidate(msgspec.Struct, frozen=True, array_like=True):
    """A token and the logarithm of its probability; `raw` and `special` as in `core.generation.TokenLogprob`."""

    token_id: int
    logprob: float
    raw: bytes
    special: bool


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Of the token that came, and of the likeliest ones in its place, best first."""

    chosen: Candidate
    top: list[Candidate]


class CallPiece(msgspec.Struct, frozen=True, array_like=True):
    """See `core.generation.ToolCallDelta`."""

    index: int
    id: str | None
    name: str | None
    arguments: str


class Vector(msgspec.Struct, frozen=True, array_like=True):
    """See `core.generation.Embedding`."""

    place: int
    values: bytes
    tokens: int


class Aside(msgspec.Struct, frozen=True, array_like=True):
    """What is thought, what is called, and vectors, where those were asked for."""

    reasoning: str
    tool_calls: list[CallPiece]
    vectors: list[Vector] = []


class Row(msgspec.Struct, frozen=True, array_like=True):
    """What one step did for one stream: new ids, the text they completed, how it ended, if it did, and the
    log-probabilities of the ids, if they were asked for. Where the output is parsed, `text` is what is said,
    and `aside` what is not. The first row with tokens tells the `cached_tokens` of the stats."""

    stream_id: str
    token_ids: list[int]
    text: str
    end: Completed | Failed | None = None
    logprobs: list[TokenLogprobs] | None = None
    aside: Aside | None = None
    cached_tokens: int | None = None


class StepFrame(msgspec.Struct, frozen=True, array_like=True, tag=1):
    rows: list[Row]


def join_rows(rows: list[Row], later: Iterable[Row]) -> None:
    """Add `later` rows to `rows`: what only goes on with a stream becomes part of the row that the stream has."""
    places = {row.stream_id: place for place, row in enumerate(rows)}
    for row in later:
        place = places.get(row.stream_id)
        if place is None or row.aside is not None or not _goes_on(rows[place]):
            places[row.stream_id] = len(rows)
            rows.append(row)
            continue
        earlier = rows[place]
        logprobs = [*(earlier.logprobs or ()), *(row.logprobs or ())]
        rows[place] = Row(
            row.stream_id,
            earlier.token_ids + row.token_ids,
            earlier.text + row.text,
            row.end,
            logprobs=logprobs or None,
            cached_tokens=row.cached_tokens if earlier.cached_tokens is None else earlier.cached_tokens,
        )


def _goes_on(row: Row) -> bool:
    return row.end is None and row.aside is None


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """`progress` counts finished pieces of work (steps, prompt chunks, weights read); `busy` says that work waits."""

    progress: int
    busy: bool


class ModelProgress(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """`done` of `total` in `unit` for the model that is being prepared or loaded."""

    model_id: str
    stage: str
    done: int
    total: int


class MemoryWanted(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Somebody waits for memory for KV caches with the model `model_id`. There would be enough if other models went
    that take so many `lacking_bytes`. Said again while it is so."""

    model_id: str
    lacking_bytes: int


class Notice(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Something that the operator should know: `part` of the worker, `what` has come about, and the circumstances."""

    part: str
    what: str
    facts: dict[str, str | int]


Notification: TypeAlias = StepFrame | Heartbeat | ModelProgress | Notice | MemoryWanted

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Notification] = msgspec.msgpack.Decoder(
    StepFrame | Heartbeat | ModelProgress | Notice | MemoryWanted
)


def encode_binary(notification: Notification) -> bytes:
    """One framed message."""
    return encode_frame(_encoder.encode(notification))


def decode_binary(body: bytes) -> Notification:
    """Raises `ProtocolError`."""
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"The worker sent a frame of unknown shape: {error}") from error


def encode_json(notification: Notification) -> bytes:
    """One line per notification of the ancestor's protocol."""
    return b"".join(jsonrpc.encode_notification(method, params) for method, params in _as_json(notification))


def _as_json(notification: Notification) -> Iterator[tuple[str, dict[str, object]]]:
    match notification:
        case StepFrame():
            for row in notification.rows:
                yield from _row_as_json(row)
        case Heartbeat():
            yield "runtime/heartbeat", {"progress": notification.progress, "busy": notification.busy}
        case ModelProgress():
            yield (
                "model.progress",
                {
                    "model_id": notification.model_id,
                    "stage": notification.stage,
                    "done": notification.done,
                    "total": notification.total,
                },
            )
        case MemoryWanted():
            wanted = {"model_id": notification.model_id, "lacking_bytes": notification.lacking_bytes}
            yield "runtime/memory_wanted", dict[str, object](wanted)
        case Notice():
            yield "runtime/notice", {"part": notification.part, "what": notification.what, **notification.facts}
        case _:
            assert_never(notification)


def _row_as_json(row: Row) -> Iterator[tuple[str, dict[str, object]]]:
    if row.token_ids or row.text or row.aside is not None:
        # Text that was held back at the end has no token of its own; several ids may share one text.
        ids = {"token_id": row.token_ids[0]} if len(row.token_ids) == 1 else {"token_ids": row.token_ids}
        chunk = {"stream_id": row.stream_id, "token": row.text, **ids, "is_final": False}
        yield "stream.chunk", {**chunk, **_parts_as_json(row), **_logprobs_as_json(row.logprobs)}
    match row.end:
        case None:
            return
        case Completed():
            stats = row.end.stats
            yield (
                "stream.stats",
                {
                    "stream_id": row.stream_id,
                    "prompt_tokens": stats.prompt_tokens,
                    "tokens_generated": stats.tokens_generated,
                    "tokens_per_second": stats.tokens_per_second,
                    "time_to_first_token": stats.time_to_first_token,
                    "total_time": stats.total_time,
                    "cached_tokens": stats.cached_tokens,
                    "drafted_tokens": stats.drafted_tokens,
                    "accepted_tokens": stats.accepted_tokens,
                    "speculation": stats.speculation,
                },
            )
            yield (
                "stream.event",
                {
                    "stream_id": row.stream_id,
                    "event": "completed",
                    "finish_reason": row.end.finish_reason.value,
                    **({} if row.end.stop is None else {"stop": row.end.stop}),
                    "is_final": True,
                },
            )
        case Failed():
            error = row.end.error
            yield (
                "stream.event",
                {
                    "stream_id": row.stream_id,
                    "event": "error",
                    "error": error.message,
                    "code": error.code,
                    "data": error.data,
                    "is_final": True,
                },
            )
        case _:
            assert_never(row.end)


def _parts_as_json(row: Row) -> dict[str, object]:
    parts: dict[str, object] = {}
    if row.aside is None:
        return parts
    if row.aside.reasoning:
        parts["reasoning"] = row.aside.reasoning
    if row.aside.tool_calls:
        parts["tool_calls"] = [
            {"index": call.index, "id": call.id, "name": call.name, "arguments": call.arguments}
            for call in row.aside.tool_calls
        ]
    if row.aside.vectors:
        parts["embeddings"] = [
            {"place": each.place, "embedding": floats(each.values), "tokens": each.tokens} for each in row.aside.vectors
        ]
    return parts


def _logprobs_as_json(logprobs: list[TokenLogprobs] | None) -> dict[str, object]:
    if not logprobs:
        return {}
    if len(logprobs) == 1:
        [only] = logprobs
        return {"logprob": only.chosen.logprob, "top_logprobs": [_candidate_as_json(each) for each in only.top]}
    return {
        "logprobs": [each.chosen.logprob for each in logprobs],
        "top_logprobs": [[_candidate_as_json(other) for other in each.top] for each in logprobs],
    }


def _candidate_as_json(candidate: Candidate) -> dict[str, object]:
    return {
        "token_id": candidate.token_id,
        "token": candidate.raw.decode("utf-8", "backslashreplace"),
        "bytes": None if candidate.special else list(candidate.raw),
        "logprob": candidate.logprob,
    }
