"""Log-probabilities in the words of OpenAI's two APIs."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from mlx_serving.core.generation import Logprobs, TokenLogprob

_LEAST = -9999.0  # JSON has no infinity; OpenAI documents this number for tokens that are very unlikely


def chat_logprobs(places: Iterable[Logprobs]) -> dict[str, object]:
    """`choices[].logprobs` of a chat."""
    content = [{**_entry(place.chosen), "top_logprobs": [_entry(each) for each in place.top]} for place in places]
    return {"content": content, "refusal": None}


class TextLogprobs:
    """`choices[].logprobs` of a text completion, in one piece or in many: offsets count on from piece to piece."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._chars = 0

    def document(self, places: Iterable[Logprobs]) -> dict[str, object]:
        """`text_offset` is the place in the text, in characters, of the one that has the token's first byte. The token
        that came is among the likeliest, last if it is none of them."""
        told = list(places)
        return {
            "tokens": [place.chosen.text for place in told],
            "token_logprobs": [_finite(place.chosen.logprob) for place in told],
            "top_logprobs": [
                {each.text: _finite(each.logprob) for each in (*place.top, place.chosen)} for place in told
            ],
            "text_offset": [self._advance(place.chosen) for place in told],
        }

    def _advance(self, token: TokenLogprob) -> int:
        """Count the token's characters. Returns its offset."""
        raw = b"" if token.special else token.raw
        if not raw:
            return self._chars
        self._chars += len(self._decoder.decode(raw[:1]))
        unfinished, _ = self._decoder.getstate()
        offset = self._chars if unfinished else self._chars - 1
        self._chars += len(self._decoder.decode(raw[1:]))
        return offset


def _entry(token: TokenLogprob) -> dict[str, object]:
    raw = None if token.special else list(token.raw)
    return {"token": token.text, "logprob": _finite(token.logprob), "bytes": raw}


def _finite(logprob: float) -> float:
    return logprob if logprob > _LEAST else _LEAST
