"""Tokenizers, one copy a thread.

A fast tokenizer must not be used by two threads at once ("Already borrowed"), and a long prompt must not stall the
streams. So the thread that owns MLX only decodes, with a copy of its own, and everything else runs on one tokenizer
thread.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import Any, TypeVar, cast

from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers import PreTrainedTokenizerFast

from mlx_serving.core.generation import ChatPrompt, Prompt, TextPrompt, TokenPrompt
from mlx_serving.core.prefix.token_chain import common
from mlx_serving.core.speculation.report import Vocabulary
from mlx_serving.errors import InvalidRequest
from mlx_serving.worker.vision.pictures import Prepared

T = TypeVar("T")
Decode = Callable[[Sequence[int]], str]

_SYSTEM_ROLES = ("system", "developer")
_PROBE: Mapping[str, object] = {"role": "user", "content": "\N{CURRENCY SIGN}"}  # no prompt is likely to begin so

# What decides where the prompt ends and which form the ids come in is ours to say, not the caller's.
_RESERVED_TEMPLATE_KWARGS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "truncation",
    }
)


def make_decoder(wrapper: TokenizerWrapper, markers: Sequence[str] = ()) -> Decode:
    """A decode function for the calling thread: ids to text, from a copy of the tokenizer. Of the special tokens it
    gives those that occur in `markers`."""
    tokenizer: Any = copy.deepcopy(wrapper._tokenizer)  # noqa: SLF001  pyright: ignore[reportPrivateUsage]
    backend = _plain_backend(tokenizer)
    if markers:
        decode = tokenizer.decode if backend is None else backend.decode
        added = cast("Mapping[int, Any]", tokenizer.added_tokens_decoder)
        silent = {
            token_id
            for token_id, token in added.items()
            if token.special and not any(token.content in marker for marker in markers)
        }
        return lambda ids: cast(str, decode([each for each in ids if each not in silent], skip_special_tokens=False))
    if backend is not None:
        return lambda ids: cast(str, backend.decode(ids, skip_special_tokens=True))
    return lambda ids: cast(str, tokenizer.decode(list(ids), skip_special_tokens=True))


def _plain_backend(tokenizer: Any) -> Any | None:
    """The Rust tokenizer below, where it gives the same text: it costs a tenth of the wrapper around it."""
    if isinstance(tokenizer, PreTrainedTokenizerFast) and not cast(Any, tokenizer).clean_up_tokenization_spaces:
        return cast(Any, tokenizer).backend_tokenizer
    return None


class PromptTokenizer:
    """What the tokenizer thread does with one model's tokenizer."""

    def __init__(self, wrapper: TokenizerWrapper) -> None:
        self._wrapper = wrapper
        self._tokenizer: Any = wrapper._tokenizer  # noqa: SLF001  pyright: ignore[reportPrivateUsage]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def encode_input(
        self, first: str, second: str | None, max_tokens: int | None
    ) -> tuple[list[int], list[int] | None]:
        """One text, or two as one input, and to which of them each token belongs if the model is told that. What is
        cut leaves the special tokens."""
        encoded = self._tokenizer(first, second, truncation=max_tokens is not None, max_length=max_tokens)
        types = encoded.get("token_type_ids")
        return list(encoded["input_ids"]), None if types is None else list(types)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return cast(str, self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """One string an id; an id without a token is an empty one."""
        return [token or "" for token in self._tokenizer.convert_ids_to_tokens(list(token_ids))]

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Raises `InvalidRequest` for a chat that the model's template refuses."""
        match prompt:
            case TokenPrompt():
                return list(prompt.token_ids)
            case TextPrompt():
                bos = self._tokenizer.bos_token
                return self.encode(prompt.text, add_special_tokens=bos is None or not prompt.text.startswith(bos))
            case ChatPrompt():
                return self._render_chat(prompt)

    def prepare(self, prompt: Prompt) -> Prepared:
        """Raises what `prompt_ids` raises."""
        return Prepared(self.prompt_ids(prompt))

    def stops(self, prompt: Prompt, token_ids: Sequence[int]) -> tuple[int, ...]:
        """After how many of the tokens of a chat's prompt other prompts may go on differently: behind the system
        prompt, and before the answer begins."""
        if not isinstance(prompt, ChatPrompt):
            return ()
        leading = list(takewhile(lambda message: message.get("role") in _SYSTEM_ROLES, prompt.messages))
        try:
            ends = self._render(replace(prompt, messages=(*leading, _PROBE)), add_generation_prompt=False)
            opened = self._render(replace(prompt, messages=(*leading, _PROBE)), add_generation_prompt=True)
        except Exception:  # noqa: BLE001  a template may refuse what nobody has asked; nothing depends on it
            return ()
        found = {len(token_ids) - (len(opened) - len(ends))}
        if leading:
            found.add(common(token_ids, ends))
        return tuple(sorted(stop for stop in found if 0 < stop < len(token_ids) - 1))

    def token_of(self, marker: str) -> int | None:
        """The token that is added to the vocabulary under this name."""
        return cast("Mapping[str, int]", self._tokenizer.added_tokens_encoder).get(marker)

    def expected(self, prediction: str | None) -> tuple[int, ...]:
        """The tokens of what an answer is thought to be."""
        return () if prediction is None else tuple(self.encode(prediction, add_special_tokens=False))

    def vocabulary(self) -> Vocabulary:
        """What the tokens are, as two models are compared by; a dictionary of all of them is made each time."""
        added = cast("Mapping[int, Any]", self._tokenizer.added_tokens_decoder)
        return Vocabulary(
            ids=cast("Mapping[str, int]", self._tokenizer.get_vocab()),
            special=frozenset(cast(str, token.content) for token in added.values() if token.special),
            eos=frozenset(self._wrapper.eos_token_ids),
            bos=cast("int | None", self._tokenizer.bos_token_id),
        )

    def banned_sequences(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The ways to write each word, at the beginning of a text and after a space."""
        spellings = [spelling for word in words for spelling in (word.lstrip(), " " + word.lstrip())]
        encoded = (tuple(self.encode(spelling, add_special_tokens=False)) for spelling in spellings)
        return tuple(dict.fromkeys(each for each in encoded if each))

    def _render_chat(self, prompt: ChatPrompt) -> list[int]:
        return self._by_template(prompt, partial(self._render, prompt, add_generation_prompt=True))

    def _by_template(self, prompt: ChatPrompt, render: Callable[[], T]) -> T:
        """What `render` returns. Raises `InvalidRequest` for a chat that no template takes."""
        if not self._wrapper.has_chat_template and prompt.chat_template is None:
            raise InvalidRequest(
                "This model has no chat template: send a text prompt to /v1/completions instead", field="messages"
            )
        reserved = sorted(_RESERVED_TEMPLATE_KWARGS.intersection(prompt.template_kwargs))
        if reserved:
            raise InvalidRequest(
                f"template_kwargs must not have {reserved[0]}: it is not the template's", field="template_kwargs"
            )
        try:
            return render()
        except Exception as error:
            raise InvalidRequest(
                f"The model's chat template refused the messages: {error}", field="messages"
            ) from error

    def _render(self, prompt: ChatPrompt, *, add_generation_prompt: bool) -> list[int]:
        messages: list[Mapping[str, object]] = [dict(message) for message in prompt.messages]
        own = {} if prompt.chat_template is None else {"chat_template": prompt.chat_template}
        rendered = self._wrapper.apply_chat_template(
            messages,
            tools=[dict(tool) for tool in prompt.tools] or None,
            tokenize=True,
            add_generation_prompt=add_generation_prompt,
            **own,
            **prompt.template_kwargs,
        )
        return list(rendered)
