from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import pytest

from mlx_serving.catalog.aliases import find_gguf
from mlx_serving.errors import ModelLoadError
from mlx_serving.worker.gguf.metadata import Metadata
from mlx_serving.worker.gguf.reader import Header, read_header
from mlx_serving.worker.gguf.tokenizer import GgufTokenizer, read_tokenizer

from .gguf_files import MetadataValue
from .tiny_llama import BOS, CONTEXT, END, TOKEN_TYPES, TOKENS, USER_DEFINED, TinyLlama

TINY = TinyLlama()


class _Tokenization(TypedDict):
    corpus: list[str]
    tokens: dict[str, list[list[int]]]


TOKENIZATION: _Tokenization = json.loads(Path(__file__).with_name("tokenization.json").read_text())


@pytest.fixture(scope="module")
def embedded() -> Header:
    return read_header(find_gguf("smollm2-135m"))


def _read(directory: Path, file: TinyLlama = TINY) -> GgufTokenizer:
    header = read_header(file.write(directory / "model.gguf"))
    return read_tokenizer(Metadata(header), len(TOKENS), CONTEXT)


@pytest.mark.parametrize("pre_tokenizer", TOKENIZATION["tokens"])
def test_tokens_equal_those_of_llama_cpp(embedded: Header, pre_tokenizer: str) -> None:
    metadata = {key: value for key, value in embedded.metadata.items() if key != "tokenizer.ggml.add_bos_token"}
    header = replace(embedded, metadata={**metadata, "tokenizer.ggml.pre": pre_tokenizer})
    tokenizer = read_tokenizer(Metadata(header), 49152, 8192).backend
    for text, expected in zip(TOKENIZATION["corpus"], TOKENIZATION["tokens"][pre_tokenizer], strict=True):
        assert tokenizer.encode(text).ids == expected, text


def test_decoding_gives_the_text_back(embedded: Header) -> None:
    tokenizer = read_tokenizer(Metadata(embedded), 49152, 8192).backend
    for text in TOKENIZATION["corpus"]:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_merges_apply_in_their_order(tmp_path: Path) -> None:
    tokens = _read(tmp_path).backend.encode("hello world").tokens
    assert tokens == ["hello", "Ġwor", "l", "d"]


def test_control_tokens_are_special_and_user_defined_ones_are_text(tmp_path: Path) -> None:
    tokenizer = _read(tmp_path).backend
    ids = tokenizer.encode(f"a{BOS}b{USER_DEFINED}c").ids
    assert ids == [TOKENS.index(token) for token in ("a", BOS, "b", USER_DEFINED, "c")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"ab{USER_DEFINED}c"


def test_a_file_without_token_types_has_normal_tokens_only(tmp_path: Path) -> None:
    tokenizer = _read(tmp_path, TINY.without_metadata("tokenizer.ggml.token_type")).backend
    assert len(tokenizer.encode(BOS).ids) == len(BOS)


def test_a_file_that_names_no_pre_tokenizer_has_the_default_one(tmp_path: Path) -> None:
    tokenizer = _read(tmp_path, TINY.without_metadata("tokenizer.ggml.pre")).backend
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str("a+12345")
    assert [piece for piece, _ in pieces] == ["a", "+", "123", "45"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["h"]),
        ({"tokenizer.ggml.add_bos_token": True}, [BOS, "h"]),
        ({"tokenizer.ggml.add_eos_token": True}, ["h", END]),
        ({"tokenizer.ggml.pre": "llama-bpe"}, [BOS, "h"]),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, ["h"]),
    ],
)
def test_the_tokens_around_a_text(tmp_path: Path, changes: Mapping[str, MetadataValue], expected: list[str]) -> None:
    tokenizer = _read(tmp_path, TINY.with_metadata(changes)).backend
    assert tokenizer.encode("h").tokens == expected
    assert tokenizer.encode("h", add_special_tokens=False).tokens == ["h"]


def test_a_pair_of_texts_has_its_tokens_around_each(tmp_path: Path) -> None:
    around = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    tokenizer = _read(tmp_path, TINY.with_metadata(around)).backend
    assert tokenizer.encode("h", "e").tokens == [BOS, "h", END, BOS, "e", END]


def test_no_token_is_added_that_the_file_does_not_name(tmp_path: Path) -> None:
    file = TINY.with_metadata({"tokenizer.ggml.add_bos_token": True}).without_metadata("tokenizer.ggml.bos_token_id")
    assert _read(tmp_path, file).backend.encode("h").tokens == ["h"]


def test_every_end_of_an_answer_is_found(tmp_path: Path) -> None:
    """The end of the text, the end of a turn by its id, and the end of a turn by its well-known name."""
    tokens = (*TOKENS[:-1], "<|eot_id|>")
    types = (*TOKEN_TYPES[:-1], 3)
    file = TINY.with_metadata(
        {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, "tokenizer.ggml.eom_token_id": 7}
    )
    assert _read(tmp_path, file).special.ends == (TOKENS.index(END), 7, len(TOKENS) - 1)


def test_a_token_that_only_looks_like_an_end_is_none(tmp_path: Path) -> None:
    file = TINY.with_metadata({"tokenizer.ggml.tokens": (*TOKENS[:-1], "<|eot_id|>")})
    assert _read(tmp_path, file).special.ends == (TOKENS.index(END),)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"tokenizer.ggml.model": "llama"},
            "tokenizer.ggml.model must be 'gpt2', which is byte-level BPE (it is 'llama')",
        ),
        (
            {"tokenizer.ggml.pre": "smolm"},
            "tokenizer.ggml.pre names a pre-tokenizer that is not known (close to 'smollm') (it is 'smolm')",
        ),
        ({"tokenizer.ggml.pre": "zzz"}, "tokenizer.ggml.pre names a pre-tokenizer that is not known (it is 'zzz')"),
    ],
)
def test_other_tokenizers_are_refused_by_name(tmp_path: Path, changes: Mapping[str, MetadataValue], says: str) -> None:
    with pytest.raises(ModelLoadError, match="is not supported") as caught:
        _read(tmp_path, TINY.with_metadata(changes))
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokenizer.ggml.tokens": ("a", "a")}, "tokenizer.ggml.tokens has a token twice"),
        ({"tokenizer.ggml.tokens": (*TOKENS, "more")}, f"has {len(TOKENS) + 1} tokens for {len(TOKENS)} embeddings"),
        ({"tokenizer.ggml.token_type": (1, 1)}, f"tokenizer.ggml.token_type has 2 entries for {len(TOKENS)} tokens"),
        ({"tokenizer.ggml.merges": ("h e", "q ē")}, "tokenizer.ggml.merges has 'q ē', whose parts or result"),
        ({"tokenizer.ggml.merges": ("he",)}, "tokenizer.ggml.merges has 'he'"),
        ({"tokenizer.ggml.eos_token_id": 9999}, f"tokenizer.ggml.eos_token_id is no token: there are {len(TOKENS)}"),
    ],
)
def test_a_vocabulary_that_does_not_fit_together_is_damaged(
    tmp_path: Path, changes: Mapping[str, MetadataValue], says: str
) -> None:
    with pytest.raises(ModelLoadError, match="is damaged") as caught:
        _read(tmp_path, TINY.with_metadata(changes))
    assert says in caught.value.message


def test_written_files_name_the_special_tokens(tmp_path: Path) -> None:
    _read(tmp_path).write(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "bos_token": BOS,
        "eos_token": END,
    }
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {
        "bos_token_id": TOKENS.index(BOS),
        "eos_token_id": [TOKENS.index(END)],
        "do_sample": False,
    }
    assert (tmp_path / "chat_template.jinja").read_text() == TINY.metadata["tokenizer.chat_template"]


def test_without_a_chat_template_no_such_file_is_written(tmp_path: Path) -> None:
    _read(tmp_path, TINY.without_metadata("tokenizer.chat_template")).write(tmp_path)
    assert not (tmp_path / "chat_template.jinja").exists()
