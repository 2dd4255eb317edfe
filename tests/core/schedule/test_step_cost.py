import random

import pytest

from mlx_serving.core.schedule.step_cost import StepCost, Throughput


def taught(base: float = 0.001, slope: float = 1e-6) -> StepCost:
    cost = StepCost(4)
    rng = random.Random(1)
    for _ in range(400):
        start = rng.choice([0, 100, 2000, 16_000])
        context = start + 50.0
        cost.learn_prefill(0, 100, context, 100 * (base + slope * context) * rng.gauss(1, 0.03))
    return cost


def test_base_and_slope_are_found_from_noisy_measurements() -> None:
    cost = taught()
    assert cost.base_s == pytest.approx(0.001, rel=0.1)
    assert cost.slope_s == pytest.approx(1e-6, rel=0.1)


@pytest.mark.parametrize(("base", "slope"), [(2e-5, 8e-8), (2e-3, 1e-6), (1e-3, 3e-8)])
def test_a_first_long_prompt_tells_what_context_costs(base: float, slope: float) -> None:
    """A small model, whose attention soon costs more than its weights, and larger ones, whose does not."""
    cost = StepCost(4)

    def seconds(start: int, count: int) -> float:
        return count * (base + slope * (start + count / 2))

    for start, count in ((0, 64), (64, 512), (576, 1424)):
        cost.learn_prefill(0, count, start + count / 2, seconds(start, count))
    for start, count in ((0, 1000), (500, 500), (1900, 100)):
        assert cost.prefill_s(start, count) == pytest.approx(seconds(start, count), rel=0.4)
    cost.learn_prefill(0, 200, 15, seconds(0, 30) / 30 * 200)
    cost.learn_prefill(0, 1000, 500, seconds(0, 1000))
    for start, count in ((0, 1000), (500, 500), (1900, 100)):
        assert cost.prefill_s(start, count) == pytest.approx(seconds(start, count), rel=0.15)


def test_a_flat_cost_gets_no_slope() -> None:
    assert taught(slope=0.0).slope_s == pytest.approx(0.0, abs=2e-8)


def test_a_cost_of_context_alone_gets_no_negative_base() -> None:
    cost = taught(base=0.0)
    assert cost.base_s >= 0
    assert cost.prefill_s(16_000, 100) == pytest.approx(100 * 1e-6 * 16_050, rel=0.1)


def test_a_slope_is_never_negative() -> None:
    cost = taught()
    for _ in range(100):
        cost.learn_prefill(0, 100, 16_000, 0.1)
        cost.learn_prefill(0, 100, 50, 0.2)
        assert cost.slope_s >= 0
        assert cost.base_s >= 0


@pytest.mark.parametrize("start", [0, 1000, 50_000])
@pytest.mark.parametrize("seconds", [0.01, 1.0])
def test_tokens_within_is_the_inverse_of_prefill_s(start: int, seconds: float) -> None:
    cost = taught()
    count = cost.tokens_within(seconds, start)
    assert count * (cost.base_s + cost.slope_s * (start + count / 2)) == pytest.approx(seconds)


def test_fewer_tokens_fit_where_the_context_is_long() -> None:
    cost = taught()
    assert cost.tokens_within(0.1, 10_000) < cost.tokens_within(0.1, 0) / 5


def test_nothing_is_promised_before_the_first_measurement() -> None:
    cost = StepCost(4)
    assert cost.tokens_within(1.0, 0) == 0
    assert cost.prefill_s(0, 100) == 0
    assert cost.decode_s(3) == 0
    assert cost.decode_s(0) == 0


def test_a_first_measurement_with_a_compilation_in_it_is_dropped_for_the_next() -> None:
    cost = StepCost(4)
    cost.learn_prefill(0, 64, 32, 5.0)
    cost.learn_prefill(0, 64, 32, 0.064)
    assert cost.prefill_s(0, 64) == pytest.approx(0.064, rel=0.01)
    cost.learn_decode(1, 5.0)
    cost.learn_decode(1, 0.01)
    assert cost.decode_s(1) == 0.01


def test_one_hiccup_moves_little_and_a_slower_device_is_learned() -> None:
    cost = taught(slope=0.0)
    cost.learn_decode(2, 0.02)
    before = cost.prefill_s(0, 100)
    cost.learn_prefill(0, 100, 50, 60.0)
    cost.learn_decode(2, 60.0)
    assert cost.prefill_s(0, 100) < 1.7 * before
    assert cost.decode_s(2) < 0.03
    for _ in range(30):
        cost.learn_prefill(0, 100, 50, 10 * before)
        cost.learn_decode(2, 0.2)
    assert cost.prefill_s(0, 100) == pytest.approx(10 * before, rel=0.05)
    assert cost.decode_s(2) == pytest.approx(0.2, rel=0.05)


def test_a_small_chunk_with_its_fixed_cost_moves_little() -> None:
    cost = taught(slope=0.0)
    before = cost.base_s
    cost.learn_prefill(0, 1, 50, 0.01)
    assert cost.base_s < 1.05 * before


def test_the_decode_beside_a_prefill_is_taken_off() -> None:
    cost = StepCost(4)
    cost.learn_decode(4, 0.05)
    cost.learn_prefill(4, 100, 50, 0.15)
    assert cost.prefill_s(0, 100) == pytest.approx(0.1)


def test_a_first_decode_beside_a_prefill_is_what_the_prefill_leaves() -> None:
    cost = StepCost(4)
    cost.learn_prefill(0, 100, 50, 0.1)
    cost.learn_prefill(1, 50, 25, 0.09)
    assert cost.decode_s(1) == pytest.approx(0.04)
    assert cost.prefill_s(0, 100) == pytest.approx(0.1)


def test_a_first_decode_took_some_time_beside_a_prefill_that_was_thought_to_take_it_all() -> None:
    cost = StepCost(4)
    cost.learn_prefill(0, 64, 32, 5.0)
    cost.learn_prefill(1, 64, 32, 0.1)
    assert cost.decode_s(1) == pytest.approx(0.01)
    assert cost.prefill_s(0, 64) == pytest.approx(0.09)


def test_a_number_of_rows_that_was_guessed_is_as_wrong_as_the_prefill_beside_it() -> None:
    cost = StepCost(8)
    cost.learn_decode(4, 0.04)
    cost.learn_prefill(0, 40, 20, 0.04)
    cost.learn_prefill(8, 40, 20, 0.09)
    assert cost.decode_s(8) == pytest.approx(0.06)
    assert 0.03 < cost.prefill_s(0, 40) < 0.04


def test_a_mixed_step_shorter_than_its_decode_still_took_prefill_some_time() -> None:
    cost = StepCost(4)
    cost.learn_decode(4, 0.05)
    cost.learn_prefill(4, 100, 50, 0.04)
    assert cost.prefill_s(0, 100) == pytest.approx(0.004)


def test_an_unknown_number_of_rows_costs_as_its_nearest_neighbour() -> None:
    cost = StepCost(8)
    cost.learn_decode(4, 0.04)
    assert cost.decode_s(3) == 0.04
    assert cost.decode_s(1) == 0.04
    assert cost.decode_s(6) == pytest.approx(0.06)
    assert cost.decode_s(8) == pytest.approx(0.08)


def test_reach_follows_what_was_measured_lately() -> None:
    cost = StepCost(4)
    cost.learn_prefill(0, 100, 50, 0.1)
    cost.learn_prefill(0, 10, 50, 0.01)
    assert cost.reach == pytest.approx(90)
    cost.learn_prefill(0, 512, 50, 0.5)
    assert cost.reach == 512


def test_throughput_tells_how_long_tokens_take() -> None:
    throughput = Throughput()
    assert throughput.seconds_for(100) is None
    for _ in range(10):
        throughput.learn(50, 0.5)
    assert throughput.seconds_for(200) == pytest.approx(2.0)
    for _ in range(3000):
        throughput.learn(50, 1.0)
    assert throughput.seconds_for(200) == pytest.approx(4.0, rel=0.01)


def test_an_image_costs_by_its_tokens() -> None:
    cost = StepCost(4)
    assert cost.encode_s(100) == 0.0
    cost.learn_encode(100, 0.5)
    assert cost.encode_s(200) == pytest.approx(1.0)
    cost.learn_encode(100, 50.0)  # a kernel was compiled
    assert cost.encode_s(100) < 1.0
    cost.learn_encode(100, 0.01)
    assert cost.encode_s(100) == pytest.approx(0.01)
