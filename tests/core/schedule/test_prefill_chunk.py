import pytest

from mlx_serving.core.schedule.encodings import ImageSpan
from mlx_serving.core.schedule.prefill_chunk import PrefillAllowance, allowance, divide, in_turn
from mlx_serving.core.schedule.prefill_memory import PrefillMemory
from mlx_serving.core.schedule.scheduled_sequence import Sequence, State
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.core.schedule.step_cost import StepCost

from .sequences import sequence

POLICY = SchedulerPolicy()
INFINITE = float("inf")


def known(base: float = 0.001, slope: float = 0.0, reach: int = 2048) -> StepCost:
    cost = StepCost(16)
    cost.base_s, cost.slope_s, cost.reach = base, slope, float(reach)
    return cost


def prefilling(name: str, rest: int, *, rank: int = 2, arrived: float = 0.0, computed: int = 0) -> Sequence:
    return sequence(
        name, prompt=rest + computed, computed=computed, rank=rank, arrived=arrived, state=State.PREFILLING, reserved=1
    )


def allowed(
    cost: StepCost | None = None,
    *,
    decode_s: float = 0.0,
    disturbs: bool = True,
    share: float = 1.0,
    room: float = INFINITE,
    policy: SchedulerPolicy = POLICY,
) -> PrefillAllowance:
    return allowance(policy, cost or known(), decode_s=decode_s, disturbs=disturbs, share=share, room=room)


def chunks(order: list[Sequence], seconds: float, tokens: int, cost: StepCost | None = None) -> list[tuple[str, int]]:
    return [(one.id, count) for one, count in divide(order, PrefillAllowance(seconds, tokens), cost or known(), POLICY)]


def test_prefill_gets_what_the_decode_leaves_of_the_target() -> None:
    assert allowed(decode_s=0.01).seconds == pytest.approx(POLICY.target_gap_s - 0.01)


def test_prefill_keeps_its_share_where_decode_leaves_too_little() -> None:
    assert allowed(decode_s=0.2).seconds == pytest.approx(0.8)
    policy = SchedulerPolicy(min_prefill_share=0.75)
    assert allowed(decode_s=0.2, policy=policy).seconds == pytest.approx(0.6)


def test_beside_other_models_a_step_may_take_its_share_of_the_target() -> None:
    assert allowed(decode_s=0.01, share=0.5).seconds == pytest.approx(0.04)


def test_without_a_stream_to_disturb_only_the_longest_step_counts() -> None:
    assert allowed(disturbs=False).seconds == pytest.approx(2.0)


def test_no_step_is_planned_longer_than_the_longest() -> None:
    assert allowed(decode_s=1.8).seconds == pytest.approx(0.2)
    assert allowed(decode_s=2.5).seconds == 0.0


def test_unknown_costs_are_tried_with_small_chunks() -> None:
    assert allowed(StepCost(16)).tokens == 16
    assert allowed(StepCost(16), disturbs=False).tokens == 64


def test_a_chunk_at_most_doubles_what_was_measured_and_keeps_its_limits() -> None:
    assert allowed(known(reach=100)).tokens == 200
    assert allowed(known(reach=4)).tokens == 16
    assert allowed(known(reach=100), disturbs=False).tokens == 800
    assert allowed(known(reach=5000)).tokens == 2048
    assert allowed(room=10).tokens == 10


def test_the_shortest_rest_goes_first_within_a_priority() -> None:
    waiting = [prefilling("long", 900), prefilling("short", 30, arrived=5), prefilling("urgent", 999, rank=0)]
    assert [one.id for one in in_turn(waiting, 0, POLICY)] == ["urgent", "short", "long"]


def test_every_other_turn_begins_with_who_came_first() -> None:
    waiting = [prefilling("long", 900), prefilling("short", 30, arrived=5), prefilling("mid", 60, arrived=6)]
    assert [one.id for one in in_turn(waiting, 1, POLICY)] == ["long", "short", "mid"]


@pytest.mark.parametrize(("arrived", "first"), [(9.0, "new"), (11.0, "low")])
def test_a_low_priority_prompt_gets_its_turn_by_ageing(arrived: float, first: str) -> None:
    low = sequence("low", prompt=900, priority="low", state=State.PREFILLING)
    waiting = [low, prefilling("new", 30, arrived=arrived)]
    assert in_turn(waiting, 1, POLICY)[0].id == first


def test_one_alone_has_every_turn() -> None:
    alone = prefilling("a", 30)
    assert in_turn([alone], 0, POLICY) == in_turn([alone], 1, POLICY) == [alone]


def test_a_chunk_fits_the_time_in_whole_multiples_of_the_smallest() -> None:
    assert chunks([prefilling("a", 900)], 0.1, 2048) == [("a", 96)]


def test_a_chunk_shrinks_as_the_context_grows() -> None:
    cost = known(slope=1e-6)
    assert chunks([prefilling("a", 9000)], 0.1, 2048, cost) == [("a", 80)]
    assert chunks([prefilling("a", 9000, computed=4000)], 0.1, 2048, cost) == [("a", 16)]


def test_the_smallest_chunk_is_done_however_little_time_there_is() -> None:
    assert chunks([prefilling("a", 900), prefilling("b", 900)], 0.0, 2048) == [("a", 16)]


def test_less_than_the_smallest_is_done_only_for_want_of_memory() -> None:
    assert chunks([prefilling("a", 900)], 1.0, 10) == [("a", 10)]
    assert chunks([prefilling("a", 900)], 1.0, 0) == []


def test_an_end_smaller_than_a_chunk_is_done_with_the_chunk_before() -> None:
    assert chunks([prefilling("a", 100)], 0.09, 2048) == [("a", 100)]
    assert chunks([prefilling("a", 100)], 0.09, 90) == [("a", 80)]


def test_several_prompts_share_what_is_allowed() -> None:
    order = [prefilling("a", 30), prefilling("b", 20), prefilling("c", 900)]
    assert chunks(order, 0.1, 2048) == [("a", 30), ("b", 20), ("c", 48)]


def test_what_is_left_must_be_worth_a_chunk_or_finish_a_prompt() -> None:
    assert chunks([prefilling("a", 90), prefilling("b", 900)], 0.1, 2048) == [("a", 90)]
    assert chunks([prefilling("a", 95), prefilling("b", 5)], 0.1, 2048) == [("a", 95), ("b", 5)]
    assert chunks([prefilling("a", 90), prefilling("b", 900)], 1.0, 90) == [("a", 90)]


def test_a_chunk_takes_no_more_memory_than_is_allowed_unless_it_is_the_smallest() -> None:
    def one(name: str, rest: int, computed: int = 0) -> Sequence:
        waiting = prefilling(name, rest, computed=computed)
        waiting.lane.prefill_memory = PrefillMemory(per_token=10, per_pair=0.1)
        return waiting

    def counts(size: float, *order: Sequence) -> list[int]:
        return [count for _, count in divide(order, PrefillAllowance(1.0, 2048, size), known(base=1e-6), POLICY)]

    assert counts(1000, one("a", 900)) == [48]
    assert counts(1000, one("a", 900, computed=500)) == [16]
    assert counts(1, one("a", 900)) == [16]
    assert counts(1200, one("a", 75)) == [64]
    assert counts(1200, one("a", 66)) == [66]
    assert counts(1000, one("a", 30), one("b", 30), one("c", 900)) == [30, 30, 16]
    assert counts(400, one("a", 30), one("b", 900)) == [30]
    assert counts(320, one("a", 30), one("b", 900)) == [16]


def with_images(name: str, rest: int, *images: tuple[int, int], computed: int = 0) -> Sequence:
    """Images that must be whole."""
    waiting = prefilling(name, rest, computed=computed)
    waiting.images = tuple(ImageSpan(start, end, whole=True) for start, end in images)
    waiting.encoded = len(images)
    return waiting


def test_an_image_that_must_be_whole_is_left_for_the_next_chunk_or_all_in_it() -> None:
    assert chunks([with_images("a", 900, (10, 40))], 0.024, 2048) == [("a", 10)]
    assert chunks([with_images("a", 890, (10, 40), computed=10)], 0.024, 2048) == [("a", 30)]
    assert chunks([with_images("a", 900, (10, 40))], 0.1, 2048) == [("a", 96)]
    assert chunks([with_images("a", 900, (90, 96), (96, 100))], 0.1, 2048) == [("a", 96)]


def test_what_is_left_of_an_image_whose_beginning_is_there_is_all_in_a_chunk() -> None:
    assert chunks([with_images("a", 880, (10, 60), computed=20)], 0.024, 2048) == [("a", 40)]


def test_an_image_that_must_be_whole_may_be_more_than_a_chunk_of_whoever_is_first() -> None:
    image = with_images("a", 900, (0, 400))
    assert chunks([image], 0.0, 64) == [("a", 400)]
    assert chunks([image, prefilling("b", 20)], 0.0, 64) == [("a", 400)]
    assert chunks([prefilling("b", 20), image], 1.0, 64) == [("b", 20)]


def test_a_stop_in_an_image_that_must_be_whole_is_passed_over() -> None:
    image = with_images("a", 900, (10, 400))
    image.stops = (200, 500)
    assert image.next_stop == 10
    image.computed = 10
    assert image.next_stop == 400
    image.computed = 400
    assert image.next_stop == 500


def test_tokens_alone_bound_what_costs_nobody_knows() -> None:
    assert chunks([prefilling("a", 900)], 0.1, 16, StepCost(16)) == [("a", 16)]
