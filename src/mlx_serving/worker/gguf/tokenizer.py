"""The byte-level BPE tokenizer of a GGUF file, as the files that transformers and mlx-lm load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from mlx_serving.core.suggest import did_you_mean
from mlx_serving.worker.gguf.metadata import Metadata
from mlx_serving.worker.gguf.pretokenizers import PRE_TOKENIZERS, PreTokenizer

# Tokens that end a turn by their very name. Files often name only one of several as the end.
_TURN_ENDS = frozenset({"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end_of_text|>"})
_TOKENS, _MERGES, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type"


class TokenType(IntEnum):
    """`llama_token_type` of llama.cpp."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the tokens with a role; None where the file names none. `ends` are all that end an answer."""

    bos: int | None
    eos: int | None
    unknown: int | None
    padding: int | None
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """A tokenizer as the GGUF file describes it, ready to be written."""

    tokens: tuple[str, ...]
    special: SpecialTokens
    backend: Tokenizer
    chat_template: str | None
    context_length: int

    def config(self) -> dict[str, object]:
        """What config.json says of the tokenizer."""
        ids = {
            "bos_token_id": self.special.bos,
            "eos_token_id": self.special.eos,
            "pad_token_id": self.special.padding,
        }
        return {key: number for key, number in ids.items() if number is not None}

    def write(self, directory: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json, generation_config.json and, if there is one, the template."""
        self.backend.save(str(directory / "tokenizer.json"))
        roles = {
            "bos_token": self.special.bos,
            "eos_token": self.special.eos,
            "unk_token": self.special.unknown,
            "pad_token": self.special.padding,
        }
        _write_json(
            directory / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": self.context_length,
                "clean_up_tokenization_spaces": False,
                **{role: self.tokens[number] for role, number in roles.items() if number is not None},
            },
        )
        # Greedy unless a request says otherwise: a GGUF file names no sampling defaults.
        generation: dict[str, object] = {**self.config(), "do_sample": False}
        if self.special.ends:
            generation["eos_token_id"] = list(self.special.ends)
        _write_json(directory / "generation_config.json", generation)
        if self.chat_template is not None:
            (directory / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")


def read_tokenizer(metadata: Metadata, vocabulary: int, context_length: int) -> GgufTokenizer:
    """The tokenizer of a model with `vocabulary` embeddings.

    Raises `ModelLoadError` for a tokenizer that is not byte-level BPE, an unknown pre-tokenizer, and for tokens, merges
    and ids that do not fit together.
    """
    if metadata.text("tokenizer.ggml.model") != "gpt2":
        metadata.unsupported("tokenizer.ggml.model", "must be 'gpt2', which is byte-level BPE")
    tokens = metadata.texts(_TOKENS)
    if len(set(tokens)) != len(tokens):
        metadata.invalid(_TOKENS, "has a token twice")
    if len(tokens) > vocabulary:
        metadata.invalid(_TOKENS, f"has {len(tokens)} tokens for {vocabulary} embeddings")
    pre_tokenizer = _pre_tokenizer(metadata)
    special = _special_tokens(metadata, tokens)
    return GgufTokenizer(
        tokens=tokens,
        special=special,
        backend=_backend(metadata, tokens, pre_tokenizer, special),
        chat_template=metadata.text("tokenizer.chat_template", "") or None,
        context_length=context_length,
    )


def _pre_tokenizer(metadata: Metadata) -> PreTokenizer:
    name = metadata.text("tokenizer.ggml.pre", "default")
    found = PRE_TOKENIZERS.get(name)
    if found is None:
        suggestion = did_you_mean(name, PRE_TOKENIZERS)
        metadata.unsupported(
            "tokenizer.ggml.pre",
            f"names a pre-tokenizer that is not known{f' (close to {suggestion!r})' if suggestion else ''}",
        )
    return found


def _backend(
    metadata: Metadata, tokens: Sequence[str], pre_tokenizer: PreTokenizer, special: SpecialTokens
) -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=_merges(metadata, vocabulary), ignore_merges=pre_tokenizer.ignore_merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in pre_tokenizer.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = _post_processor(metadata, tokens, pre_tokenizer, special)
    types = _types(metadata, len(tokens))
    whole = {TokenType.CONTROL: True, TokenType.UNKNOWN: True, TokenType.USER_DEFINED: False}
    for kind, is_special in whole.items():
        added = [
            AddedToken(token, special=is_special, normalized=False)
            for token, number in zip(tokens, types, strict=True)
            if number == kind and token
        ]
        # In one call: adding one by one is quadratic.
        tokenizer.add_tokens(added)  # pyright: ignore[reportUnknownMemberType]  its stub says list, not of what
    return tokenizer


def _merges(metadata: Metadata, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for merge in metadata.texts(_MERGES):
        left, _, right = merge.partition(" ")
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            metadata.invalid(_MERGES, f"has {merge!r}, whose parts or result are no tokens")
        merges.append((left, right))
    return merges


def _types(metadata: Metadata, count: int) -> tuple[int, ...]:
    if _TYPES not in metadata:
        return (TokenType.NORMAL,) * count
    types = metadata.integers(_TYPES)
    if len(types) != count:
        metadata.invalid(_TYPES, f"has {len(types)} entries for {count} tokens")
    return types


def _special_tokens(metadata: Metadata, tokens: Sequence[str]) -> SpecialTokens:
    def role(name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        if key not in metadata:
            return None
        number = metadata.integer(key)
        if not 0 <= number < len(tokens):
            metadata.invalid(key, f"is no token: there are {len(tokens)}")
        return number

    eos = role("eos")
    types = _types(metadata, len(tokens))
    named = (eos, role("eot"), role("eom"))
    by_name = (
        number
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == TokenType.CONTROL and token in _TURN_ENDS
    )
    ends = dict.fromkeys([*(number for number in named if number is not None), *by_name])
    return SpecialTokens(role("bos"), eos, role("unknown"), role("padding"), tuple(ends))


def _post_processor(
    metadata: Metadata, tokens: Sequence[str], pre_tokenizer: PreTokenizer, special: SpecialTokens
) -> processors.PostProcessor:
    """Adds the tokens that begin and end a text, where the file wants that and names such tokens."""
    adds_bos = metadata.boolean("tokenizer.ggml.add_bos_token", pre_tokenizer.adds_bos)
    adds_eos = metadata.boolean("tokenizer.ggml.add_eos_token", False)
    before = [special.bos] if adds_bos and special.bos is not None else []
    after = [special.eos] if adds_eos and special.eos is not None else []
    byte_level = processors.ByteLevel(trim_offsets=False)
    if not before and not after:
        return byte_level
    single = [*(tokens[number] for number in before), "$A:0", *(tokens[number] for number in after)]
    pair = [*(f"{tokens[number]}:1" for number in before), "$B:1", *(f"{tokens[number]}:1" for number in after)]
    template = processors.TemplateProcessing(
        single=single,
        pair=[*single, *pair],
        special_tokens=[(tokens[number], number) for number in dict.fromkeys([*before, *after])],
    )
    return processors.Sequence([byte_level, template])


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
