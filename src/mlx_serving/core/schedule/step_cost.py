"""How long a step will take, learned from how long steps took.

    duration = decode(rows) + the sum over prefill chunks of count x (base + slope x mean context)

`decode` is a table by number of rows, since batching scales in jumps. `base` (seconds per prompt token) and `slope`
(seconds per prompt token and token of context) are followed by a Kalman filter: a measurement moves the two by how
uncertain each of them is, so that a few chunks of a first long prompt tell them apart, and by how much it can be
trusted itself. Both drift a little from step to step, since devices do.

A measurement can be too long by accident (a kernel is compiled, another process takes the machine) and never too short.
So one far below the prediction is believed at once, and one far above it counts no more than three times the
prediction: a slower device is learned within some steps, a hiccup is forgotten within some.
"""

from __future__ import annotations

from math import sqrt

_GAIN = 0.2
_MAX_RISE = 3.0  # a measurement counts no more than this many times the prediction
_SURPRISE = 0.5  # below this part of the prediction, a measurement replaces it
_CONTEXT_SCALE = 4096.0  # tokens; the slope is kept in seconds per token at a context of so many
_SLOPE_DOUBT = 8.0  # at that context, a token may cost so many times what it costs without any
_NOISE = 0.2  # of a measurement: standard deviation, relative to the prediction
_DRIFT = 0.05  # of base and slope from step to step: the same
_REACH_DECAY = 0.9
_MIN_PREFILL_PART = 0.1  # of a mixed step, however long its decode was thought to take
_MIN_DECODE_PART = 0.1  # of the first mixed step, however long its prefill was thought to take
_THROUGHPUT_DECAY = 0.995  # a step


class StepCost:
    """One model's cost. `reach` is the size (tokens) of the prefill that was measured lately: beyond twice of it the
    cost is guesswork."""

    def __init__(self, max_rows: int) -> None:
        self.base_s = 0.0
        self.slope_s = 0.0
        self.reach = 0.0
        self._image_token_s = 0.0
        self._doubt = _doubt_of(0.0)
        self._decode = [0.0] * (max_rows + 1)

    def decode_s(self, rows: int) -> float:
        """Seconds to decode one token for each of `rows` sequences; 0 while nothing is known."""
        table = self._decode
        if rows == 0 or table[rows]:
            return table[rows]
        for distance in range(1, len(table)):
            if rows + distance < len(table) and table[rows + distance]:
                return table[rows + distance]
            if rows > distance and table[rows - distance]:
                return table[rows - distance] * rows / (rows - distance)
        return 0.0

    def prefill_s(self, start: int, count: int) -> float:
        """Seconds to compute `count` prompt tokens that follow `start` others."""
        return count * (self.base_s + self.slope_s * (start + count / 2))

    def encode_s(self, tokens: int) -> float:
        """Seconds to encode an image that stands for so many tokens; 0 while nothing is known."""
        return tokens * self._image_token_s

    def tokens_within(self, seconds: float, start: int) -> float:
        """How many prompt tokens after the first `start` can be computed in `seconds`: the inverse of `prefill_s`."""
        linear = self.base_s + self.slope_s * start
        root = linear + sqrt(linear * linear + 2 * self.slope_s * seconds)
        return 2 * seconds / root if root else 0.0

    def learn_decode(self, rows: int, duration_s: float) -> None:
        self._decode[rows] = _followed(self._decode[rows], duration_s)

    def learn_encode(self, tokens: int, duration_s: float) -> None:
        self._image_token_s = _followed(self._image_token_s, duration_s / tokens)

    def learn_prefill(self, rows: int, tokens: int, context: float, duration_s: float) -> None:
        """A step computed `tokens` prompt tokens at a mean `context`, beside decoding for `rows`."""
        decode_s = self.decode_s(rows)
        known = self.base_s + self.slope_s * context
        self.reach = max(float(tokens), self.reach * _REACH_DECAY)
        if rows and known and not self._decode[rows]:
            decode_s = _first_decode_s(duration_s, decode_s, known * tokens)
            self.learn_decode(rows, decode_s)
        rate = max(duration_s - decode_s, duration_s * _MIN_PREFILL_PART) / tokens
        if known == 0:
            self.base_s = rate
            self._doubt = _doubt_of(rate)
            return
        noise = _NOISE
        if rate < known * _SURPRISE:
            self._doubt = _doubt_of(known)
            noise = 0.0
        # What a step costs however small it is makes the tokens of a small chunk look dear.
        trust = min(1.0, 4 * tokens / self.reach)
        self._follow(context / _CONTEXT_SCALE, known, min(rate, known * _MAX_RISE), (noise * known) ** 2 / trust)

    def _follow(self, z: float, known: float, rate: float, variance: float) -> None:
        """Move base and slope towards a rate that was measured at context `z`, with this variance."""
        base_base, base_slope, slope_slope = self._doubt
        to_base, to_slope = base_base + base_slope * z, base_slope + slope_slope * z
        total = to_base + to_slope * z + variance
        base = self.base_s + to_base / total * (rate - known)
        slope = self.slope_s * _CONTEXT_SCALE + to_slope / total * (rate - known)
        drift = (_DRIFT * known) ** 2
        self._doubt = (
            base_base - to_base * to_base / total + drift,
            base_slope - to_base * to_slope / total,
            slope_slope - to_slope * to_slope / total + drift,
        )
        if slope < 0:
            base, slope = base + slope * z, 0.0
        elif base < 0:
            base, slope = 0.0, slope + base / z
        self.base_s, self.slope_s = base, slope / _CONTEXT_SCALE


def _followed(known: float, measured: float) -> float:
    if known * _SURPRISE < measured:
        return known + _GAIN * (min(measured, known * _MAX_RISE) - known) if known else measured
    return measured


def _doubt_of(rate: float) -> tuple[float, float, float]:
    """Variances of base and slope, with their covariance in the middle, when no more is known than a rate."""
    return rate**2, 0.0, (_SLOPE_DOUBT * rate) ** 2


def _first_decode_s(duration_s: float, guess_s: float, prefill_s: float) -> float:
    """What decoding so many rows took of a mixed step, though they were never measured alone.

    While prompts keep coming no step decodes alone. Were it all taken for prefill, chunks would become small, and never
    large enough again to show that it is not. Two guesses are wrong by the same factor; one leaves the rest.
    """
    if guess_s:
        return duration_s * guess_s / (guess_s + prefill_s)
    return max(duration_s - prefill_s, duration_s * _MIN_DECODE_PART)


class Throughput:
    """Tokens a second, prompt and reply, over the steps of late."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def learn(self, tokens: int, duration_s: float) -> None:
        self._tokens = self._tokens * _THROUGHPUT_DECAY + tokens
        self._seconds = self._seconds * _THROUGHPUT_DECAY + duration_s

    def seconds_for(self, tokens: int) -> float | None:
        """How long that many tokens take; None while nothing is known."""
        return tokens * self._seconds / self._tokens if self._tokens else None
