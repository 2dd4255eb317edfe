"""What bytes a token stands for, in every kind of tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordPiece
from transformers import PreTrainedTokenizerFast

from mlx_serving.worker.token_bytes import TokenBytes

from ..tiny_models import BOS, VOCABULARY, token_ids


@pytest.fixture(scope="module")
def byte_level(llama: Path) -> TokenBytes:
    return TokenBytes(load_tokenizer(llama))


@given(st.text(min_size=1))
def test_byte_level_tokens_add_up_to_the_text(byte_level: TokenBytes, text: str) -> None:
    assert b"".join(byte_level(token_id).raw for token_id in token_ids(text)) == text.encode()


def test_every_byte_has_its_token(byte_level: TokenBytes) -> None:
    assert {byte_level(token_id).raw for token_id in range(256)} == {bytes([value]) for value in range(256)}


def test_a_special_token_has_its_name(byte_level: TokenBytes) -> None:
    assert byte_level(BOS) == (b"<|endoftext|>", True)
    assert byte_level(BOS) is byte_level(BOS)


def test_an_id_without_a_token_has_no_bytes(byte_level: TokenBytes) -> None:
    assert byte_level(VOCABULARY + 5) == (b"", False)


def wrapped(tokenizer: Tokenizer) -> TokenizerWrapper:
    make: Any = TokenizerWrapper
    return make(cast(Any, PreTrainedTokenizerFast)(tokenizer_object=tokenizer))


def test_tokens_that_were_added_are_their_text() -> None:
    tokenizer = Tokenizer(BPE(vocab={"a": 0}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    cast(Any, tokenizer).add_tokens([AddedToken("<think> é", normalized=False)])
    assert TokenBytes(wrapped(tokenizer))(1) == ("<think> é".encode(), False)


@pytest.mark.parametrize("strips", [True, False])
def test_byte_fallback_tokens_are_bytes_and_blocks_are_spaces(strips: bool) -> None:
    """As in SentencePiece models: a text's first space may be stripped, a token's never is."""
    vocab = {"<unk>": 0, "<0xE2>": 1, "<0x82>": 2, "<0xAC>": 3, "▁Paris": 4, "▁": 5, "é": 6}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    stages: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*stages, *([decoders.Strip(" ", 1, 0)] if strips else [])])
    of = TokenBytes(wrapped(tokenizer))
    assert b"".join(of(token_id).raw for token_id in (1, 2, 3)).decode() == "€"
    assert [of(token_id).raw for token_id in (4, 5, 6)] == [b" Paris", b" ", "é".encode()]


def test_a_decoder_of_another_kind_is_asked_what_the_token_adds() -> None:
    tokenizer = Tokenizer(WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    of = TokenBytes(wrapped(tokenizer))
    assert [of(1).raw, of(2).raw] == [b" play", b"ing"]
