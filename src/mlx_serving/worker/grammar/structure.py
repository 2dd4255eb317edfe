"""Compiling the structures that answers to one model must have. That runs on the grammar thread."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, cast

from llguidance import LLMatcher, LLTokenizer, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers import PreTrainedTokenizerFast

from mlx_serving.core.generation import Structure
from mlx_serving.core.grammar.structure import MAX_SOURCE_CHARS, source
from mlx_serving.core.grammar.xml_grammar import xml_grammar
from mlx_serving.core.grammar.yaml_grammar import yaml_grammar
from mlx_serving.core.sampling_defaults import ResolvedSampling
from mlx_serving.errors import GuidanceError
from mlx_serving.worker.grammar.checker import GrammarChecker
from mlx_serving.worker.grammar.limits import grammar_limits
from mlx_serving.worker.grammar.matcher import Ends, Matcher

_MAX_COMPILED = 64
_MAX_COMPILED_CHARS = 4 * MAX_SOURCE_CHARS
_WORD = 32
_ASCII_CLASSES = "dw"

# JSON is written as most models write it in one line: nothing is left to choose but the values.
_JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# What a schema says of itself may not loosen it.
_STRICT: Any = {"lenient": False, "coerce_one_of": False}
_UNKNOWN_KEYS = re.compile(r"Unimplemented keys: (\[.*?\])")
_NAMED_KEYWORD = re.compile(r"^(oneOf|'?(?:minimum|maximum|multipleOf)'?|Unknown (format))|: its (\$ref) ")


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer must be: the structure, behind what `lead` allows (see `core.grammar.thought_grammar.form_lead`).
    `calls` is the grammar of the calls that `lead` allows instead, if it does."""

    structure: Structure
    lead: str | None = None
    calls: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.structure.kind, source(self.structure), self.lead or ""


class StructureCompiler:
    """`vocabulary` is the number of logits, `eos_token_ids` end a turn. What was compiled last is kept, bounded in
    number and in the size of its sources."""

    def __init__(
        self,
        wrapper: TokenizerWrapper,
        model_id: str,
        vocabulary: int,
        eos_token_ids: frozenset[int],
    ) -> None:
        self._wrapper = wrapper
        self._model_id = model_id
        self._vocabulary = vocabulary
        self._eos_token_ids = frozenset(token for token in eos_token_ids if token < vocabulary)
        self._lock = Lock()
        self._compiled: OrderedDict[tuple[str, ...], LLMatcher] = OrderedDict()
        self._markers: dict[str, int] = {}
        self._tokenizer = self._set_up()

    def matcher(
        self,
        compiled: LLMatcher,
        delivered: Sequence[int],
        sampling: ResolvedSampling,
        ends: frozenset[int],
        field: str,
    ) -> Matcher:
        """For an answer that has the tokens `delivered`, and that the tokens `ends` end; errors name the parameter
        `field`. For any thread.

        Raises `GuidanceError` when these tokens do not fit.
        """
        always = self._eos_token_ids - ends if sampling.ignore_eos else frozenset[int]()
        early = (self._eos_token_ids | ends) if sampling.min_tokens else frozenset[int]()
        words = -(-self._usable(field).vocab_size // _WORD)
        ended = Ends(always, early, sampling.min_tokens)
        matcher = Matcher(compiled.deep_copy(), words, ended, field, lambda: self._forget(compiled))
        matcher.begin(delivered)
        return matcher

    def compile(self, form: Form, checker: GrammarChecker) -> LLMatcher:
        """A matcher at the beginning, to be copied.

        Raises `GuidanceError` for a structure that is impossible, too complex or not supported, and for a model whose
        tokenizer cannot be constrained.
        """
        compiled = self.find(form)
        if compiled is None:
            compiled = self._compile(form, checker)
            self._keep(form.key, compiled)
        return compiled

    def find(self, form: Form) -> LLMatcher | None:
        """What was compiled before, if it is still here. For any thread."""
        with self._lock:
            compiled = self._compiled.get(form.key)
            if compiled is not None:
                self._compiled.move_to_end(form.key)
            return compiled

    def token_of(self, marker: str) -> int | None:
        """The token that stands for a marker and is no text to grammars, if there is one. For any thread."""
        return self._markers.get(marker)

    def _keep(self, key: tuple[str, ...], compiled: LLMatcher) -> None:
        with self._lock:
            self._compiled[key] = compiled
            while len(self._compiled) > _MAX_COMPILED or sum(map(_chars, self._compiled)) > _MAX_COMPILED_CHARS:
                self._compiled.popitem(last=False)

    def _forget(self, compiled: LLMatcher) -> None:
        """What copies find out they share, also that it is too much: others begin anew."""
        with self._lock:
            for key in [key for key, each in self._compiled.items() if each is compiled]:
                del self._compiled[key]

    def _compile(self, form: Form, checker: GrammarChecker) -> LLMatcher:
        tokenizer = self._usable(form.structure.field)
        value = form.structure.value
        field = form.structure.field
        grammar = _grammar(form)
        problem = checker.check(grammar, value if isinstance(value, Mapping) else None, field)
        if problem and form.calls is not None:
            in_tools = checker.check(LLMatcher.grammar_from_lark(form.calls), None, "tools")
            problem, field = (in_tools, "tools") if in_tools else (problem, field)
        if problem:
            raise _refusal(problem, field)
        compiled = LLMatcher(tokenizer, grammar, log_level=0, limits=grammar_limits())
        if compiled.is_error():
            raise _refusal(compiled.get_error(), field)
        compiled.compute_bitmask()  # what it finds out for the first token all answers share
        if compiled.is_error():
            raise _refusal(compiled.get_error(), field)
        if compiled.is_stopped() and not compiled.is_accepting():
            raise _refusal(compiled.stop_reason(), field)
        return compiled

    def _usable(self, field: str) -> LLTokenizer:
        if isinstance(self._tokenizer, str):
            raise GuidanceError(
                f"{self._model_id} cannot give structured answers: its tokenizer {self._tokenizer}", field=field
            )
        return self._tokenizer

    def _set_up(self) -> LLTokenizer | str:
        """Or what is wrong with the tokenizer. It takes some tenths of a second in which no other thread runs."""
        tokenizer: Any = self._wrapper._tokenizer  # noqa: SLF001  pyright: ignore[reportPrivateUsage]
        if not self._eos_token_ids:
            return "has no end of the turn"
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            return "is not of the fast kind"
        backend: Any = tokenizer.backend_tokenizer
        count = max(self._vocabulary, int(backend.get_vocab_size(with_added_tokens=True)))
        try:
            made = LLTokenizer(backend.to_str(), n_vocab=count, eos_token=sorted(self._eos_token_ids))
        except Exception as error:  # noqa: BLE001  a model that cannot give structured answers can give others
            return f"cannot be constrained: {error}"
        added = cast("Mapping[str, int]", cast(Any, tokenizer).added_tokens_encoder)
        self._markers = {marker: token for marker, token in added.items() if made.is_special_token(token)}
        return made


def _chars(key: tuple[str, ...]) -> int:
    return sum(map(len, key))


def _grammar(form: Form) -> str:
    """The form in llguidance's own notation."""
    grammar = _structure_grammar(form.structure)
    if form.lead is None:
        return grammar
    [inner] = json.loads(grammar)["grammars"]
    return json.dumps({"grammars": [{"lark_grammar": form.lead}, {**inner, "name": "form"}]}, ensure_ascii=False)


def _structure_grammar(structure: Structure) -> str:
    text = source(structure)
    match structure.kind:
        case "json_object":
            return LLMatcher.grammar_from_json_schema('{"type": "object"}', _JSON_STYLE, _STRICT)
        case "xml":
            return LLMatcher.grammar_from_lark(xml_grammar(text, structure.field))
        case "yaml":
            schema = cast("Mapping[str, object]", structure.value)
            return LLMatcher.grammar_from_lark(yaml_grammar(schema, structure.field))
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(text, _JSON_STYLE, _STRICT)
        case "regex":
            # As in JSON Schema, \d and \w are of ASCII: nobody who writes them thinks of all the digits of Unicode.
            return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(text, _ASCII_CLASSES)}/")
        case "choice":
            choices: list[str] = json.loads(text)
            return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, choices)))
        case "grammar":
            try:
                return LLMatcher.grammar_from_lark(any_to_lark(text))
            except Exception as error:
                raise GuidanceError(f"{structure.field} cannot be read: {error}", field=structure.field) from error


def _refusal(problem: str, field: str) -> GuidanceError:
    text = problem.partition("<non-verbose/>")[0].strip()
    if text.startswith("NoExtension"):
        return GuidanceError(f"{field}: no answer fits it", field=field)
    return GuidanceError(f"{field} cannot be followed: {text}", field=field, keywords=_keywords(text))


def _keywords(problem: str) -> list[str]:
    """The keywords of a JSON Schema that llguidance's message names."""
    unknown = _UNKNOWN_KEYS.search(problem)
    if unknown is not None:
        return list(map(str, json.loads(unknown[1])))
    named = _NAMED_KEYWORD.search(problem)
    return [] if named is None else [(named[3] or named[2] or named[1]).strip("'")]
