"""The sum of steps."""

from __future__ import annotations

import pytest

from mlx_serving.core.schedule.scheduling import Encode, PrefillChunk, Step, WorkDone
from mlx_serving.core.schedule.work_done import WorkMeter


def step(*decode: str, prefill: tuple[int, ...] = ()) -> Step:
    chunks = tuple(PrefillChunk(f"p{number}", 0, count, last=False) for number, count in enumerate(prefill))
    return Step("m", (), (), decode, chunks, (), 0.0)


def test_nothing_was_done_at_first() -> None:
    assert WorkMeter().read() == WorkDone(0, 0, 0.0, 0, 0.0, 0, 0.0)


def test_tokens_and_batches_are_added_up() -> None:
    meter = WorkMeter()
    meter.add(step("a", "b", "c", prefill=(10, 20)), 1.0, 0.25)
    meter.add(step("a"), 0.5, 0.25)
    done = meter.read()
    assert (done.steps, done.last_batch, done.mean_batch) == (2, 1, 3.0)
    assert (done.prefilled_tokens, done.decoded_tokens) == (30, 4)


def test_a_step_that_only_decodes_is_decoding_and_one_that_does_both_is_split() -> None:
    meter = WorkMeter()
    meter.add(step("a"), 0.5, 0.25)
    assert (meter.read().prefill_s, meter.read().decode_s) == (0.0, 0.5)
    meter.add(step("a", prefill=(10,)), 1.0, 0.25)
    assert (meter.read().prefill_s, meter.read().decode_s) == (0.75, 0.75)


def test_no_more_than_the_whole_step_is_taken_for_decoding() -> None:
    meter = WorkMeter()
    meter.add(step("a", prefill=(10,)), 0.1, 5.0)
    assert meter.read().prefill_s == pytest.approx(0.0)
    assert meter.read().decode_s == pytest.approx(0.1)


def test_images_are_counted_by_themselves() -> None:
    meter = WorkMeter()
    meter.add(Step("m", (), (), (), (), (), 0.0, Encode("a", 0, 10)), 0.5, 0.0)
    assert meter.read() == WorkDone(1, 1, 1.0, 0, 0.0, 0, 0.0, encoded_images=1, encode_s=0.5)
