"""A server that speaks OpenAI's API, ours or anybody's."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import cast
from urllib.parse import urlsplit

import msgspec

from mlx_serving.bench.event_stream import EventReader
from mlx_serving.bench.http_client import ConnectionFailed, HttpClient
from mlx_serving.bench.records import Answer
from mlx_serving.bench.target import Count, RequestFailed, TargetFacts
from mlx_serving.bench.workload import Ask, Endpoint
from mlx_serving.errors import InvalidRequest, ModelNotFound

_PATHS = {Endpoint.CHAT: "/chat/completions", Endpoint.COMPLETIONS: "/completions"}
_SHOWN_CHARS = 300


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    completion_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_chunk_decoder = msgspec.json.Decoder(_Chunk)


@asynccontextmanager
async def open_http_target(
    url: str,
    *,
    name: str,
    model: str | None,
    api_key: str | None = None,
    extra_body: Mapping[str, object] | None = None,
    facts: Mapping[str, str] | None = None,
) -> AsyncGenerator[HttpTarget]:
    """The server at `url` (`http://host:port`, with or without a path such as `/v1`), until the block ends.

    Without a `model`, the first that the server lists. `extra_body` is merged into the body of every request. Raises
    `InvalidRequest` for an address that is none, `ModelNotFound`, and `RequestFailed` when the models cannot be listed.
    """
    origin, path = _split(url)
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    client = HttpClient(origin, headers)
    try:
        chosen = model or await _first_model(client, path, name)
        about = TargetFacts(name, chosen, facts or {})
        yield HttpTarget(client, path, about, extra_body or {})
    finally:
        client.close()


class HttpTarget:
    def __init__(self, client: HttpClient, path: str, about: TargetFacts, extra_body: Mapping[str, object]) -> None:
        self._client = client
        self._path = path
        self._about = about
        self._extra_body = extra_body

    @property
    def about(self) -> TargetFacts:
        return self._about

    @property
    def count_tokens(self) -> Count | None:
        return None

    async def send(self, ask: Ask) -> Answer:
        """See `Target`."""
        prompt: dict[str, object] = (
            {"messages": [{"role": "user", "content": ask.prompt}]}
            if ask.endpoint is Endpoint.CHAT
            else {"prompt": ask.prompt}
        )
        body = {
            "model": self._about.model,
            **prompt,
            "max_tokens": ask.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **ask.sampling,
            **self._extra_body,
        }
        reading = _Reading()
        path = self._path + _PATHS[ask.endpoint]
        try:
            status = await self._client.exchange("POST", path, msgspec.json.encode(body), reading.feed)
        except ConnectionFailed as error:
            raise RequestFailed("connection", str(error)) from None
        if status != 200:
            raise _refused(status, bytes(reading.refusal))
        return reading.answer(time.perf_counter())


class _Reading:
    """The answer to one request, as its bytes come."""

    def __init__(self) -> None:
        self._events = EventReader()
        self._arrivals_s: list[float] = []
        self._text: list[str] = []
        self._usage: _Usage | None = None
        self._ended = False
        self.refusal = bytearray()

    def feed(self, status: int, data: bytes) -> None:
        """Raises `RequestFailed` for an error in the stream and for what is no stream of chunks."""
        if status != 200:
            self.refusal += data
            return
        now = time.perf_counter()
        for event in self._events.feed(data):
            if event == b"[DONE]":
                self._ended = True
                continue
            try:
                chunk = _chunk_decoder.decode(event)
            except msgspec.MsgspecError as error:
                raise RequestFailed("protocol", f"an event that is no completion chunk: {error}") from None
            error = chunk.error
            if error is not None:
                raise _failure(error, "stream")
            if chunk.usage is not None:
                self._usage = chunk.usage
            for choice in chunk.choices:
                self._ended = self._ended or choice.finish_reason is not None
                text = _text_of(choice)
                if text:
                    self._text.append(text)
                    if not self._arrivals_s or self._arrivals_s[-1] != now:
                        self._arrivals_s.append(now)

    def answer(self, ended_s: float) -> Answer:
        """Raises `RequestFailed` for a stream that was cut off."""
        if not self._ended:
            raise RequestFailed("truncated", "the stream ended without a finish_reason")
        told = None if self._usage is None else self._usage.completion_tokens
        details = (None if self._usage is None else self._usage.completion_tokens_details) or _Details()
        accepted = details.accepted_prediction_tokens or 0
        return Answer(
            arrivals_s=tuple(self._arrivals_s),
            ended_s=ended_s,
            output_tokens=len(self._text) if told is None else told,
            prompt_tokens=None if self._usage is None else self._usage.prompt_tokens,
            counted=told is not None,
            text="".join(self._text),
            drafted_tokens=accepted + (details.rejected_prediction_tokens or 0),
            accepted_tokens=accepted,
        )


def _text_of(choice: _Choice) -> str:
    delta = choice.delta
    if delta is None:
        return choice.text or ""
    return (delta.content or "") + (delta.reasoning_content or delta.reasoning or "")


def _refused(status: int, body: bytes) -> RequestFailed:
    try:
        error = _chunk_decoder.decode(body).error
    except msgspec.MsgspecError:
        error = None
    if error is None:
        return RequestFailed(f"http_{status}", body[:_SHOWN_CHARS].decode(errors="replace"))
    return _failure(error, f"http_{status}")


def _failure(error: object, otherwise: str) -> RequestFailed:
    """OpenAI's `{code, type, message}`, or whatever else stands there; `otherwise` is the code where none is given."""
    if not isinstance(error, dict):
        return RequestFailed(otherwise, str(error)[:_SHOWN_CHARS])
    described = cast("dict[str, object]", error)
    code = described.get("code") or described.get("type") or otherwise
    return RequestFailed(str(code), str(described.get("message", ""))[:_SHOWN_CHARS])


async def _first_model(client: HttpClient, path: str, name: str) -> str:
    body = bytearray()
    try:
        status = await client.exchange("GET", f"{path}/models", b"", lambda _, data: body.extend(data))
    except ConnectionFailed as error:
        raise RequestFailed("connection", f"{name}: {error}") from None
    if status != 200:
        refused = _refused(status, bytes(body))
        raise RequestFailed(refused.code, f"{name} does not list its models: {refused.message}; name one")
    try:
        listed = msgspec.json.decode(bytes(body), type=_Models).data
    except msgspec.MsgspecError as error:
        raise RequestFailed("protocol", f"{name} does not list its models as OpenAI does ({error}); name one") from None
    if not listed:
        raise ModelNotFound(f"{name} lists no models: name one")
    return listed[0].id


def _split(url: str) -> tuple[str, str]:
    """The origin, and the path under which the API is: `/v1` where none is given."""
    parts = urlsplit(url)
    if "@" in parts.netloc:  # it would stand in every report
        raise InvalidRequest("The address of a target must not hold a user or a password", field="target")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.query or parts.fragment:
        raise InvalidRequest(
            f"A target is engine, server or an http(s) address, got {url!r}", field="target", given=url
        )
    return f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/") or "/v1"
