from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.model_residency import ResidencyPolicy, step
from mlx_serving.core.residency_states import (
    Absent,
    Acquire,
    Draining,
    Evicting,
    Grant,
    Invalidate,
    Keep,
    LoadErrored,
    LoadFailed,
    Loading,
    LoadSucceeded,
    Preload,
    Ready,
    Refuse,
    Release,
    Residency,
    ResidencyEffect,
    ResidencyEvent,
    StartLoad,
    StartUnload,
    Unload,
    UnloadDone,
    UnloadForced,
    WorkerLost,
)
from mlx_serving.errors import DeathOrigin, ModelLoadError, ModelNotLoaded, ModelReplaced, WorkerDied

State: TypeAlias = Residency[str]
Event: TypeAlias = ResidencyEvent[str]
Effect: TypeAlias = ResidencyEffect[str]

POLICY = ResidencyPolicy()
DIED = WorkerDied("it crashed", signal=6)
ERROR = ModelLoadError("no such file")
FAILED = LoadFailed(ERROR, 5.0)


def run(
    state: State, *events: Event, now: float = 9.0, policy: ResidencyPolicy = POLICY
) -> tuple[State, Sequence[Effect]]:
    effects: Sequence[Effect] = ()
    for event in events:
        state, effects = step(state, event, now, policy)
    return state, effects


def ready(*tickets: int, last_used: float = 0.0) -> State:
    return Ready("facts", frozenset(tickets), last_used)


def draining(tickets: set[int], *waiters: int) -> Draining[str]:
    return Draining("facts", frozenset(tickets), waiters)


def test_a_model_whose_unload_is_asked_for_once_more_while_it_drains_is_not_kept() -> None:
    for_good = replace(draining({1, 2}), for_good=True)
    assert run(draining({1, 2}), Unload()) == (for_good, ())
    waited_for = replace(for_good, in_use=frozenset({1}), waiters=(3,))
    assert run(for_good, Acquire(3), Release(2)) == (waited_for, ())
    assert run(waited_for, Keep()) == (waited_for, ())
    assert run(waited_for, Keep(), Release(1)) == (Evicting((3,)), (StartUnload(),))


@pytest.mark.parametrize("state", [Absent(), FAILED])
def test_the_first_who_acquires_starts_the_load(state: State) -> None:
    assert run(state, Acquire(1)) == (Loading((1,)), (StartLoad(),))


def test_others_who_come_meanwhile_wait_for_the_same_load() -> None:
    assert run(Loading((1,)), Acquire(2)) == (Loading((1, 2)), ())


def test_a_load_that_succeeds_grants_all_who_wait_in_order() -> None:
    expected = (ready(1, 2, last_used=9.0), (Grant(1, "facts"), Grant(2, "facts")))
    assert run(Loading((1, 2)), LoadSucceeded("facts")) == expected


def test_a_load_that_fails_refuses_all_who_wait_and_the_next_acquire_tries_again() -> None:
    failed, effects = run(Loading((1, 2)), LoadErrored(ERROR))
    assert (failed, effects) == (LoadFailed(ERROR, 9.0), (Refuse(1, ERROR), Refuse(2, ERROR)))
    assert run(failed, Acquire(3)) == (Loading((3,)), (StartLoad(),))


@pytest.mark.parametrize("state", [Absent(), FAILED])
def test_a_preload_loads_without_anybody_waiting(state: State) -> None:
    loading, effects = run(state, Preload())
    assert (loading, effects) == (Loading(), (StartLoad(),))
    assert run(loading, LoadSucceeded("facts")) == (ready(last_used=9.0), ())


@pytest.mark.parametrize("state", [Loading((1,)), ready(1), draining({1}, 2), Evicting((1,))])
def test_a_preload_leaves_a_model_that_is_there_or_on_its_way_as_it_is(state: State) -> None:
    assert run(state, Preload()) == (state, ())


def test_a_ready_model_is_granted_at_once() -> None:
    assert run(ready(1), Acquire(2)) == (ready(1, 2, last_used=9.0), (Grant(2, "facts"),))


def test_a_release_notes_when_the_model_was_last_used() -> None:
    assert run(ready(1, 2), Release(1)) == (ready(2, last_used=9.0), ())


def test_an_unload_of_a_model_that_nobody_uses_starts_at_once() -> None:
    assert run(ready(), Unload()) == (Evicting(), (StartUnload(),))


def test_an_unload_waits_until_the_last_user_has_released_the_model() -> None:
    state, effects = run(ready(1, 2), Unload())
    assert (state, effects) == (draining({1, 2}), ())
    assert run(state, Release(1)) == (draining({2}), ())
    assert run(state, Release(1), Release(2)) == (Evicting(), (StartUnload(),))


def test_an_unload_that_is_done_leaves_the_model_absent() -> None:
    assert run(Evicting(), UnloadDone()) == (Absent(), ())


def test_who_acquires_a_model_on_its_way_out_waits_and_it_is_loaded_again() -> None:
    state, effects = run(draining({1}), Acquire(2))
    assert (state, effects) == (draining({1}, 2), ())
    state, effects = run(state, Release(1))
    assert (state, effects) == (Evicting((2,)), (StartUnload(),))
    state, effects = run(state, Acquire(3))
    assert (state, effects) == (Evicting((2, 3)), ())
    assert run(state, UnloadDone()) == (Loading((2, 3)), (StartLoad(),))


def test_a_model_that_is_kept_while_it_drains_is_ready_again_and_grants_those_who_wait() -> None:
    expected = (ready(1, 2, 3, last_used=9.0), (Grant(2, "facts"), Grant(3, "facts")))
    assert run(draining({1}, 2, 3), Keep()) == expected


@pytest.mark.parametrize("state", [Absent(), FAILED, Loading((1,), unload=True), ready(1), Evicting((1,))])
def test_only_a_model_that_drains_can_be_kept(state: State) -> None:
    assert run(state, Keep()) == (state, ())


def test_an_unload_while_loading_follows_the_load_after_those_who_wait_were_served() -> None:
    state, effects = run(Loading((1,)), Unload())
    assert (state, effects) == (Loading((1,), unload=True), ())
    assert run(state, LoadSucceeded("facts")) == (draining({1}), (Grant(1, "facts"),))
    assert run(Loading((), unload=True), LoadSucceeded("facts")) == (Evicting(), (StartUnload(),))


def test_an_unload_while_loading_survives_those_who_come_and_go() -> None:
    assert run(Loading((1,), True, 1), Acquire(2))[0] == Loading((1, 2), True, 1)
    assert run(Loading((1,), True, 1), Release(1))[0] == Loading((), True, 1)


@pytest.mark.parametrize("event", [Unload(), UnloadForced("by request")])
def test_an_unload_of_an_absent_model_is_done_already(event: Event) -> None:
    assert run(Absent(), event) == (Absent(), ())
    assert run(FAILED, event) == (Absent(), ())


def outcome(effects: Sequence[Effect]) -> list[tuple[str, object, str]]:
    """Invalidations and refusals with the texts of their errors, which must be ModelNotLoaded."""
    found: list[tuple[str, object, str]] = []
    for effect in effects:
        if isinstance(effect, Invalidate):
            assert isinstance(effect.error, ModelNotLoaded)
            found.append(("invalidate", effect.tickets, effect.error.message))
        elif isinstance(effect, Refuse):
            assert isinstance(effect.error, ModelNotLoaded)
            found.append(("refuse", effect.ticket, effect.error.message))
        else:
            found.append(("other", effect, ""))
    return found


def test_a_forced_unload_invalidates_those_who_use_the_model() -> None:
    state, effects = run(ready(1, 2), UnloadForced("by request"))
    assert state == Evicting()
    assert outcome(effects) == [("invalidate", frozenset({1, 2}), "by request"), ("other", StartUnload(), "")]


def test_a_forced_unload_of_an_idle_model_invalidates_nobody() -> None:
    assert run(ready(), UnloadForced("by request")) == (Evicting(), (StartUnload(),))


def test_a_forced_unload_refuses_those_who_wait() -> None:
    state, effects = run(Loading((1,)), UnloadForced("by request"))
    assert state == Loading((), unload=True)
    assert outcome(effects) == [("refuse", 1, "by request")]
    state, effects = run(Evicting((1,)), UnloadForced("by request"))
    assert state == Evicting()
    assert outcome(effects) == [("refuse", 1, "by request")]


def test_a_forced_unload_while_draining_turns_out_users_and_waiters() -> None:
    state, effects = run(draining({1}, 2), UnloadForced("by request"))
    assert state == Evicting()
    assert outcome(effects) == [
        ("invalidate", frozenset({1}), "by request"),
        ("refuse", 2, "by request"),
        ("other", StartUnload(), ""),
    ]


def test_users_and_waiters_of_a_replaced_model_are_to_go_on_with_its_successor() -> None:
    replaced = UnloadForced("replaced", replaced=True)
    for state in (Loading((1,)), ready(1), draining({1}, 2), Evicting((1,))):
        _, effects = run(state, replaced)
        errors = [effect.error for effect in effects if isinstance(effect, Invalidate | Refuse)]
        assert errors
        assert all(isinstance(error, ModelReplaced) and error.message == "replaced" for error in errors)
    _, (invalidation, _) = run(ready(1), UnloadForced("by request"))
    assert isinstance(invalidation, Invalidate)
    assert not isinstance(invalidation.error, ModelReplaced)


def test_who_gives_up_waiting_is_forgotten_while_the_load_goes_on() -> None:
    assert run(Loading((1, 2)), Release(1)) == (Loading((2,)), ())
    assert run(draining({1}, 2), Release(2)) == (draining({1}), ())
    assert run(Evicting((2,)), Release(2), UnloadDone()) == (Absent(), ())


def test_losing_the_worker_invalidates_the_users_of_a_ready_model_and_loads_it_again() -> None:
    expected = (Loading(), (Invalidate(frozenset({1}), DIED), StartLoad()))
    assert run(ready(1), WorkerLost(DIED)) == expected
    assert run(ready(), WorkerLost(DIED)) == (Loading(), (StartLoad(),))


def test_losing_the_worker_while_loading_starts_the_load_again() -> None:
    assert run(Loading((1,)), WorkerLost(DIED)) == (Loading((1,), losses=1), (StartLoad(),))


@pytest.mark.parametrize(
    ("origin", "losses"), [(DeathOrigin.INSIDE, 1), (DeathOrigin.OUTSIDE, 0.25), (DeathOrigin.PLANNED, 0)]
)
def test_a_death_counts_by_its_origin(origin: DeathOrigin, losses: float) -> None:
    died = WorkerDied("gone", origin=origin)
    assert run(Loading((1,)), WorkerLost(died)) == (Loading((1,), losses=losses), (StartLoad(),))


def test_who_may_go_elsewhere_does_not_wait_for_a_lost_worker() -> None:
    state, effects = run(Loading((1, 2)), WorkerLost(DIED), policy=ResidencyPolicy(waits_for_restart=False))
    assert state == Loading((), losses=1)
    assert effects == (Refuse(1, DIED), Refuse(2, DIED), StartLoad())


@pytest.mark.parametrize("limit", [1, 2])
def test_a_load_that_loses_too_many_workers_is_the_likely_cause_and_fails(limit: int) -> None:
    policy = ResidencyPolicy(max_load_losses=limit)
    state, effects = run(Loading((1,), losses=limit - 1), WorkerLost(DIED), policy=policy)
    assert isinstance(state, LoadFailed)
    assert isinstance(state.error, ModelLoadError)
    assert state.error.details == {"signal": 6, "losses": limit}
    assert "the likely cause of lost workers" in state.error.message
    assert effects == (Refuse(1, state.error),)


def test_losing_the_worker_while_unloading_completes_the_unload() -> None:
    assert run(Evicting(), WorkerLost(DIED)) == (Absent(), ())
    assert run(Evicting((1,)), WorkerLost(DIED)) == (Loading((1,)), (StartLoad(),))
    assert run(draining({1}), WorkerLost(DIED)) == (Absent(), (Invalidate(frozenset({1}), DIED),))
    expected = (Loading((2,)), (Invalidate(frozenset({1}), DIED), StartLoad()))
    assert run(draining({1}, 2), WorkerLost(DIED)) == expected
    assert run(Loading((), unload=True), WorkerLost(DIED)) == (Absent(), ())


@pytest.mark.parametrize("state", [Absent(), FAILED])
def test_losing_the_worker_changes_nothing_for_a_model_that_is_not_there(state: State) -> None:
    assert run(state, WorkerLost(DIED)) == (state, ())


@pytest.mark.parametrize("state", [Absent(), FAILED, Loading((1,)), ready(1), draining({1}, 2), Evicting((1,))])
def test_releases_of_a_void_ticket_are_ignored(state: State) -> None:
    assert run(state, Release(99)) == (state, ())


@pytest.mark.parametrize(
    ("state", "events"),
    [
        (Absent(), [LoadSucceeded("facts"), LoadErrored(ERROR), UnloadDone()]),
        (Loading((1,)), [UnloadDone()]),
        (ready(1), [LoadSucceeded("other"), LoadErrored(ERROR), UnloadDone()]),
        (draining({1}), [LoadSucceeded("other"), LoadErrored(ERROR), UnloadDone()]),
        (Evicting(), [LoadSucceeded("other"), LoadErrored(ERROR), Unload()]),
    ],
)
def test_answers_that_nobody_waits_for_are_ignored(state: State, events: list[Event]) -> None:
    for event in events:
        assert run(state, event) == (state, ())


def test_a_policy_out_of_its_limits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^max_load_losses must be at least 1, got 0$"):
        ResidencyPolicy(max_load_losses=0)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["acquire", "acquire", "release", "preload", "unload", "force", "keep", "lose", "answer", "answer", "fail"]
        ),
        st.integers(0, 1000),
    ),
    max_size=60,
)


@given(actions=ACTIONS, policy=st.builds(ResidencyPolicy, st.integers(1, 3)))
def test_any_history_keeps_the_invariants(actions: list[tuple[str, int]], policy: ResidencyPolicy) -> None:
    state: State = Absent()
    waiting: set[int] = set()
    using: set[int] = set()
    answers: Counter[int] = Counter()
    acquired = 0
    outstanding: Effect | None = None  # the load or unload that the worker has been asked for

    def event_for(action: str, choice: int) -> Event | None:
        nonlocal acquired
        match action:
            case "acquire":
                acquired += 1
                waiting.add(acquired)
                return Acquire(acquired)
            case "release":
                held = sorted(waiting | using)
                return Release(held[choice % len(held)]) if held else None
            case "preload":
                return Preload()
            case "unload":
                return Unload()
            case "force":
                return UnloadForced("by request")
            case "keep":
                return Keep()
            case "lose":
                return WorkerLost(DIED)
            case "fail":
                return LoadErrored(ERROR) if outstanding == StartLoad() else None
            case _:
                if outstanding is None:
                    return None
                return LoadSucceeded("facts") if outstanding == StartLoad() else UnloadDone()

    for action, choice in [*actions, *[("answer", 0), ("release", 0)] * (3 * len(actions) + 3)]:
        event = event_for(action, choice)
        if event is None:
            continue
        if isinstance(event, Release):
            waiting.discard(event.ticket)
            using.discard(event.ticket)
        if isinstance(event, LoadSucceeded | LoadErrored | UnloadDone | WorkerLost):
            outstanding = None
        state, effects = step(state, event, 0.0, policy)
        for effect in effects:
            match effect:
                case Grant(ticket, _):
                    waiting.remove(ticket)
                    using.add(ticket)
                    answers[ticket] += 1
                case Refuse(ticket, _):
                    waiting.remove(ticket)
                    answers[ticket] += 1
                case Invalidate(tickets, _):
                    assert tickets == using
                    using.clear()
                case StartLoad() | StartUnload():
                    assert outstanding is None
                    assert not using
                    outstanding = effect
        match state:
            case Ready(_, in_use, _):
                assert (set(in_use), waiting, outstanding) == (using, set(), None)
            case Draining(_, in_use, waiters, _):
                assert in_use
                assert (set(in_use), set(waiters), outstanding) == (using, waiting, None)
            case Loading(waiters):
                assert (set(waiters), using, outstanding) == (waiting, set(), StartLoad())
            case Evicting(waiters):
                assert (set(waiters), using, outstanding) == (waiting, set(), StartUnload())
            case Absent() | LoadFailed():
                assert (waiting, using, outstanding) == (set(), set(), None)
    assert not waiting
    assert all(count == 1 for count in answers.values())
