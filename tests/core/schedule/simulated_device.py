"""A device in virtual time that carries out what a scheduler orders, and a referee that checks every order.

The referee knows only what the runner of a worker knows: the requests, the steps, and for whom a state is kept. It has
its own book of every KV cache and raises AssertionError at the first order that could not be carried out or breaks a
budget.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from mlx_serving.core.generation import Priority
from mlx_serving.core.prefix.prefixes import NO_PREFIXES
from mlx_serving.core.schedule.encodings import ImageSpan
from mlx_serving.core.schedule.scheduling import SchedulerPolicy, Step
from mlx_serving.core.scheduler import Scheduler

from .kept_prefixes import KeptPrefixes, Text


@dataclass(frozen=True)
class DeviceCost:
    """Seconds: a step costs `fixed`, `row` for each decoded row, for each prompt token `token` and `token_context`
    times its context, and `image_token` for each token of the image that it encodes. Real times scatter by `noise`
    (standard deviation, relative)."""

    fixed: float = 0.01
    row: float = 0.0005
    token: float = 0.0005
    token_context: float = 1e-7
    image_token: float = 0.002
    noise: float = 0.03

    def of(self, step: Step) -> float:
        prefill = sum(
            chunk.count * (self.token + self.token_context * (chunk.start + chunk.count / 2)) for chunk in step.prefill
        )
        image = self.image_token * step.encode.tokens if step.encode is not None else 0.0
        return self.fixed + self.row * len(step.decode) + prefill + image


@dataclass
class Request:
    id: str
    prompt: int
    reply: int  # tokens after which it ends by itself
    max_tokens: int
    model: str = "m"
    priority: Priority = "normal"
    caller: str = ""
    arrival: float = 0.0
    deadline: float | None = None
    fork_of: str | None = None
    text: Text | None = None  # else it has nothing in common with others
    stops: tuple[int, ...] = ()
    images: tuple[ImageSpan, ...] = ()
    cached: int = 0
    token_times: list[float] = field(default_factory=list[float])
    started: float | None = None
    ended: str | None = None
    ended_at: float = 0.0
    preemptions: int = 0

    @property
    def ttft(self) -> float:
        return self.token_times[0] - self.arrival

    def gaps(self, since: float) -> list[float]:
        times = [time for time in self.token_times if time >= since]
        return [later - earlier for earlier, later in pairwise(times)]


class KeptEncodings:
    """Images of one size are the same. `ready` are those whose tokens a sequence can compute, by its id and their
    places."""

    def __init__(self) -> None:
        self._sizes: dict[str, list[int]] = {}
        self._kept: set[int] = set()
        self.ready: set[tuple[str, int]] = set()

    def open(self, id: str, sizes: Iterable[int]) -> None:  # noqa: A002
        self._sizes[id] = list(sizes)

    def claim(self, id: str, index: int) -> bool:  # noqa: A002
        if self._sizes[id][index] not in self._kept:
            return False
        self.ready.add((id, index))
        return True

    def encode(self, id: str, index: int) -> None:  # noqa: A002
        assert (id, index) not in self.ready or self._sizes[id][index] not in self._kept, "encoded for nothing"
        self._kept.add(self._sizes[id][index])
        self.ready.add((id, index))

    def forget(self) -> None:
        """Memory is short. Who has begun with an image has it still."""
        self._kept.clear()


@dataclass
class Cache:
    computed: int
    target: int
    generated: int


class Referee:
    def __init__(
        self,
        policy: SchedulerPolicy,
        kv_bytes: dict[str, int],
        untrimmable: frozenset[str],
        prefixes: KeptPrefixes,
        encodings: KeptEncodings,
    ) -> None:
        self.policy = policy
        self.encodings = encodings
        self.prefixes = prefixes
        self.untrimmable = untrimmable
        self.kept: set[str] = set()
        self.kv_bytes = kv_bytes
        self.kv_limit: float = float("inf") if policy.kv_budget_bytes is None else policy.kv_budget_bytes
        self.requests: dict[str, Request] = {}
        self.caches: dict[str, Cache] = {}
        self.generated: dict[str, int] = {}
        self.paused: set[str] = set()
        self.preemptions = 0

    def accept(self, request: Request) -> None:
        self.requests[request.id] = request
        self.generated[request.id] = 0
        assert request.text is None or len(request.text) == request.prompt
        self.encodings.open(request.id, [image.tokens for image in request.images])

    def end(self, request_id: str, how: str, now: float) -> None:
        request = self.requests[request_id]
        assert request.ended is None, f"{request_id} ended twice: {request.ended}, {how}"
        request.ended, request.ended_at = how, now
        self._drop(request_id)
        self.paused.discard(request_id)

    def _drop(self, request_id: str) -> None:
        self.caches.pop(request_id, None)
        self.kept.discard(request_id)

    def evict(self, preempted: Iterable[str]) -> None:
        for one in preempted:
            cache = self.caches[one]
            self.prefixes.grow(one, self.requests[one].prompt + self.generated[one])
            self.prefixes.keep(one, min(cache.computed, cache.target), whole=True)
            self._drop(one)
            self.preemptions += 1
            self.requests[one].preemptions += 1

    def check(self, step: Step, has_heirs: Callable[[str], bool]) -> list[str]:
        """Book a step; returns those to whom it yields a token."""
        self.evict(step.preempted)
        for admission in step.admitted:
            request = self.requests[admission.id]
            assert admission.id not in self.caches
            computed = admission.cached
            if admission.fork_of is not None:
                source = self.caches[admission.fork_of]
                assert request.prompt == self.requests[admission.fork_of].prompt
                assert source.computed >= request.prompt
                assert request.model not in self.untrimmable or admission.fork_of in self.kept
                computed = request.prompt - 1
            else:
                assert computed == self.prefixes.claimed[admission.id]
                request.cached = max(request.cached, computed)
            generated = self.generated[admission.id]
            self.caches[admission.id] = Cache(computed, request.prompt + generated, generated)
        yielded = list(step.decode)
        if step.encode is not None:
            assert (step.decode, step.prefill, step.ending) == ((), (), ())
            image = self.requests[step.encode.id].images[step.encode.index]
            assert image.tokens == step.encode.tokens
            assert self.caches[step.encode.id].computed < image.end, "its tokens are computed already"
            assert step.encode.id not in self.paused
            self.encodings.encode(step.encode.id, step.encode.index)
        assert self.paused.isdisjoint(step.decode)
        assert self.paused.isdisjoint(chunk.id for chunk in step.prefill)
        assert len(set(step.decode)) == len(step.decode)
        for one in step.decode:
            cache = self.caches[one]
            assert cache.computed >= cache.target, f"{one} decodes before its prompt was computed"
            cache.computed += 1
        for chunk in step.prefill:
            cache = self.caches[chunk.id]
            assert chunk.id not in step.decode
            assert chunk.count > 0
            assert chunk.start == cache.computed < cache.target
            for index, image in enumerate(self.requests[chunk.id].images):
                if image.start < chunk.start + chunk.count and chunk.start < image.end:
                    assert (chunk.id, index) in self.encodings.ready, "an image is not encoded yet"
            cache.computed += chunk.count
            assert cache.computed <= cache.target
            assert chunk.last == (cache.computed == cache.target)
            whole = [image for image in self.requests[chunk.id].images if image.whole]
            assert not any(image.start < cache.computed < image.end for image in whole), "an image is cut"
            stops = [
                stop
                for stop in self.requests[chunk.id].stops
                if chunk.start < stop <= cache.computed and not any(image.start < stop < image.end for image in whole)
            ]
            assert stops in ([], [cache.computed]), "a chunk goes on beyond a stop"
            assert chunk.shared or not stops
            self.prefixes.keep(chunk.id, cache.computed - chunk.last, whole=chunk.shared or chunk.last)
            if chunk.last:
                yielded.append(chunk.id)
                if has_heirs(chunk.id):
                    assert cache.computed == self.requests[chunk.id].prompt
                    self.kept.add(chunk.id)
        assert yielded or step.prefill or step.encode, "an empty step"
        assert step.prefill_tokens <= self.policy.max_prefill_chunk or self._is_an_image(step)
        assert len(step.decode) + len(step.prefill) <= self.policy.max_num_seqs
        for one in yielded:
            request = self.requests[one]
            assert request.model == step.model
            assert request.ended is None
            self.generated[one] += 1
            assert self.generated[one] <= request.max_tokens
            assert (one in step.ending) == (self.generated[one] == request.max_tokens)
        self.kept = {one for one in self.kept if has_heirs(one)}
        held = sum(cache.computed * self.kv_bytes[self.requests[one].model] for one, cache in self.caches.items())
        assert held <= self.kv_limit
        return yielded

    def _is_an_image(self, step: Step) -> bool:
        """Whether it computes what is left of an image that must be whole, and nothing else of any prompt."""
        [chunk] = step.prefill
        return any(
            image.whole and image.start <= chunk.start and image.end == chunk.start + chunk.count
            for image in self.requests[chunk.id].images
        )


class Simulation:
    """Runs a scheduler on devices that cost what `costs` says for each model. `ahead` launches the next step before
    the last one is updated, as a worker does; `check_load` compares the scheduler's figures with the book. With
    `known` a token that a sequence gets may have others behind it that are known.
    """

    def __init__(
        self,
        policy: SchedulerPolicy,
        costs: dict[str, DeviceCost],
        *,
        seed: int = 0,
        kv_bytes: int = 1,
        weights: dict[str, float] | None = None,
        unbatchable: frozenset[str] = frozenset(),
        untrimmable: frozenset[str] = frozenset(),
        ahead: bool = False,
        check_load: bool = False,
        known: bool = False,
        prefixes: bool = False,
    ) -> None:
        self.policy = policy
        self.costs = costs
        self.random = random.Random(seed)
        self.prefixes = KeptPrefixes(untrimmable)
        self.encodings = KeptEncodings()
        self.scheduler = Scheduler(policy, self.prefixes if prefixes else NO_PREFIXES, self.encodings)
        self.referee = Referee(policy, dict.fromkeys(costs, kv_bytes), untrimmable, self.prefixes, self.encodings)
        if not prefixes:
            self.prefixes.claimed = defaultdict(int)
        for model in costs:
            self.scheduler.add_model(
                model,
                kv_bytes_per_token=kv_bytes,
                batchable=model not in unbatchable,
                trimmable=model not in untrimmable,
                exact_prefixes=model in untrimmable,
                weight=(weights or {}).get(model, 1.0),
            )
        self.now = 0.0
        self.ahead = ahead
        self.check_load = check_load
        self.known = known
        self.accepted: list[Request] = []
        self.steps: list[tuple[float, float, Step]] = []  # start, duration
        self.slow_steps: dict[int, float] = {}  # number of the step to extra seconds
        self.on_token: Callable[[Request], None] = lambda request: None
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._launched: tuple[Step, float, list[str]] | None = None

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._agenda, (time, self._serial, action))

    def submit(self, request: Request) -> None:
        request.arrival = self.now
        self.prefixes.open(
            request.id, request.model, request.text or tuple((request.id, n) for n in range(request.prompt))
        )
        self.scheduler.add(
            request.id,
            request.model,
            prompt_tokens=request.prompt,
            max_tokens=request.max_tokens,
            now=self.now,
            priority=request.priority,
            caller=request.caller,
            deadline=request.deadline,
            fork_of=request.fork_of,
            stops=request.stops,
            images=request.images,
        )
        self.referee.accept(request)
        self.accepted.append(request)

    def submit_at(self, time: float, request: Request) -> None:
        self.at(time, lambda: self.submit(request))

    def abort(self, request_id: str) -> None:
        if self.scheduler.abort(request_id):
            self.referee.end(request_id, "aborted", self.now)

    def pause(self, request_id: str) -> None:
        self.scheduler.pause(request_id)
        if request_id in self.scheduler:
            self.referee.paused.add(request_id)

    def resume(self, request_id: str) -> None:
        self.scheduler.resume(request_id)
        self.referee.paused.discard(request_id)

    def set_kv_budget(self, limit: int, free: float = math.inf) -> None:
        self.scheduler.memory.allow(kv_caches=limit, ceiling=max(limit, 1000), prefill=1, free=free)
        self.referee.kv_limit = limit

    def run(self, until: float = float("inf")) -> None:
        """Until that time, or until nothing is left to do."""
        lost_memory = False
        while self.now < until:
            while self._agenda and self._agenda[0][0] <= self.now:
                heapq.heappop(self._agenda)[2]()
            for one in self.scheduler.expire(self.now):
                self.referee.end(one, "expired", self.now)
            for one in self.scheduler.refuse_oversized():
                self.referee.end(one, "refused", self.now)
            step = self.scheduler.schedule(self.now)
            launched = self._launch(step) if step is not None else None
            if step is None:
                self.referee.evict(self.scheduler.take_preempted())
            if not self.ahead:
                self._launched, launched = launched, None
            if self._launched is not None:
                self._finish(*self._launched)
            elif launched is None and not self.scheduler.is_idle:
                # Who lost its memory just now is in the way of others until it is sorted out.
                assert not lost_memory, "there is work, but no step"
                lost_memory = True
                continue
            elif launched is None:
                wake = min((time for time in (self._next_event(), self.scheduler.next_deadline) if time), default=None)
                if wake is None:
                    return
                self.now = max(self.now, wake)
            lost_memory = False
            self._launched = launched
            if self.check_load:
                self._check_load()

    def busy(self, model: str, since: float = 0.0) -> float:
        return sum(duration for start, duration, step in self.steps if step.model == model and start >= since)

    def _check_load(self) -> None:
        load = self.scheduler.load()
        assert load.running + load.prefilling <= self.policy.max_num_seqs
        assert load.queued + load.running + load.prefilling + load.paused == len(self.scheduler)
        assert len(self.scheduler) <= self.policy.max_num_seqs + self.policy.max_queue
        assert 0 <= load.kv_held_bytes <= load.kv_reserved_bytes
        if self._launched is None:
            size = self.referee.kv_bytes
            caches = self.referee.caches.items()
            held = sum(cache.computed * size[self.referee.requests[one].model] for one, cache in caches)
            # A sequence that was preempted is told of with the next step only.
            assert load.kv_held_bytes <= held

    def _next_event(self) -> float | None:
        return self._agenda[0][0] if self._agenda else None

    def _launch(self, step: Step) -> tuple[Step, float, list[str]]:
        duration = self.costs[step.model].of(step) * max(0.5, self.random.gauss(1, self.costs[step.model].noise))
        duration += self.slow_steps.get(len(self.steps), 0.0)
        self.steps.append((self.now, duration, step))
        yielded = self.referee.check(step, self.scheduler.has_heirs)
        if self.known:
            yielded += [one for one in yielded for _ in range(self._take_known(one))]
        return step, duration, yielded

    def _take_known(self, request_id: str) -> int:
        """How many tokens a step computes of a sequence besides the one that was ordered."""
        room = self.referee.requests[request_id].max_tokens - 1 - self.referee.generated[request_id]
        count = min(room, self.random.choice((0, 0, 1, 6)))
        for _ in range(count):
            self.scheduler.advance(request_id)
            self.referee.caches[request_id].computed += 1
            self.referee.generated[request_id] += 1
        return max(0, count)

    def _finish(self, step: Step, duration: float, yielded: list[str]) -> None:
        self.now += duration
        finished: list[str] = []
        ended: list[str] = []
        for one in yielded:
            request = self.referee.requests[one]
            if request.ended is not None or one in ended:
                continue  # computed ahead, thrown away
            request.token_times.append(self.now)
            if len(request.token_times) == request.reply:
                ended.append(one)
                if one not in step.ending:
                    finished.append(one)
            else:
                self.on_token(request)
        self.scheduler.update(step, duration, finished)
        for one in ended:
            if self.referee.requests[one].ended is None:
                self.referee.end(one, "finished", self.now)
