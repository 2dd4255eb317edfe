from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.inquest import LOSS, Inquest, InquestPolicy
from mlx_serving.errors import DeathOrigin

INSIDE, OUTSIDE, PLANNED = DeathOrigin.INSIDE, DeathOrigin.OUTSIDE, DeathOrigin.PLANNED
POLICY = InquestPolicy()


def after(*deaths: DeathOrigin, of: str = "ab") -> Inquest:
    """An inquest into deaths with the same requests in flight."""
    inquest = Inquest(POLICY)
    for origin in deaths:
        for one in of:
            assert inquest.enter(one)
        assert inquest.died(origin) is None
    return inquest


def test_a_death_counts_for_every_request_in_flight() -> None:
    inquest = after(INSIDE)
    assert (inquest.losses("a"), inquest.losses("b"), inquest.losses("c")) == (1, 1, 0)


def test_a_death_from_outside_counts_a_quarter_and_a_planned_one_nothing() -> None:
    assert after(OUTSIDE, PLANNED, OUTSIDE).losses("a") == 0.5


def test_who_was_not_in_flight_is_not_accused() -> None:
    inquest = Inquest(POLICY)
    inquest.enter("a")
    inquest.enter("b")
    inquest.leave("a")
    inquest.died(INSIDE)
    assert (inquest.losses("a"), inquest.losses("b")) == (0, 1)
    inquest.died(INSIDE)
    assert inquest.losses("b") == 1


def test_what_was_delivered_speaks_for_a_request() -> None:
    inquest = after(INSIDE)
    inquest.enter("a")
    inquest.enter("b")
    assert not inquest.deliver("a", POLICY.clearing_tokens - 1)
    assert inquest.deliver("a", 1)
    inquest.died(INSIDE)
    assert (inquest.losses("a"), inquest.losses("b")) == (1, 2)


def test_tokens_for_an_earlier_worker_do_not_count() -> None:
    inquest = Inquest(POLICY)
    inquest.enter("a")
    inquest.deliver("a", POLICY.clearing_tokens - 1)
    inquest.died(INSIDE)
    inquest.enter("a")
    assert not inquest.deliver("a", POLICY.clearing_tokens - 1)


def test_suspects_are_admitted_one_at_a_time_and_nobody_beside() -> None:
    inquest = after(INSIDE, INSIDE)
    assert not inquest.enter("other")
    assert inquest.enter("a")
    assert (inquest.is_on_trial("a"), inquest.is_on_trial("b")) == (True, False)
    assert not inquest.enter("b")
    assert not inquest.enter("other")


def test_a_suspect_that_delivers_is_cleared_and_the_next_one_is_tried() -> None:
    inquest = after(INSIDE, INSIDE)
    inquest.enter("b")
    assert inquest.deliver("b", POLICY.clearing_tokens)
    assert inquest.losses("b") == 0
    assert not inquest.enter("other")
    assert inquest.enter("a")
    inquest.forget("a")
    assert inquest.enter("other")


def test_a_suspect_that_leaves_its_trial_for_a_while_stays_one() -> None:
    inquest = after(INSIDE, INSIDE, of="a")
    inquest.enter("a")
    inquest.leave("a")
    assert not inquest.enter("other")
    assert inquest.enter("a")


def test_a_death_in_a_trial_condemns_the_suspect_that_was_alone() -> None:
    inquest = after(INSIDE, INSIDE)
    inquest.enter("a")
    assert inquest.died(INSIDE) == "a"
    assert (inquest.losses("a"), inquest.losses("b")) == (3, 2)
    inquest.forget("a")
    assert inquest.enter("b")
    inquest.forget("b")
    assert inquest.enter("other")


def test_who_was_cleared_may_kill_during_the_trial_of_another() -> None:
    inquest = after(INSIDE, INSIDE)
    inquest.enter("b")
    inquest.deliver("b", POLICY.clearing_tokens)
    inquest.enter("a")
    assert inquest.died(INSIDE) is None
    assert (inquest.losses("a"), inquest.losses("b")) == (3, 1)
    assert not inquest.enter("b")
    assert inquest.enter("a")
    assert inquest.died(INSIDE) == "a"


def test_who_left_before_it_was_done_may_kill_during_the_trial_of_another() -> None:
    inquest = after(INSIDE, INSIDE)
    inquest.enter("b")
    inquest.leave("b", aborting=True)
    inquest.forget("b")
    inquest.enter("a")
    assert inquest.died(INSIDE) is None
    assert inquest.enter("a")
    assert inquest.died(INSIDE) == "a"


def test_who_left_an_earlier_worker_excuses_nobody_in_this_one() -> None:
    inquest = after(INSIDE, INSIDE)
    inquest.leave("b", aborting=True)
    inquest.enter("a")
    assert inquest.died(INSIDE) == "a"


def test_who_has_most_losses_is_tried_first() -> None:
    inquest = after(INSIDE, INSIDE)
    assert inquest.enter("a")
    assert inquest.died(OUTSIDE) is None
    assert not inquest.enter("b")
    assert inquest.enter("a")


def test_it_counts_those_of_whom_something_is_known() -> None:
    inquest = after(INSIDE)
    assert len(inquest) == 2
    inquest.forget("a")
    assert len(inquest) == 1


def test_a_death_from_outside_condemns_only_when_it_comes_again_and_again() -> None:
    inquest = after(INSIDE, INSIDE, of="a")
    for origin in (OUTSIDE, PLANNED, OUTSIDE, OUTSIDE):
        assert inquest.enter("a")
        assert inquest.died(origin) is None
    assert inquest.enter("a")
    assert inquest.died(OUTSIDE) == "a"


def test_a_planned_death_condemns_nobody_whatever_the_losses() -> None:
    inquest = Inquest(InquestPolicy(suspected_after=1, condemned_after=1))
    inquest.enter("a")
    inquest.died(INSIDE)
    inquest.enter("a")
    assert inquest.died(PLANNED) is None


def test_who_ended_is_forgotten() -> None:
    inquest = after(INSIDE, INSIDE)
    inquest.forget("a")
    inquest.forget("b")
    inquest.forget("nobody")
    assert inquest.losses("a") == 0
    assert inquest.enter("a")
    assert not inquest.is_on_trial("a")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"suspected_after": 0}, "suspected_after must be greater than 0, got 0"),
        ({"condemned_after": 1}, "condemned_after must be at least 2, got 1"),
        ({"clearing_tokens": 0}, "clearing_tokens must be at least 1, got 0"),
    ],
)
def test_a_policy_out_of_its_limits_is_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        InquestPolicy(**fields)


@dataclass
class World:
    """Workers that die of the poisonous requests as soon as they are given one, and of other things now and then."""

    healthy: list[str]
    poisonous: list[str]
    inquest: Inquest = field(default_factory=lambda: Inquest(POLICY))
    condemned: set[str] = field(default_factory=set[str])
    deaths: int = 0

    def life(self, order: list[str], kill_after: int | None) -> bool:
        """One worker, until it dies: given requests in `order`. Whether it lived to the end."""
        given: list[str] = []
        waiting = [one for one in order if one in self.healthy or one in self.poisonous]
        progress = True
        while progress:
            progress = False
            for one in tuple(waiting):
                if not self.inquest.enter(one):
                    continue
                progress = True
                waiting.remove(one)
                given.append(one)
                if kill_after is not None and len(given) > kill_after:
                    return self._die(OUTSIDE)
                if one in self.poisonous:
                    return self._die(INSIDE)
                if self.inquest.deliver(one, POLICY.clearing_tokens):
                    self.healthy.remove(one)
                    self.inquest.forget(one)
        assert not waiting
        return True

    def _die(self, origin: DeathOrigin) -> bool:
        self.deaths += 1
        condemned = self.inquest.died(origin)
        if condemned is not None:
            self.condemned.add(condemned)
            self.inquest.forget(condemned)
            self.poisonous = [one for one in self.poisonous if one != condemned]
            self.healthy = [one for one in self.healthy if one != condemned]
        return False


@given(
    healthy=st.integers(0, 12),
    poisonous=st.integers(0, 3),
    kills=st.lists(st.integers(0, 12), max_size=3),
    random=st.randoms(use_true_random=False),
)
def test_exactly_the_poisonous_are_condemned_after_few_deaths(
    healthy: int, poisonous: int, kills: list[int], random: Random
) -> None:
    bad = [f"bad{n}" for n in range(poisonous)]
    world = World([f"good{n}" for n in range(healthy)], list(bad))
    everybody = [*world.healthy, *world.poisonous]
    pending = list(kills)
    while True:
        random.shuffle(everybody)
        if world.life(everybody, pending.pop() if pending else None):
            break
        assert world.deaths <= len(kills) + 3 * poisonous
    assert world.condemned == set(bad)
    assert world.healthy == []


@given(st.lists(st.tuples(st.sampled_from(["enter", "deliver", "leave", "forget", "died"]), st.integers(0, 4))))
def test_any_history_keeps_the_invariants(events: list[tuple[str, int]]) -> None:
    inquest = Inquest(POLICY)
    in_flight: set[str] = set()
    for event, number in events:
        one = f"r{number}"
        match event:
            case "enter" if one not in in_flight:
                if inquest.enter(one):
                    in_flight.add(one)
            case "deliver" if one in in_flight:
                if inquest.deliver(one, number):
                    assert inquest.losses(one) == 0
            case "leave":
                inquest.leave(one)
                in_flight.discard(one)
            case "forget":
                inquest.forget(one)
                in_flight.discard(one)
                assert inquest.losses(one) == 0
            case "died":
                origin = list(DeathOrigin)[number % 3]
                tried = [each for each in in_flight if inquest.is_on_trial(each)]
                before = {each: inquest.losses(each) for each in in_flight}
                condemned = inquest.died(origin)
                assert condemned is None or [condemned] == tried == list(in_flight)
                for each in in_flight:
                    assert inquest.losses(each) == before[each] + LOSS[origin]
                in_flight.clear()
            case _:
                pass
        assert sum(inquest.is_on_trial(f"r{n}") for n in range(5)) <= 1


def test_suspects_are_tried_in_the_worker_that_made_them_and_others_go_on_elsewhere() -> None:
    inquest = Inquest(POLICY)
    for _ in range(2):
        assert inquest.enter("bad", 1)
        assert inquest.enter("good", 1)
        assert inquest.enter("far", 0)
        assert inquest.died(INSIDE, 1) is None
        inquest.leave("far")
    assert inquest.court == 1
    assert inquest.is_suspect("bad")
    assert inquest.is_suspect("good")
    assert not inquest.is_suspect("far")
    assert not inquest.enter("far", 1)
    assert inquest.enter("far", 0)
    assert not inquest.enter("bad", 0)
    assert inquest.enter("bad", 1)
    assert not inquest.enter("good", 1)
    assert inquest.died(OUTSIDE, 0) is None  # another worker's death is no verdict
    assert inquest.is_on_trial("bad")
    assert inquest.died(INSIDE, 1) == "bad"
    inquest.forget("bad")
    assert inquest.enter("good", 1)
    assert inquest.deliver("good", POLICY.clearing_tokens)
    assert inquest.court is None
    assert inquest.enter("far", 1)


def test_losses_in_several_workers_add_up() -> None:
    inquest = Inquest(POLICY)
    for worker in (0, 1):
        assert inquest.enter("bad", worker)
        assert inquest.died(INSIDE, worker) is None
    assert inquest.court == 1
    assert inquest.enter("bad", 1)
    assert inquest.died(INSIDE, 1) == "bad"


@given(
    workers=st.integers(1, 3),
    healthy=st.integers(0, 10),
    poisonous=st.integers(0, 3),
    kills=st.integers(0, 3),
    random=st.randoms(use_true_random=False),
)
def test_with_several_workers_exactly_the_poisonous_are_condemned(
    workers: int, healthy: int, poisonous: int, kills: int, random: Random
) -> None:
    inquest = Inquest(POLICY)
    waiting = [f"good{n}" for n in range(healthy)] + [f"bad{n}" for n in range(poisonous)]
    inside: dict[str, int] = {}
    condemned: set[str] = set()
    deaths = 0

    def die(origin: DeathOrigin, worker: int) -> None:
        nonlocal deaths
        deaths += 1
        guilty = inquest.died(origin, worker)
        for one in [one for one, where in inside.items() if where == worker]:
            del inside[one]
            if one == guilty:
                condemned.add(one)
                inquest.forget(one)
            else:
                waiting.append(one)

    while waiting or inside:
        random.shuffle(waiting)
        before = len(waiting), deaths
        if kills and random.random() < 0.3:
            kills -= 1
            die(OUTSIDE, random.randrange(workers))
        for one in waiting[: random.randint(1, 4)]:
            court = inquest.court
            worker = court if court is not None and inquest.is_suspect(one) else random.randrange(workers)
            if one in waiting and inquest.enter(one, worker):
                waiting.remove(one)
                inside[one] = worker
                if one.startswith("bad"):
                    die(INSIDE, worker)
        for one in random.sample(sorted(inside), random.randint(0 if waiting else 1, len(inside)) if inside else 0):
            inquest.deliver(one, POLICY.clearing_tokens)
            del inside[one]
            inquest.forget(one)
        assert deaths <= 3 + 4 * poisonous, before
    assert condemned == {f"bad{n}" for n in range(poisonous)}
    assert len(inquest) == 0
