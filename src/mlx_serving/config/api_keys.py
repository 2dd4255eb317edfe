"""API keys with limits of their own: the file that holds them, and how they are told apart without being stored.

A key is stored as `sha256:<salt>:<digest>`, both in hexadecimal. One round of SHA-256 is enough, because what is hashed
has 256 bits of randomness: nobody can try them all, however fast the hash. A slow hash, which passwords need, would let
anybody keep the server busy by sending wrong keys. The salt keeps equal keys of two files from being recognised.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Sequence
from datetime import datetime
from hmac import compare_digest
from pathlib import Path
from typing import Annotated

import msgspec

from mlx_serving.core.generation import Priority
from mlx_serving.core.key_usage import KeyLimits
from mlx_serving.errors import InvalidConfig

KEY_PREFIX = "mls-"
MIN_KEY_CHARS = 32
"""Of a key that somebody brings along: the hash protects no less."""

_Limit = Annotated[int, msgspec.Meta(ge=1)]
_MAX_KEYS = 1000  # all are tried for each request, which takes a microsecond each
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
_Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
_Hash = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{16,64}:[0-9a-f]{64}$")]


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key as it is stored. What is not given is not limited."""

    name: _Name
    hash: _Hash
    models: list[str] | None = None
    requests_per_minute: _Limit | None = None
    tokens_per_minute: _Limit | None = None
    max_concurrent: _Limit | None = None
    daily_tokens: _Limit | None = None
    priority: Priority = "normal"
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None

    @property
    def limits(self) -> KeyLimits:
        return KeyLimits(
            models=None if self.models is None else frozenset(self.models),
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            max_concurrent=self.max_concurrent,
            daily_tokens=self.daily_tokens,
            priority=self.priority,
            expires_at=None if self.expires is None else self.expires.timestamp(),
        )

    def matches(self, sent: bytes) -> bool:
        """Whether this is the key that was sent; it takes the same time wherever the difference is."""
        _, salt, digest = self.hash.split(":")
        return compare_digest(_digest(salt, sent), digest)


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: Annotated[list[ApiKey], msgspec.Meta(max_length=_MAX_KEYS)] = []


def new_key() -> str:
    """A key that nobody has."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """How a key is stored; each call draws another salt."""
    salt = secrets.token_hex(16)
    return f"sha256:{salt}:{_digest(salt, key.encode())}"


def _digest(salt: str, key: bytes) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + key).hexdigest()


def parse_keys(text: bytes | str, source: str) -> tuple[ApiKey, ...]:
    """The keys of a document `{"keys": [...]}`. Raises `InvalidConfig`, which quotes no hash."""
    try:
        keys = msgspec.json.decode(text, type=_Document).keys
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _refused(source, str(error)) from None
    names = [key.name for key in keys]
    for name in names:
        if names.count(name) > 1:
            raise _refused(source, f"the name {name} is given to {names.count(name)} keys")
    return tuple(keys)


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file. Raises `InvalidConfig`."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise _refused(str(path), f"cannot be read: {error.strerror}") from None
    return parse_keys(text, str(path))


def write_keys(path: Path, keys: Sequence[ApiKey]) -> None:
    """Replace the file in one step, readable for its owner only. Raises `InvalidConfig`."""
    text = msgspec.json.format(msgspec.json.encode(_Document(list(keys))), indent=2)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as fresh:
            fresh.write(text + b"\n")
            fresh.flush()
            os.fsync(fresh.fileno())
        Path(fresh.name).replace(path)
    except OSError as error:
        raise _refused(str(path), f"cannot be written: {error.strerror}") from None


def _refused(source: str, why: str) -> InvalidConfig:
    return InvalidConfig(f"API keys in {source}: {why}", issues=[{"path": "keys", "message": f"{source}: {why}"}])
