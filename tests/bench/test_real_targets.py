"""Against a real engine and a real server of a random model."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from mlx_serving.bench.engine_target import EngineTarget, open_engine_target
from mlx_serving.bench.experiment import Plan, measure
from mlx_serving.bench.http_target import HttpTarget
from mlx_serving.bench.records import Answer
from mlx_serving.bench.server_target import open_server_target
from mlx_serving.bench.target import RequestFailed, Target
from mlx_serving.bench.workload import GREEDY, Ask, Closed, Endpoint, Open, Sampling, Workload
from mlx_serving.config.schema import Config
from mlx_serving.errors import EngineError

QUIET = ("--set", "logging.level=error")


@pytest.fixture(scope="session")
def printable_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers exactly as long as it is asked to, every token a piece of text."""
    from ..tiny_models import make_printable_llama  # imports MLX, which most tests do without

    return make_printable_llama(tmp_path_factory.mktemp("models") / "printable")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def targets(printable_model: Path) -> AsyncGenerator[tuple[EngineTarget, HttpTarget]]:
    models = {"served": [{"model": str(printable_model), "name": "printable"}]}
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_engine_target(Config.model_validate({"models": models})))
        arguments = ("--model", str(printable_model), *QUIET)
        server = await stack.enter_async_context(open_server_target(arguments))
        yield engine, server


@pytest.mark.parametrize("endpoint", list(Endpoint))
async def test_engine_and_server_give_the_same_answer(targets: tuple[Target, Target], endpoint: Endpoint) -> None:
    ask = Ask("once upon a time", 12, endpoint, GREEDY)
    first, second = [await target.send(ask) for target in targets]
    assert first.text == second.text != ""
    assert (first.output_tokens, first.prompt_tokens) == (12, second.prompt_tokens)
    assert second.output_tokens == 12
    assert len(first.arrivals_s) == 12
    assert first.counted
    assert second.counted


async def test_both_are_measured_in_turns_and_give_all_figures(targets: tuple[Target, Target]) -> None:
    workload = Workload(requests=6, prompt_tokens=40, output_tokens=8, sampling=Sampling.MIXED)
    plan = Plan(workload, (Closed(3), Open(200.0)), rounds=2, warmup=2)
    measured = await measure(targets, plan)
    assert measured.exact_prompts
    records = [record for load in measured.records for target in load for one in target for record in one]
    outcomes = [record.outcome for record in (*records, *measured.first)]
    assert len(outcomes) == 2 * 2 * 2 * 6 + 2
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    assert len(answers) == len(outcomes)
    assert {answer.output_tokens for answer in answers} == {8}
    assert {answer.prompt_tokens for answer in answers} == {40}
    assert all(answer.arrivals_s for answer in answers)


async def test_facts_are_those_of_the_worker(targets: tuple[Target, Target]) -> None:
    engine, server = (target.about for target in targets)
    assert (engine.name, engine.model) == ("engine", "printable")
    assert (server.name, server.model) == ("server", "printable")
    assert engine.facts == server.facts
    assert {"device", "BLAS", "mlx-serving", "mlx", "mlx-lm"} == engine.facts.keys()


async def test_what_the_target_refuses_fails_with_its_code(targets: tuple[Target, Target]) -> None:
    for target in targets:
        with pytest.raises(RequestFailed) as caught:
            await target.send(Ask("x" * 5000, 12, Endpoint.COMPLETIONS, GREEDY))
        assert caught.value.code.lower().replace("_", "") in ("contextlengthexceeded", "invalidrequesterror")
        with pytest.raises(RequestFailed, match="temperature"):
            await target.send(Ask("x", 12, Endpoint.COMPLETIONS, {"temperature": 9.0}))


async def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="ended before it served") as caught:
        async with open_server_target(("--model", str(tmp_path / "nothing"))):
            pass
    assert "nothing" in str(caught.value.details["stderr_tail"])
