"""Whose request it was, without keeping the key: only a salted, slow hash of it leaves this process."""

from __future__ import annotations

import hashlib
import secrets
from hmac import compare_digest

import msgspec

_ROUNDS = 100_000


class KeyHash(msgspec.Struct, frozen=True):
    salt: bytes
    digest: bytes

    def matches(self, key: str | None) -> bool:
        """Whether this is the hash of `key`. Takes tens of milliseconds, as long for a wrong key as for the right."""
        return key is not None and compare_digest(_digest(key, self.salt), self.digest)


def hash_of(key: str) -> KeyHash:
    salt = secrets.token_bytes(16)
    return KeyHash(salt, _digest(key, salt))


def _digest(key: str, salt: bytes) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", key.encode("utf-8", "surrogatepass"), salt, _ROUNDS)
