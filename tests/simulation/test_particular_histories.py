"""Single histories that random ones find rarely."""

from collections.abc import Iterator

import pytest

from mlx_serving.core.generation import GenerationRequest, SamplingParams, TokenPrompt
from mlx_serving.errors import DeathOrigin

from .virtual_model import POISON
from .virtual_world import Reader, World


@pytest.fixture
def world() -> Iterator[World]:
    one = World()
    try:
        yield one
        one.come_to_rest()
    except BaseException:
        one.abandon()
        raise
    one.close()


def ask(world: World, name: str, model: str = "shared", *, poison_at: int | None = None) -> Reader:
    prompt = (1, 2, 3) if poison_at is None else (POISON, poison_at, 3)
    request = GenerationRequest(name, model, TokenPrompt(prompt), SamplingParams(20, seed=4))
    return world.submit(request, poisonous=poison_at is not None)


def test_a_suspect_that_leaves_while_it_waits_for_its_model_holds_up_nobody(world: World) -> None:
    world.do(lambda: world.models.preload("shared"))
    world.loop.run_for(5)
    for _ in range(2):
        assert world.inquest.enter("suspect")
        assert world.inquest.died(DeathOrigin.INSIDE) is None
    suspect, other = ask(world, "suspect", "alone"), ask(world, "other", "shared")
    world.loop.run_for(0.1)
    world.leave(suspect)
    world.loop.run_for(5)
    assert (suspect.ending, other.ending) == ("left", "completed")


def test_who_left_and_kills_before_its_abort_arrives_condemns_nobody_else(world: World) -> None:
    world.do(lambda: world.models.preload("shared"))
    world.loop.run_for(5)
    for _ in range(2):
        for one in ("poison", "healthy"):
            assert world.inquest.enter(one)
        assert world.inquest.died(DeathOrigin.INSIDE) is None
    poison, healthy = ask(world, "poison", poison_at=0), ask(world, "healthy")
    while not world.running():
        world.loop.run_for(0.0001)
    world.leave(poison)
    world.loop.run_for(10)
    assert (poison.ending, healthy.ending) == ("left", "completed")


def test_a_poisonous_request_among_healthy_ones_fails_alone(world: World) -> None:
    healthy = [ask(world, f"healthy {n}") for n in range(6)]
    poison = ask(world, "poison", poison_at=2)
    world.loop.run_for(60)
    assert poison.ending == "RequestCrashedWorker"
    assert [one.ending for one in healthy] == ["completed"] * 6
    assert world.sites[0].supervisor.health().restarts <= 4
