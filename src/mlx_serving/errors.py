"""Everything that can go wrong, in one tree, ordered by who must act.

    EngineError
    ├── InvalidRequest            the caller: names the field, the limit and what was given
    │   ├── MalformedMessage        not JSON at all
    │   ├── InvalidEnvelope         JSON, but no request
    │   │   └── MessageTooLarge       over the limit, dropped unread
    │   ├── UnknownMethod
    │   ├── UnsupportedParameter    known to the protocol, not served here; never ignored
    │   ├── ContextLengthExceeded   prompt + max_tokens do not fit; carries the numbers
    │   ├── GuidanceError           the structure asked of the answer is impossible, too complex or not supported
    │   ├── ImageEncodingError      a picture cannot be brought into the form that models take
    │   │   ├── InvalidImageInput     it is damaged, too large, or one too many
    │   │   ├── ImageFileNotFound
    │   │   ├── UnsupportedImageFormat  no picture, not what it is said to be, or animated
    │   │   ├── ImageFetchFailed      its URL may not be fetched, or cannot be
    │   │   └── UnsafeImagePath       its path may not be read on behalf of this caller
    │   ├── Unauthenticated         no or wrong API key
    │   └── Forbidden               not this caller's right
    ├── NotFound
    │   ├── ModelNotFound           nobody configured or can find it
    │   └── ModelNotLoaded          known, but not in the worker
    │       └── ModelReplaced         another version has taken its place
    ├── Overloaded                wait: carries retry_after
    │   ├── MemoryInUse             a model would fit if others were not used
    │   ├── CircuitOpen             the worker fails too often to be asked again at once
    │   └── RateLimited             this caller has used up what it may for a while
    │       └── QuotaExceeded         and for today
    ├── Aborted                   the caller left or cancelled
    ├── DeadlineExceeded          the time that the caller or the configuration allows is over
    ├── ModelError                the operator
    │   ├── ModelLoadError
    │   │   ├── HubRefused            the hub does not give it to us
    │   │   ├── HubUnreachable        the hub does not answer, or cannot now
    │   │   └── InsufficientMemory    its weights do not fit; carries the numbers
    │   ├── GenerationError
    │   └── TokenizerError
    ├── WorkerDied                the child process is gone: signal, stderr tail, finding
    │   ├── WorkerHung              it stopped making progress and was killed
    │   ├── WorkerGaveUp            it died so often that it is not restarted for a while
    │   └── RequestCrashedWorker    this request, tried alone, is what kills it
    ├── EngineClosed              the engine was shut down
    ├── InvalidConfig             the operator: path, value, where it was set, did-you-mean
    └── ProtocolError             us: never retried

Each class has a stable `code` (the name users of the API match on), an HTTP status, a JSON-RPC number and says whether
the same request may succeed when it is sent again. Layers translate with these attributes, never by reading a
message.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar, TypedDict, Unpack


class EngineError(Exception):
    """Base of every error this package raises on purpose.

    `details` holds JSON-compatible facts; what a subclass takes as keyword arguments ends up there.
    """

    code: ClassVar[str] = "RuntimeError"
    http_status: ClassVar[int] = 500
    rpc_code: ClassVar[int] = -32099
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, object] = {key: value for key, value in details.items() if value is not None}

    def to_object(self) -> dict[str, object]:
        """`{code, message, details}`, ready for JSON."""
        return {"code": self.code, "message": self.message, "details": self.details}

    toObject = to_object  # noqa: N815  the ancestor's spelling


class WhatIsInvalid(TypedDict, total=False):
    """Of a request; see `InvalidRequest`."""

    field: str | None
    limit: object
    given: object
    issues: list[dict[str, object]] | None


class InvalidRequest(EngineError):
    """The request cannot be served as it is; sending it again will not help.

    `field` is the path of the offending parameter (`messages[0].role`), `limit` what is allowed, `given` what came.
    `issues` lists every problem when there are several, each `{field, message, limit?, given?}`.
    """

    field: str | None = None
    code = "InvalidParams"
    http_status = 400
    rpc_code = -32602

    def __init__(self, message: str, **what: Unpack[WhatIsInvalid]) -> None:
        super().__init__(message, **what)
        self.field = what.get("field")


class MalformedMessage(InvalidRequest):
    code = "ParseError"
    rpc_code = -32700


class InvalidEnvelope(InvalidRequest):
    code = "InvalidRequest"
    rpc_code = -32600


class MessageTooLarge(InvalidEnvelope):
    http_status = 413


class UnknownMethod(InvalidRequest):
    code = "MethodNotFound"
    http_status = 404
    rpc_code = -32601


class UnsupportedParameter(InvalidRequest):
    """A parameter of the protocol that this server does not act on: refused, so that nobody relies on it."""


class ContextLengthExceeded(InvalidRequest):
    """`lacking_bytes`: with so much less of other models in memory there would be room for it."""

    code = "ContextLengthExceeded"

    def __init__(self, message: str, *, lacking_bytes: int | None = None, **what: Unpack[WhatIsInvalid]) -> None:
        super().__init__(message, **what)
        if lacking_bytes is not None:
            self.details["lacking_bytes"] = lacking_bytes


class GuidanceError(InvalidRequest):
    """The form that an answer must have cannot be had. `keywords` are those of the schema that are at fault, where it
    is one of them."""

    code = "GuidanceError"
    rpc_code = -32004

    def __init__(self, message: str, *, keywords: list[str] | None = None, **what: Unpack[WhatIsInvalid]) -> None:
        super().__init__(message, **what)
        if keywords:
            self.details["keywords"] = keywords


class ImageEncodingError(InvalidRequest):
    """`field` names the picture. Of a URL, messages name the host only: the rest may be a secret."""

    code = "IMAGE_ENCODING_FAILED"


class InvalidImageInput(ImageEncodingError):
    code = "INVALID_IMAGE_INPUT"


class ImageFileNotFound(ImageEncodingError):
    code = "IMAGE_FILE_NOT_FOUND"


class UnsupportedImageFormat(ImageEncodingError):
    code = "UNSUPPORTED_IMAGE_FORMAT"


class ImageFetchFailed(ImageEncodingError):
    code = "IMAGE_FETCH_FAILED"


class UnsafeImagePath(ImageEncodingError):
    code = "UNSAFE_IMAGE_PATH"


class Unauthenticated(InvalidRequest):
    code = "Unauthenticated"
    http_status = 401
    rpc_code = -32600


class Forbidden(InvalidRequest):
    code = "Forbidden"
    http_status = 403
    rpc_code = -32600


class NotFound(EngineError):
    code = "NotFound"
    http_status = 404
    rpc_code = -32602


class ModelNotFound(NotFound):
    """`details.model` is the name that was asked for."""

    code = "ModelNotFound"
    rpc_code = -32001


class ModelNotLoaded(NotFound):
    code = "ModelNotLoaded"
    rpc_code = -32005


class ModelReplaced(ModelNotLoaded):
    """The model made room for another version of itself: who used it goes on with that one."""

    http_status = 503
    retryable = True


class Overloaded(EngineError):
    """Try again after `retry_after` seconds."""

    retry_after: float = 1.0

    code = "Overloaded"
    http_status = 503
    rpc_code = -32008
    retryable = True

    def __init__(self, message: str, *, retry_after: float, **details: object) -> None:
        super().__init__(message, retry_after=round(retry_after, 3), **details)
        self.retry_after = retry_after


class MemoryInUse(Overloaded):
    """A model has no room beside those that are in use, and their users did not finish in time."""

    code = "MemoryInUse"


class CircuitOpen(Overloaded):
    code = "CircuitOpen"


class RateLimited(Overloaded):
    """`details` carries `what` is limited, and the `limit`."""

    code = "RateLimited"
    http_status = 429


class QuotaExceeded(RateLimited):
    code = "QuotaExceeded"
    retryable = False


class Aborted(EngineError):
    code = "Cancelled"
    http_status = 499
    rpc_code = -32006


class DeadlineExceeded(EngineError):
    code = "Timeout"
    http_status = 504
    rpc_code = -32007
    retryable = True


class ModelError(EngineError):
    """Something is wrong with a model or with what it did."""


class ModelLoadError(ModelError):
    code = "ModelLoadError"
    rpc_code = -32001


class HubRefused(ModelLoadError):
    """`details.status` is that of the hub's answer, where there is one."""

    code = "HubRefused"
    http_status = 502


class HubUnreachable(ModelLoadError):
    """The model is not here, and where it would come from cannot be asked."""

    code = "HubUnreachable"
    http_status = 503


class InsufficientMemory(ModelLoadError):
    """`details` carries `weights_bytes`, `available_bytes`, `capacity_bytes`, `loaded_bytes` and `limited_by`."""

    code = "InsufficientMemory"
    http_status = 507


class GenerationError(ModelError):
    code = "GenerationError"
    rpc_code = -32002


class TokenizerError(ModelError):
    code = "TokenizerError"
    rpc_code = -32003


class DeathOrigin(StrEnum):
    """Who brought a worker's death about."""

    INSIDE = "inside"  # its own doing: a crash, an exit, a stuck device, a broken protocol
    OUTSIDE = "outside"  # a signal from elsewhere, or a process that was stopped
    PLANNED = "planned"  # we ended it on purpose


class WorkerDied(EngineError):
    """The worker process ended while it was needed.

    `details` carries `exit_code` or `signal`, `finding` (what a known crash text means) and `stderr_tail`.
    """

    origin: DeathOrigin = DeathOrigin.INSIDE

    code = "WorkerDied"
    http_status = 503
    rpc_code = -32000
    retryable = True

    def __init__(self, message: str, *, origin: DeathOrigin = DeathOrigin.INSIDE, **details: object) -> None:
        super().__init__(message, **details)
        self.origin = origin


class WorkerHung(WorkerDied):
    code = "WorkerHung"


class WorkerGaveUp(WorkerDied):
    """It died so often that it is not restarted for a while; `details.retry_after` says how long."""

    code = "WorkerGaveUp"
    retryable = False


class RequestCrashedWorker(WorkerDied):
    """The worker died of this request again and again, at last while it was tried alone. `details.losses` counts."""

    code = "RequestCrashedWorker"
    http_status = 500
    retryable = False


class EngineClosed(EngineError):
    code = "EngineClosed"
    http_status = 503
    rpc_code = -32000


class InvalidConfig(EngineError):
    """`details` carries `issues`: a list of `{path, message, value?, origin?, suggestion?}`."""

    code = "InvalidConfig"

    def __init__(self, message: str, *, issues: list[dict[str, object]] | None = None) -> None:
        super().__init__(message, issues=issues)


class ProtocolError(EngineError):
    """The other end of the pipe broke the protocol. A defect of ours: never retried."""

    code = "TransportError"
    http_status = 500
    rpc_code = -32603


def _subclasses(root: type[EngineError]) -> list[type[EngineError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _subclasses(child))]


BY_CODE: Mapping[str, type[EngineError]] = {
    cls.code: cls for cls in reversed(_subclasses(EngineError)) if "code" in cls.__dict__
}
"""The class that stands for each code. Where a class inherits its code, its parent stands for it."""


def from_code(code: str, message: str, details: Mapping[str, object] | None = None) -> EngineError:
    """Rebuild an error that crossed a process boundary. An unknown code becomes a plain `EngineError`."""
    cls = BY_CODE.get(code, EngineError)
    error = cls.__new__(cls)
    EngineError.__init__(error, message)
    error.details.update({key: value for key, value in (details or {}).items() if value is not None})
    for name in ("field", "retry_after"):
        if name in error.details:
            setattr(error, name, error.details[name])
    return error
