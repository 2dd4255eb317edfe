from __future__ import annotations

from mlx_serving.bench.experiment import Plan, measure
from mlx_serving.bench.records import Answer, Failure
from mlx_serving.bench.workload import Closed, Open, Workload

from .scripted import ScriptedTarget

PLAN = Plan(Workload(requests=3, prompt_tokens=12), (Closed(2), Closed(4)), rounds=2, warmup=2)


async def test_targets_take_turns_and_the_first_of_a_round_changes() -> None:
    log: list[str] = []
    await measure([ScriptedTarget("a", log=log), ScriptedTarget("b", log=log)], PLAN)
    a_load = "aabb" + "aaabbb" + "bbbaaa"  # warm-up, then two rounds
    assert "".join(log) == "ab" + a_load + a_load


async def test_both_targets_get_the_same_prompts_and_no_prompt_comes_twice() -> None:
    first, second = ScriptedTarget("a"), ScriptedTarget("b")
    await measure([first, second], PLAN)
    prompts = [ask.prompt for ask in first.asked]
    assert sorted(prompts) == sorted(ask.prompt for ask in second.asked)
    assert len(set(prompts)) == len(prompts) == 1 + 2 * (2 + 2 * 3)


async def test_records_are_by_load_target_and_round_without_what_warmed_up() -> None:
    measured = await measure([ScriptedTarget("a"), ScriptedTarget("b")], PLAN)
    assert [[[len(rounds) for rounds in target] for target in load] for load in measured.records] == [[[3, 3]] * 2] * 2
    assert len(measured.first) == 2


async def test_the_first_answer_tells_how_many_words_make_the_length() -> None:
    target = ScriptedTarget()  # a word is two tokens to it
    measured = await measure([target], PLAN)
    first, *later = (len(ask.prompt.split()) for ask in target.asked)
    assert (first, set(later)) == (9, {6})
    assert not measured.exact_prompts


async def test_a_first_request_that_fails_is_known_and_the_rest_is_measured() -> None:
    target = ScriptedTarget(fails=lambda ask: ask is target.asked[0])
    measured = await measure([target], PLAN)
    assert isinstance(measured.first[0].outcome, Failure)
    assert all(isinstance(record.outcome, Answer) for record in measured.records[0][0][0])
    assert {len(ask.prompt.split()) for ask in target.asked} == {9}


async def test_the_tokenizer_of_whichever_target_has_one_cuts_the_prompts() -> None:
    async def count(text: str) -> int:
        return 3 * len(text.split())

    without, having = ScriptedTarget("a"), ScriptedTarget("b", count_tokens=count)
    measured = await measure([without, having], PLAN)
    assert measured.exact_prompts
    assert {len(ask.prompt.split()) for ask in without.asked} == {4}


async def test_open_load_is_warmed_up_by_a_few_at_once() -> None:
    target = ScriptedTarget()
    plan = Plan(Workload(requests=1), (Open(1000.0),), warmup=9)
    await measure([target], plan)
    assert (len(target.asked), target.most) == (11, 4)


async def test_cold_there_is_nothing_but_the_first_request_before() -> None:
    target = ScriptedTarget()
    await measure([target], Plan(Workload(requests=2), (Closed(1),), warmup=0))
    assert len(target.asked) == 3


async def test_progress_counts_every_request_up_to_the_announced_number() -> None:
    told: list[tuple[str, int, int]] = []
    await measure([ScriptedTarget("a")], PLAN, lambda what, done, total: told.append((what, done, total)))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1] == ("a: 4 concurrent, round 2 of 2", 17, 17)
    assert told[0] == ("a: first request", 0, 17)
