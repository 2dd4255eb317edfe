from __future__ import annotations

import pytest

from mlx_serving.bench.comparison import compare
from mlx_serving.bench.figures import Objectives, figures_of
from mlx_serving.bench.records import Answer, Record, first_token_s, gaps_s, per_output_token_s

from .scripted import answered, failed

NONE = Objectives(None, None, None)


def test_times_of_an_answer_count_from_when_it_was_due() -> None:
    answer = Answer((11.0, 11.5, 13.0), 13.5, output_tokens=6)
    assert first_token_s(10.0, answer) == 1.0
    assert gaps_s(answer) == [0.5, 1.5]
    assert per_output_token_s(answer) == pytest.approx(0.4)


def test_an_answer_without_text_or_of_one_token_has_no_such_times() -> None:
    silent, single = Answer((), 1.0, output_tokens=5), Answer((1.0,), 1.0, output_tokens=1)
    assert (first_token_s(0.0, silent), per_output_token_s(silent), gaps_s(silent)) == (None, None, [])
    assert (first_token_s(0.0, single), per_output_token_s(single), gaps_s(single)) == (1.0, None, [])


def test_rates_are_of_the_whole_round_and_medians_of_the_rounds() -> None:
    slow = [answered(0.0, [1.0, 2.0], tokens=10), answered(1.0, [2.0, 5.0], tokens=10)]
    fast = [answered(100.0, [100.5, 101.0], tokens=10)]
    series = figures_of([slow, fast, fast], NONE)
    assert [one.output_tokens_per_s for one in series.rounds] == [4.0, 10.0, 10.0]
    assert series.output_tokens_per_s == 10.0
    assert series.rounds[0].requests_per_s == pytest.approx(0.4)
    assert series.rounds[0].total_tokens_per_s == pytest.approx(8.0)
    assert series.total_tokens_per_s == 20.0
    assert series.requests_per_s == 1.0


def test_times_are_over_the_requests_of_all_rounds() -> None:
    series = figures_of([[answered(0.0, [1.0, 2.0])], [answered(0.0, [3.0, 4.0])]], NONE)
    assert series.latency.ttft_s is not None
    assert (series.latency.ttft_s.count, series.latency.ttft_s.p50, series.latency.ttft_s.maximum) == (2, 2.0, 3.0)
    assert series.latency.itl_s is not None
    assert series.latency.itl_s.p99 == 1.0
    assert series.latency.e2e_s is not None
    assert series.latency.e2e_s.maximum == 4.0


def test_failures_are_counted_by_code_and_give_no_tokens() -> None:
    records = [failed(0.0, "timeout", 4.0), answered(0.0, [1.0]), failed(0.0, "http_500", 1.0), failed(1, "timeout", 2)]
    series = figures_of([records], NONE)
    assert series.failed == {"timeout": 2, "http_500": 1}
    assert series.rounds[0].answered == 1
    assert series.output_tokens_per_s == 0.25


def test_when_everything_failed_there_are_no_times() -> None:
    series = figures_of([[failed(0.0, "connection", 0.0)]], Objectives())
    assert series.latency.ttft_s is None
    assert series.prompt_tokens is None
    assert series.tokens_per_arrival is None
    assert (series.output_tokens_per_s, series.goodput_per_s) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("objectives", "good"),
    [
        (NONE, 1.0),
        (Objectives(ttft_s=1.0, tpot_s=None), 1.0),
        (Objectives(ttft_s=0.9, tpot_s=None), 0.0),
        (Objectives(ttft_s=None, tpot_s=0.5), 1.0),
        (Objectives(ttft_s=None, tpot_s=0.4), 0.0),
        (Objectives(None, None, e2e_s=2.0), 1.0),
        (Objectives(None, None, e2e_s=1.9), 0.0),
    ],
)
def test_goodput_counts_what_met_every_objective(objectives: Objectives, good: float) -> None:
    record = answered(0.0, [1.0, 1.5, 2.0])
    assert objectives.met(record) == bool(good)
    series = figures_of([[record, failed(0.0, "timeout", 2.0)]], objectives)
    assert series.goodput_per_s == good / 2


def test_an_objective_is_above_zero() -> None:
    with pytest.raises(ValueError, match="tpot_s must be greater than 0, got 0"):
        Objectives(tpot_s=0.0)


def test_what_the_tokens_and_the_sending_were_like_is_told() -> None:
    late = Record(1.0, 1.25, Answer((2.0, 3.0), 3.0, output_tokens=8, prompt_tokens=None, counted=False))
    series = figures_of([[late, answered(0.0, [1.0, 2.0])]], NONE)
    assert series.tokens_per_arrival == 2.5
    assert series.late_s == 0.25
    assert not series.counted
    assert series.prompt_tokens is not None
    assert series.prompt_tokens.count == 1


def test_ratios_are_taken_within_rounds() -> None:
    first = figures_of([[answered(0, [1.0, 2.0])], [answered(0, [1.0, 4.0])], [answered(0, [1.0, 8.0])]], NONE)
    second = figures_of([[answered(0, [2.0, 4.0])], [answered(0, [2.0, 4.0])], [answered(0, [2.0, 4.0])]], NONE)
    ratios = compare(first, second)
    assert ratios["output_tokens_per_s"].rounds == (2.0, 1.0, 0.5)
    assert ratios["output_tokens_per_s"].median == 1.0
    assert ratios["ttft_p50"].rounds == (0.5, 0.5, 0.5)
    assert ratios["itl_p99"].rounds == (0.5, 1.5, 3.5)


def test_a_figure_that_one_of_them_lacks_has_no_ratio() -> None:
    first = figures_of([[answered(0.0, [1.0])]], NONE)
    second = figures_of([[failed(0.0, "timeout", 1.0)]], NONE)
    ratios = compare(first, second)
    assert ratios.keys().isdisjoint({"ttft_p50", "itl_p50", "output_tokens_per_s"})
    assert compare(second, first)["output_tokens_per_s"].rounds == (0.0,)
