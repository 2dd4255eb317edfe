"""Chats with images: the model's chat template says where they stand, its processor for how many tokens.

What people write is text, whatever it looks like. Before a template sees it, what would stand for an image in it is
replaced by words that nobody writes; behind the template it is put back and tokenized piece by piece.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_serving.core.generation import ChatPrompt, Prompt
from mlx_serving.core.images.image import Image
from mlx_serving.errors import InvalidRequest
from mlx_serving.worker.tokenizing import PromptTokenizer
from mlx_serving.worker.vision.pictures import Inputs, Picture, Prepared
from mlx_serving.worker.vision.processing import Processor, Shape

_SLOT = -1  # no token's id: an image stands here
_PROBE = "probe"


class VisionTokenizer(PromptTokenizer):
    def __init__(self, wrapper: TokenizerWrapper, processor: Processor, vocabulary: int) -> None:
        super().__init__(wrapper)
        self._processor = processor
        self._vocabulary = vocabulary
        self._mark = secrets.token_hex(8)
        self._written = re.compile(f"({self._mark}x[0-9a-f]+x)")
        self._image_token = processor.image_tokens[0]
        self._takes_strings = self._takes_parts = True
        if wrapper.has_chat_template:
            self._find_style()

    def prepare(self, prompt: Prompt) -> Prepared:
        """Raises `InvalidRequest` for a chat whose template does not place each of its images once."""
        if not isinstance(prompt, ChatPrompt) or not prompt.images:
            return Prepared(self.prompt_ids(prompt))
        text = self._by_template(prompt, partial(self._text, prompt))
        made = [self._processor.process(image, self._image_token).shape for image in prompt.images]
        ids = self._ids_of(self._spaced(text, made))
        found = ids.count(_SLOT)
        if found != len(prompt.images):
            raise InvalidRequest(
                f"The chat template has placed {found} images, and {len(prompt.images)} are given",
                field="images",
                limit=found,
                given=len(prompt.images),
            )
        if ids[-1] == _SLOT:
            raise InvalidRequest("The chat template has placed nothing behind the last image", field="images")
        return self._with_pictures(ids, prompt.images, made)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        ids = super().prompt_ids(prompt)
        if _SLOT in ids:
            raise InvalidRequest("The chat template has placed an image, and none is given", field="images")
        return ids

    def _with_pictures(self, ids: Sequence[int], images: Sequence[Image], made: Sequence[Shape]) -> Prepared:
        token_ids: list[int] = []
        pictures: list[Picture] = []
        for token_id in ids:
            if token_id != _SLOT:
                token_ids.append(token_id)
                continue
            image, shape = images[len(pictures)], made[len(pictures)]
            inputs = partial(self._inputs, image)
            pictures.append(Picture(image.digest, shape.token_ids, inputs, len(token_ids), shape.shown))
            token_ids += [one if 0 <= one < self._vocabulary else 0 for one in shape.token_ids]
        return Prepared(token_ids, tuple(pictures))

    def _inputs(self, image: Image) -> Inputs:
        return self._processor.process(image, self._image_token).inputs

    def _render(self, prompt: ChatPrompt, *, add_generation_prompt: bool) -> list[int]:
        return self._ids_of(self._text(prompt, add_generation_prompt=add_generation_prompt))

    def _text(self, prompt: ChatPrompt, *, add_generation_prompt: bool = True) -> str:
        """With the marks of what people wrote still in it."""
        own = {} if prompt.chat_template is None else {"chat_template": prompt.chat_template}
        rendered: object = self._wrapper.apply_chat_template(
            self._styled(cast("Sequence[Mapping[str, object]]", self._marked(prompt.messages))),
            tools=cast("list[Any]", self._marked(prompt.tools)) or None,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **own,
            **cast("dict[str, Any]", self._marked(prompt.template_kwargs)),
        )
        return str(rendered)

    def _spaced(self, text: str, made: Sequence[Shape]) -> str:
        """The same with the white space around each image that the processor wants there."""
        places = self._processor.tags or re.compile(re.escape(self._image_token))
        if len(places.findall(text)) != len(made):
            return text
        images = iter(made)
        return places.sub(lambda found: f"{(image := next(images)).before}{found[0]}{image.after}", text)

    def _ids_of(self, text: str) -> list[int]:
        """The ids of what a template has written; `_SLOT` where an image stands."""
        ids: list[int] = []
        for piece in self._written.split(text):
            if self._written.fullmatch(piece):
                written = bytes.fromhex(piece[len(self._mark) + 1 : -1]).decode()
                # Cut in two, it is none of the added tokens.
                ids += self._encoded(written[:1]) + self._encoded(written[1:])
            else:
                ids += self._with_slots(piece)
        return ids

    def _with_slots(self, text: str) -> list[int]:
        tags = self._processor.tags
        if tags is None:
            image = self.token_of(self._image_token)
            return [_SLOT if token_id == image else token_id for token_id in self._encoded(text)]
        pieces = [self._encoded(piece) for piece in tags.split(text)]
        return pieces[0] + [token_id for piece in pieces[1:] for token_id in (_SLOT, *piece)]

    def _encoded(self, text: str) -> list[int]:
        return self.encode(text, add_special_tokens=False) if text else []

    def _marked(self, value: object) -> object:
        """The same, with marks in all texts in place of what stands for images."""
        if isinstance(value, str):
            return self._processor.media.sub(lambda found: f"{self._mark}x{found[0].encode().hex()}x", value)
        if isinstance(value, Mapping):
            return {key: self._marked(one) for key, one in cast("Mapping[str, object]", value).items()}
        if isinstance(value, list | tuple):
            return [self._marked(one) for one in cast("Sequence[object]", value)]
        return value

    def _styled(self, messages: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
        """The messages with their contents in a form that the template takes."""
        styled: list[dict[str, object]] = []
        number = 0
        for message in messages:
            content = message.get("content")
            if isinstance(content, str) and not self._takes_strings:
                content = [{"type": "text", "text": content}]
            elif isinstance(content, list) and not self._takes_parts:
                texts: list[str] = []
                for part in cast("list[Mapping[str, object]]", content):
                    if part.get("type") == "image":
                        number += 1
                        texts.append(self._processor.slot(number, self._image_token) + "\n")
                    else:
                        texts.append(str(part.get("text", "")))
                content = "".join(texts)
            styled.append({**message, "content": content} if "content" in message else dict(message))
        return styled

    def _find_style(self) -> None:
        """Find out in which form the template takes contents, and what it puts where an image stands."""
        text: list[Mapping[str, object]] = [{"type": "text", "text": _PROBE}]
        told = self._tried([{"type": "image"}, *text])
        tokens = [token for token in self._processor.image_tokens if told.count(token) == 1 and _PROBE in told]
        self._takes_parts = bool(tokens)
        if tokens:
            self._image_token = tokens[0]
        self._takes_strings = _PROBE in self._tried(_PROBE) or not self._takes_parts

    def _tried(self, content: object) -> str:
        try:
            return self._text(ChatPrompt(({"role": "user", "content": content},)))
        except Exception:  # noqa: BLE001  whatever a template raises here, it says that it does not take this
            return ""


def with_template(wrapper: TokenizerWrapper, processor: Processor) -> TokenizerWrapper:
    """The same, with the chat template of the processor where that has one."""
    template = processor.chat_template
    if template is not None:
        cast(Any, wrapper)._tokenizer.chat_template = template  # noqa: SLF001
        wrapper.has_chat_template = True
    return wrapper
