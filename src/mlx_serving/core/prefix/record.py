"""Records of prefixes on disk, and the keys that they are found by.

A record holds what a model's caches keep for a run of tokens, and names the record that it goes on from: a path of
records is the beginning of a prompt. A record's key is a hash over all tokens up to its end, and over the model and the
salt they were computed under, so whoever computes the same thing finds the same record, in whatever process. A record
that holds a whole state, which cannot be cut, goes on from none: it has all tokens up to its end.

Tokens are packed: four bytes each, so that they are compared and hashed whole.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Key: TypeAlias = str
"""40 hexadecimal digits."""

RecordKind = Literal["blocks", "state"]
"""`blocks`: what each token has added, so that any beginning of the record can be used. `state`: a whole that can only
be used as it was after the last token."""

TOKEN_BYTES = 4
KEY_DIGITS = 40


def pack(token_ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(token_ids)}I", *token_ids)


def unpack(tokens: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(tokens) // TOKEN_BYTES}I", tokens)


def root_key(model: str, salt: str, kind: RecordKind) -> Key:
    """Where paths begin: nobody finds what was computed by another model or under another salt."""
    return _digest(b"root", *(part.encode() for part in (kind, model, salt)))


def chain_key(parent: Key, tokens: bytes) -> Key:
    """The key of the record that holds these packed tokens behind those of `parent`."""
    return _digest(b"record", bytes.fromhex(parent), tokens)


def _digest(*parts: bytes) -> Key:
    digest = hashlib.sha256()
    for part in parts:  # with their lengths, so that no two lists of parts look the same
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)
    return digest.hexdigest()[:KEY_DIGITS]


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """`start` tokens come before its own, those of `parent`; at 0 that is a root. `model` is the fingerprint of the
    model it belongs to. `size` is its file's in bytes, `used_at` Unix seconds."""

    key: Key
    parent: Key
    model: str
    start: int
    tokens: bytes
    size: int
    used_at: float

    @property
    def count(self) -> int:
        return len(self.tokens) // TOKEN_BYTES

    @property
    def end(self) -> int:
        return self.start + self.count


def shared_bytes(one: bytes, other: bytes) -> int:
    """How many bytes of whole tokens both begin with."""
    low, high = 0, min(len(one), len(other)) // TOKEN_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        begin, end = low * TOKEN_BYTES, middle * TOKEN_BYTES
        if one[begin:end] == other[begin:end]:
            low = middle
        else:
            high = middle - 1
    return low * TOKEN_BYTES
