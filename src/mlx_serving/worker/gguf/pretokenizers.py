"""How text is cut into words before byte pairs are merged, by the name that `tokenizer.ggml.pre` gives it.

A pre-tokenizer is a list of patterns; each cuts the pieces that the one before it left, at both ends of every match.
The patterns are those of the tokenizers that the names stand for; which name means which, and what else comes with it,
is llama.cpp's `llama_vocab::impl::load`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """`ignore_merges`: a word that is a token is that token, whatever the merges say. `adds_bos`: unless the file says
    otherwise, text begins with the token for its beginning.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False


def _cased_words(suffix: str = "") -> str:
    """Words that end where small letters are followed by a capital: "camelCase" is "camel" and "Case"."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    return f"{before}{upper}*{lower}+{suffix}|{before}{upper}+{lower}*{suffix}"


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTION + "|" + _WORD + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACE
_QWEN2 = _CONTRACTION + "|" + _WORD + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACE
_TEKKEN = _cased_words() + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACE
_GPT4O = _cased_words(_CONTRACTION + "?") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACE

_DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))
_WHOLE_NUMBERS = PreTokenizer((_GPT2,))
_SINGLE_DIGITS = PreTokenizer((r"\p{N}", _GPT2))
_LLAMA3_WITH_BOS = PreTokenizer((_LLAMA3,), ignore_merges=True, adds_bos=True)

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "default": _DEFAULT,
    "gpt-2": _WHOLE_NUMBERS,
    "phi-2": _WHOLE_NUMBERS,
    "mpt": _WHOLE_NUMBERS,
    "olmo": _WHOLE_NUMBERS,
    "jais": _WHOLE_NUMBERS,
    "trillion": _WHOLE_NUMBERS,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "command-r": _SINGLE_DIGITS,
    "codeshell": _SINGLE_DIGITS,
    "exaone": _SINGLE_DIGITS,
    "minerva-7b": _SINGLE_DIGITS,
    "llama3": _LLAMA3_WITH_BOS,
    "llama-v3": _LLAMA3_WITH_BOS,
    "llama-bpe": _LLAMA3_WITH_BOS,
    "falcon3": _LLAMA3_WITH_BOS,
    "falcon-h1": _LLAMA3_WITH_BOS,
    "pixtral": _LLAMA3_WITH_BOS,
    "midm-2.0": _LLAMA3_WITH_BOS,
    "lfm2": _LLAMA3_WITH_BOS,
    "dbrx": PreTokenizer((_LLAMA3,)),
    "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "qwen2": PreTokenizer((_QWEN2,)),
    "stablelm2": PreTokenizer((_QWEN2,)),
    "deepseek-r1-qwen": PreTokenizer((_QWEN2,)),
    "megrez": PreTokenizer((_QWEN2,)),
    "hunyuan": PreTokenizer((_QWEN2,)),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, adds_bos=True),
    "gpt-4o": PreTokenizer((_GPT4O,)),
    "llama4": PreTokenizer((_GPT4O,)),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
}
