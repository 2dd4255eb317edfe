"""Random histories: what may happen to a server, as the rules of a state machine."""

from __future__ import annotations

import signal

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlx_serving.core.generation import GenerationRequest, Priority, SamplingParams, TokenPrompt

from .virtual_model import POISON
from .virtual_process import Death
from .virtual_world import MODELS, Site, World

PRIORITIES: tuple[Priority, ...] = ("critical", "high", "normal", "low", "background")
DEATHS = st.builds(
    Death,
    signal=st.sampled_from([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT]),
    noticed_after_s=st.sampled_from([0.0, 0.0005, 0.003, 0.05]),
    torn=st.sampled_from([0, 1, 20]),
)
MODEL = st.sampled_from(MODELS)
SITE = st.integers(0, 2)


class History(RuleBasedStateMachine):
    """Whatever comes, in whatever order: every request ends exactly once, as it would have ended undisturbed or with
    an error for which there is a reason; what its reader has is at any time the beginning of the undisturbed answer."""

    def __init__(self) -> None:
        super().__init__()
        self._made: World | None = None

    @property
    def world(self) -> World:
        assert self._made is not None
        return self._made

    @initialize(workers=st.sampled_from([1, 1, 2, 3]), seed=st.integers(0, 1000))
    def begin(self, workers: int, seed: int) -> None:
        self._made = World(workers)
        self._made.jitter.seed(seed)

    def site(self, where: int) -> Site:
        return self.world.sites[where % len(self.world.sites)]

    # -- clients

    @rule(
        model=MODEL,
        prompt=st.integers(1, 30),
        max_tokens=st.integers(1, 40),
        priority=st.sampled_from(PRIORITIES),
        caller=st.sampled_from("xyz"),
        timeout_s=st.sampled_from([None, None, None, 0.5, 20.0]),
        stop=st.sampled_from([(), (), ("ab",), ("c d", "é")]),
        again=st.integers(1, 3),
    )
    def submit(
        self,
        model: str,
        prompt: int,
        max_tokens: int,
        priority: Priority,
        caller: str,
        timeout_s: float | None,
        stop: tuple[str, ...],
        again: int,
    ) -> None:
        for _ in range(again):
            self._submit(
                model,
                tuple(range(1, prompt + 1)),
                SamplingParams(max_tokens, seed=len(self.world.readers), stop=stop),
                priority=priority,
                caller=caller,
                timeout_s=timeout_s,
            )

    @rule(model=MODEL, place=st.sampled_from([0, 0, 1, 5, 12]), priority=st.sampled_from(PRIORITIES))
    def submit_poison(self, model: str, place: int, priority: Priority) -> None:
        """`place` in its answer is where it kills."""
        sampling = SamplingParams(30, seed=len(self.world.readers))
        self._submit(model, (POISON, place, 3), sampling, priority=priority, poisonous=True)

    def _submit(
        self,
        model: str,
        prompt: tuple[int, ...],
        sampling: SamplingParams,
        *,
        priority: Priority,
        caller: str = "",
        timeout_s: float | None = None,
        poisonous: bool = False,
    ) -> None:
        request = GenerationRequest(
            f"r{len(self.world.readers)}",
            model,
            TokenPrompt(prompt),
            sampling,
            priority=priority,
            caller=caller,
            timeout_s=timeout_s,
        )
        self.world.submit(request, poisonous=poisonous)

    @precondition(lambda self: self.world.live())
    @rule(who=st.integers(0, 100))
    def client_leaves(self, who: int) -> None:
        live = self.world.live()
        self.world.leave(live[who % len(live)])

    # -- time

    @rule(seconds=st.sampled_from([0.0004, 0.003, 0.02, 0.1, 0.3, 1.0, 4.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.loop.run_for(seconds)

    # -- the worker

    @rule(where=SITE, death=DEATHS)
    def worker_is_killed(self, where: int, death: Death) -> None:
        process = self.site(where).process
        if process is not None:
            self.world.do(lambda: process.die(death))

    @rule(where=SITE, exit_code=st.sampled_from([0, 1, 139]))
    def worker_exits(self, where: int, exit_code: int) -> None:
        process = self.site(where).process
        if process is not None:
            self.world.do(lambda: process.die(Death(exit_code=exit_code)))

    @rule(where=SITE, stuck=st.booleans())
    def worker_hangs(self, where: int, stuck: bool) -> None:
        """Its device is stuck, or it is stopped as a whole."""
        site = self.site(where)
        if site.worker is not None and site.process is not None:
            if stuck:
                site.worker.stuck = True
            else:
                site.process.stopped = True

    @rule(where=SITE)
    def worker_babbles(self, where: int) -> None:
        worker = self.site(where).worker
        if worker is not None and worker.process.is_alive:
            self.world.do(worker.babble)

    @rule(
        spawns=st.sampled_from([0, 0, 1, 6]),
        starts=st.integers(0, 2),
        loads=st.integers(0, 2),
        errors=st.integers(0, 1),
    )
    def machine_fails(self, spawns: int, starts: int, loads: int, errors: int) -> None:
        fate = self.world.fate
        fate.failing_spawns, fate.aborting_starts = spawns, starts
        fate.aborting_loads, fate.failing_loads = loads, errors
        self.world.record.failed_loads |= errors > 0

    # -- the operator

    @rule(where=SITE)
    def worker_is_restarted(self, where: int) -> None:
        self.world.do(self.site(where).supervisor.restart)

    @rule(model=MODEL, force=st.booleans())
    def model_is_unloaded(self, model: str, force: bool) -> None:
        self.world.unload(model, force=force)

    @rule(model=MODEL)
    def model_is_preloaded(self, model: str) -> None:
        self.world.do(lambda: self.world.models.preload(model))

    # -- the scheduler

    @rule(where=SITE, who=st.integers(0, 100), resume=st.booleans())
    def sequence_is_paused_or_resumed(self, where: int, who: int, resume: bool) -> None:
        streams, worker = self.site(where).running(), self.site(where).worker
        if streams and worker is not None:
            change = worker.scheduler.resume if resume else worker.scheduler.pause
            change(streams[who % len(streams)])

    # -- what must hold

    @invariant()
    def every_request_ends_once_and_for_a_reason(self) -> None:
        if self._made is not None:
            self._made.check()

    def teardown(self) -> None:
        if self._made is None:
            return
        try:
            self._made.come_to_rest()
        except BaseException:
            self._made.abandon()
            raise
        self._made.close()
