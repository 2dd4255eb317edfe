"""What becomes of messages that have pictures among their parts."""

from __future__ import annotations

from collections.abc import Iterable

from mlx_serving.core.images.image import ImageSource


class Pictures:
    """The pictures of a conversation, in the order in which its messages are made."""

    def __init__(self) -> None:
        self._found: list[ImageSource] = []

    @property
    def sources(self) -> tuple[ImageSource, ...]:
        return tuple(self._found)

    def content(self, parts: Iterable[str | ImageSource]) -> str | list[dict[str, object]]:
        """A message's content for its template: several texts are joined by line breaks; with pictures among them it is
        a list, in which each picture has its place."""
        parts = list(parts)
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "\n".join(texts)
        self._found += [part for part in parts if isinstance(part, ImageSource)]
        return [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
