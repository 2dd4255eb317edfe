"""What bytes a token stands for: less than a character, one, or many."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import pre_tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class NamedBytes(NamedTuple):
    """Of a `special` token, which is no part of any text, the bytes are its name."""

    raw: bytes
    special: bool


class TokenBytes:
    """Token ids to bytes, for the calling thread: it works with a copy of the tokenizer, and remembers."""

    def __init__(self, wrapper: TokenizerWrapper) -> None:
        self._tokenizer: Any = copy.deepcopy(wrapper._tokenizer)  # noqa: SLF001  pyright: ignore[reportPrivateUsage]
        added = cast("Mapping[int, Any]", self._tokenizer.added_tokens_decoder)
        self._added = {
            token_id: NamedBytes(str(token).encode(), bool(token.special)) for token_id, token in added.items()
        }
        self._to_bytes = self._reader()
        self._known: dict[int, NamedBytes] = {}

    def __call__(self, token_id: int) -> NamedBytes:
        """An id without a token, as in vocabularies that were padded, has no bytes."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._added.get(token_id) or NamedBytes(self._read(token_id), False)
        return known

    def _read(self, token_id: int) -> bytes:
        token = cast("str | None", self._tokenizer.convert_ids_to_tokens(token_id))
        return b"" if token is None else self._to_bytes(token_id, token)

    def _reader(self) -> Callable[[int, str], bytes]:
        kinds = set(_decoder_kinds(self._tokenizer))
        if "ByteLevel" in kinds:
            return lambda _, token: _from_byte_level(token)
        if "ByteFallback" in kinds:
            return lambda _, token: _from_byte_fallback(token)
        return lambda token_id, _: self._by_decoding(token_id)

    def _by_decoding(self, token_id: int) -> bytes:
        """What the token adds to a text: decoded alone, it may lose the space it begins with."""
        before = cast(str, self._tokenizer.decode([token_id]))
        both = cast(str, self._tokenizer.decode([token_id, token_id]))
        return both.removeprefix(before).encode()


def _decoder_kinds(tokenizer: Any) -> Iterator[str]:
    """The types of a fast tokenizer's decoders; a slow one has none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = None if backend is None else backend.decoder
    if decoder is not None:
        yield from _types(json.loads(decoder.__getstate__()))


def _types(decoder: Mapping[str, Any]) -> Iterator[str]:
    yield str(decoder["type"])
    for inner in cast("list[Mapping[str, Any]]", decoder.get("decoders", [])):
        yield from _types(inner)


def _byte_values() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies.

    Printable bytes of Latin-1 stand for themselves, the others, in order, for the characters from U+0100 on
    (Radford et al., 2019).
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = {character: ord(character) for character in alphabet if ord(character) < 256}
    others = sorted(set(range(256)) - set(own.values()))
    return own | dict(zip((character for character in alphabet if ord(character) >= 256), others, strict=True))


_BYTE_VALUES = _byte_values()


def _from_byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTE_VALUES[character] for character in token])
    except KeyError:
        return token.encode()  # a token that was added as it is


def _from_byte_fallback(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()
