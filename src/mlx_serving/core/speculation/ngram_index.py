"""Where a text has said before what it says now, and how it went on then."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

MIN_MATCH = 3
"""Tokens that must be the same."""
MAX_MATCH = 8
"""More that are the same make no better match."""
CANDIDATES = 16
"""Of the places that end with the same two tokens, the latest ones are compared."""

_NOWHERE = -1


class NgramIndex:
    """The tokens of a text, and for every two in a row where the same two stood before. Adding a token and asking take
    a time that does not depend on how long the text is."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._tokens = array("q")
        self._latest: dict[int, int] = {}  # two tokens -> where they ended last
        self._earlier = array("q")  # for each place, where the two tokens that end there had ended before
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """The text goes on. Tokens are from 0 to 2**31 - 1."""
        before = self._tokens[-1] if self._tokens else _NOWHERE
        for token in tokens:
            place = len(self._tokens)
            self._tokens.append(token)
            if before == _NOWHERE:
                self._earlier.append(_NOWHERE)
            else:
                pair = before << 32 | token
                self._earlier.append(self._latest.get(pair, _NOWHERE))
                self._latest[pair] = place
            before = token

    def propose(self, most: int) -> list[int]:
        """What followed where the text ended as it ends now: in the longest match of the candidates, in the latest of
        these. `most` tokens, or none; where the text is not long enough, it is thought to repeat itself."""
        start = self._after_match()
        if start == _NOWHERE:
            return []
        known = self._tokens[start : start + most].tolist()
        period = len(known)
        while len(known) < most:
            known.append(known[len(known) - period])
        return known

    def _after_match(self) -> int:
        tokens, end = self._tokens, len(self._tokens) - 1
        candidate = self._earlier[end] if end >= 0 else _NOWHERE
        best, longest = _NOWHERE, MIN_MATCH - 1
        for _ in range(CANDIDATES):
            if candidate == _NOWHERE:
                break
            length = 2
            while length < MAX_MATCH and length <= candidate and tokens[candidate - length] == tokens[end - length]:
                length += 1
            if length > longest:
                best, longest = candidate + 1, length
                if length == MAX_MATCH:
                    break
            candidate = self._earlier[candidate]
        return best
