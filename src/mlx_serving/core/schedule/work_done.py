"""What steps have done so far, of one model or of all."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_serving.core.schedule.scheduling import Step, WorkDone


@dataclass(slots=True)
class WorkMeter:
    """Adds steps up."""

    steps: int = 0
    last_batch: int = 0
    batched: int = 0
    prefilled_tokens: int = 0
    decoded_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    encoded_images: int = 0
    encode_s: float = 0.0

    def add(self, step: Step, duration_s: float, decode_s: float) -> None:
        """A step took `duration_s`, of which decoding its rows alone is thought to take `decode_s`."""
        rows, chunks = len(step.decode), len(step.prefill)
        self.steps += 1
        if step.encode is not None:
            self.last_batch = 1
            self.batched += 1
            self.encoded_images += 1
            self.encode_s += duration_s
            return
        self.last_batch = rows + chunks
        self.batched += rows + chunks
        self.decoded_tokens += rows
        if chunks:
            self.prefilled_tokens += step.prefill_tokens
            decode_s = min(decode_s, duration_s)
            self.prefill_s += duration_s - decode_s
            self.decode_s += decode_s
        else:
            self.decode_s += duration_s

    def read(self) -> WorkDone:
        return WorkDone(
            steps=self.steps,
            last_batch=self.last_batch,
            mean_batch=self.batched / self.steps if self.steps else 0.0,
            prefilled_tokens=self.prefilled_tokens,
            prefill_s=self.prefill_s,
            decoded_tokens=self.decoded_tokens,
            decode_s=self.decode_s,
            encoded_images=self.encoded_images,
            encode_s=self.encode_s,
        )
