"""What a step took: charged to its model, learned from, and added up."""

from __future__ import annotations

from mlx_serving.core.schedule.scheduled_sequence import Lane
from mlx_serving.core.schedule.scheduling import Step, WorkDone
from mlx_serving.core.schedule.step_cost import Throughput
from mlx_serving.core.schedule.work_done import WorkMeter


class StepAccounts:
    """Over all models, those that are gone included. A step of `max_step_s` is the longest that may be planned."""

    def __init__(self, max_step_s: float) -> None:
        self._max_step_s = max_step_s
        self._throughput = Throughput()
        self._work = WorkMeter()

    def settle(self, lane: Lane, step: Step, duration_s: float) -> None:
        """A step of the model took `duration_s` of the device, where it was charged with what was expected."""
        # One step that took very long, to compile a kernel say, must not cost the model more turns than the longest
        # step it may plan.
        charged = min(duration_s, max(self._max_step_s, step.expected_s))
        lane.virtual_s += (charged - step.expected_s) / lane.weight
        rows, tokens = len(step.decode), step.prefill_tokens if step.prefill else 0
        decode_s = lane.cost.decode_s(rows)
        for meter in (lane.work, self._work):
            meter.add(step, duration_s, decode_s)
        if step.encode is not None:
            lane.cost.learn_encode(step.encode.tokens, duration_s)
        elif step.prefill:
            context = sum(chunk.count * (chunk.start + chunk.count / 2) for chunk in step.prefill) / tokens
            lane.cost.learn_prefill(rows, tokens, context, duration_s)
        else:
            lane.cost.learn_decode(rows, duration_s)
        self._throughput.learn(tokens + rows, duration_s)

    def add_decoded(self, lane: Lane) -> None:
        """A step computes a token of the model besides those that were ordered."""
        for meter in (lane.work, self._work):
            meter.decoded_tokens += 1

    def seconds_for(self, tokens: int) -> float:
        """How long so many tokens take, by the pace of late; 0 while that is not known."""
        return self._throughput.seconds_for(tokens) or 0.0

    def work(self) -> WorkDone:
        return self._work.read()
