"""From token ids to the text that is shown: an incremental detokenizer and a stop-string matcher."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"


class IncrementalDetokenizer:
    """Turns token ids into text as they come.

    The pieces add up to `decode(prompt_tail + tokens)[len(decode(prompt_tail)):]`, for every tokenizer whose decode
    only ever appends text, except that an unfinished UTF-8 character shows as U+FFFD until it is complete.

    Each new piece is what decoding adds to the text of the tokens before it (the two-offset scheme of text-generation-
    inference and vLLM), because a token's text depends on its neighbour: most tokenizers strip the space of the first
    token they are given. `prompt_tail`, the last few ids of the prompt, is the neighbour of the first one.

    A token costs two decodes of a short window. Bytes that make no character do not widen it for ever: after
    `MAX_PENDING` tokens the part of them that can no longer change is let go as it is.
    """

    MAX_PENDING = 16

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt_tail: Sequence[int] = ()) -> None:
        self._decode = decode
        self._context = list(prompt_tail)
        self._context_text = decode(self._context) if self._context else ""
        self._pending: list[int] = []

    def add(self, token_id: int) -> str:
        """The text that is certain now; often "" in the middle of a character."""
        self._pending.append(token_id)
        text = self._decode(self._context + self._pending)
        if text.endswith(_INCOMPLETE):
            return self._let_go(text) if len(self._pending) >= self.MAX_PENDING else ""
        if len(text) > len(self._context_text):
            return self._advance(len(self._pending), text)
        if len(self._pending) >= self.MAX_PENDING:
            self._pending.clear()  # tokens without text, such as special ones
        return ""

    def finish(self) -> str:
        """What is still held back, an unfinished character as U+FFFD. The object is used up."""
        if not self._pending:
            return ""
        return self._advance(len(self._pending), self._decode(self._context + self._pending))

    def _advance(self, count: int, text: str) -> str:
        """Release the first `count` pending tokens; `text` is that of the context and them."""
        piece = text[len(self._context_text) :]
        self._context, self._pending = self._pending[:count], self._pending[count:]
        self._context_text = self._decode(self._context)
        return piece

    def _let_go(self, text: str) -> str:
        # Where the two sides decode to the same text apart as together, no character spans the cut.
        for count in range(len(self._pending) - 1, 0, -1):
            head = self._decode(self._context + self._pending[:count])
            if head + self._decode(self._pending[count:]) == text:
                return self._advance(count, head)
        return self._advance(len(self._pending), text)


class StopMatcher:
    """Ends a text before the first stop string in it, however the text is cut into pieces.

    What was shown adds up to `text[:i]`, where i is the smallest index at which any stop string occurs, or to the whole
    text if none does. At most one character less than the longest stop string is held back. The cost is linear in the
    text for each stop string (Knuth, Morris and Pratt, 1977).
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        """Raises ValueError for an empty stop string, which would match everywhere."""
        self._patterns = [_Pattern(stop) for stop in stops]
        self._beginnings = frozenset(stop[:1] for stop in stops)
        self._held = ""
        self._fed = 0
        self._match: int | None = None
        self._matched = ""
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the text."""
        return self._stopped

    @property
    def stop(self) -> str | None:
        """The stop string that ended the text: of several that begin at the same place, the one completed first."""
        return self._matched if self._stopped else None

    def feed(self, text: str, *, ignore: bool = False) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string has ended it; then nothing more is ever shown.

        A stop string whose last character is in a text to `ignore` does not end anything.
        """
        if self._stopped:
            return "", True
        if not self._held and self._beginnings.isdisjoint(text):  # nearly always: no stop string begins in it
            self._fed += len(text)
            return text, False
        start = self._fed - len(self._held)
        self._held += text
        for char in text:
            self._fed += 1
            for pattern in self._patterns:
                if pattern.completes_with(char) and not ignore:
                    found = self._fed - len(pattern.text)
                    if self._match is None or found < self._match:
                        self._match, self._matched = found, pattern.text
            # A match is final once no longer stop string that began before it can still be completed.
            if self._match is not None and self._match <= self._earliest_partial():
                return self._end_at(self._match - start), True
        safe = min(self._earliest_partial(), self._fed) - start
        shown, self._held = self._held[:safe], self._held[safe:]
        return shown, False

    def finish(self) -> str:
        """The text ended by itself: what was held back, up to the first stop string in it."""
        if self._match is not None and not self._stopped:
            return self._end_at(self._match - (self._fed - len(self._held)))
        shown, self._held = self._held, ""
        return shown

    def _earliest_partial(self) -> int:
        return self._fed - max(pattern.matched for pattern in self._patterns)

    def _end_at(self, index: int) -> str:
        shown, self._held = self._held[:index], ""
        self._stopped = True
        return shown


class _Pattern:
    """One stop string; `matched` is the length of its longest prefix that ends the text so far."""

    __slots__ = ("_fallback", "matched", "text")

    def __init__(self, text: str) -> None:
        if not text:
            raise ValueError("a stop string must not be empty")
        self.text = text
        self.matched = 0
        # _fallback[n]: the longest proper prefix of text[:n] that is also its suffix.
        self._fallback = [0, 0]
        for char in text[1:]:
            self._fallback.append(self._longest(self._fallback[-1], char))

    def completes_with(self, char: str) -> bool:
        self.matched = self._longest(self.matched, char)
        if self.matched < len(self.text):
            return False
        self.matched = self._fallback[-1]
        return True

    def _longest(self, matched: int, char: str) -> int:
        while matched and self.text[matched] != char:
            matched = self._fallback[matched]
        return matched + (self.text[matched] == char)
