"""Ten times what the machine can do, for a minute: what is served, what is refused, what is held, and what remains.

    python benchmarks/overload.py                          # a random two-layer model with 512 tokens
    python benchmarks/overload.py --seconds 20 --times 5

First the capacity is measured: requests a second that 32 clients get done who each send the next one when the last one
is answered; and the latency of a client that is alone. Then requests arrive as a Poisson process of --times that rate,
whether or not the earlier ones are answered. All are streamed, of 64 prompt tokens; --tokens are answered. Meanwhile
/health is asked four times a second. When the load is over, a client that is alone asks on and on until the median of
five answers is within 1.5 times the latency that it had before. Time is the client's, queue time is up to the first
token. The client shares the machine's cores with the server.

Exits with 1 when

    something failed otherwise than by 429 or 503, or an answer was cut short,
    a refusal has no Retry-After, or one that is no whole number of seconds from 1 to 60,
    somebody admitted waited longer than --most-wait times what the queue holds at the rate of answers meanwhile, or
    half of them longer than --max-queue-s (which is kept to by a forecast: the pace may fall afterwards),
    memory of either process was more than --most-growth MiB higher in the second half of the load than in the first,
    /health took more than --most-health seconds, or
    the latency was not normal again --most-recovery seconds after what was in the queue must have been answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import uvloop

from mlx_serving.bench.event_stream import EventReader
from mlx_serving.bench.http_client import ConnectionFailed, HttpClient
from mlx_serving.bench.prompts import make_prompts
from mlx_serving.core.percentiles import describe
from peers import Peer, counter, forbidden_ends, model_directory, our_server

ADMIN_KEY = "benchmark"
MIB = 1 << 20
PROMPT_TOKENS = 64
PROMPTS = 256
CLIENTS = 32
MAX_NUM_SEQS, MAX_QUEUE = 16, 256
RETRY_AFTER = range(1, 61)
NORMAL = 1.5
"""Times the latency before."""
_HEALTH_EVERY_S = 0.25
_LIMIT_S = 300.0
_PROBES = 15
_PROBE_WINDOW = 5


@dataclass(slots=True)
class Outcome:
    """One request: seconds until its first token and until it was answered, at `ended` of the performance counter;
    `late_s` is how long after its time the client sent it."""

    late_s: float
    ended: float = 0.0
    status: int = 0
    first_token_s: float | None = None
    total_s: float = 0.0
    retry_after: str | None = None
    code: str | None = None
    error: str | None = None
    complete: bool = False

    @property
    def refused(self) -> bool:
        return self.status in (429, 503)


@dataclass(slots=True)
class Sample:
    health_s: float
    parent_mib: float
    worker_mib: float


@dataclass(slots=True)
class Load:
    """What came of the load. `samples` were taken while it lasted, up to `ended` of the performance counter;
    `normal_again_s` counts from there."""

    offered: int = 0
    seconds: float = 0.0
    ended: float = 0.0
    normal_again_s: float | None = None
    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    samples: list[Sample] = field(default_factory=list[Sample])


class Client:
    """Sends completions to one server."""

    def __init__(
        self, peer: Peer, prompts: Sequence[str], model: str, tokens: int, extra: Mapping[str, object]
    ) -> None:
        self._peer = peer
        self._http = HttpClient(peer.url, {"authorization": f"Bearer {ADMIN_KEY}"})
        shared = {"model": model, "max_tokens": tokens, "temperature": 0, "stream": True, **extra}
        self._bodies = [json.dumps({**shared, "prompt": prompt}).encode() for prompt in prompts]
        self._numbers = count()

    def close(self) -> None:
        self._http.close()

    async def ask(self, due: float) -> Outcome:
        """One request, which was due at that time of the performance counter."""
        began = time.perf_counter()
        outcome, reader = Outcome(late_s=began - due), EventReader()
        refusal = bytearray()

        def on_header(name: bytes, value: bytes) -> None:
            if name == b"retry-after":
                outcome.retry_after = value.decode()

        def on_body(status: int, data: bytes) -> None:
            if status != 200:
                refusal.extend(data)
                return
            for event in reader.feed(data):
                if event == b"[DONE]":
                    outcome.complete = True
                elif b'"error"' in event:
                    outcome.error = _code(event)
                elif outcome.first_token_s is None:
                    outcome.first_token_s = time.perf_counter() - began

        body = self._bodies[next(self._numbers) % len(self._bodies)]
        try:
            outcome.status = await self._http.exchange("POST", "/v1/completions", body, on_body, on_header)
        except ConnectionFailed as error:
            outcome.error = str(error)
        outcome.ended = time.perf_counter()
        outcome.total_s = outcome.ended - began
        if outcome.status not in (0, 200):
            outcome.code = _code(bytes(refusal))
            outcome.error = None if outcome.refused else outcome.code
        return outcome

    async def capacity(self, seconds: float, clients: int) -> float:
        """Requests a second when each client sends its next one when the last one is answered."""
        began = time.perf_counter()
        done = 0

        async def client() -> None:
            nonlocal done
            while (now := time.perf_counter()) < began + seconds:
                outcome = await self.ask(now)
                if outcome.error is not None or not outcome.complete:
                    raise SystemExit(f"a request of the calm load failed: {outcome}")
                done += time.perf_counter() <= began + seconds

        await asyncio.gather(*(client() for _ in range(clients)))
        return done / seconds

    async def latency(self) -> float:
        """Seconds that an answer takes a client that is alone."""
        return statistics.median([(await self.ask(time.perf_counter())).total_s for _ in range(_PROBES)])

    async def normal_again(self, normal_s: float, limit_s: float) -> float | None:
        """Seconds until the median of the last answers is within bounds; None if it is not in time."""
        began = time.perf_counter()
        window = deque[float](maxlen=_PROBE_WINDOW)
        while (elapsed := time.perf_counter() - began) < limit_s:
            if len(window) == _PROBE_WINDOW and statistics.median(window) <= NORMAL * normal_s:
                return elapsed
            outcome = await self.ask(time.perf_counter())
            window.append(outcome.total_s if outcome.complete else float("inf"))
        return None

    async def get(self, path: str) -> dict[str, Any]:
        received = bytearray()
        status = await self._http.exchange("GET", path, b"", lambda _, data: received.extend(data))
        if status != 200:
            raise SystemExit(f"{path} answered {status}")
        return json.loads(received)

    async def sample(self, worker: psutil.Process) -> Sample:
        asked = time.perf_counter()
        await self.get("/health")
        health_s = time.perf_counter() - asked
        parent = psutil.Process(self._peer.pid).memory_info().rss / MIB
        return Sample(health_s, parent, worker.memory_info().rss / MIB)


async def overload(
    client: Client, worker: psutil.Process, before: float, capacity: float, arguments: argparse.Namespace
) -> Load:
    load, chosen = Load(), random.Random(arguments.seed)

    async def watch() -> None:
        while True:
            load.samples.append(await client.sample(worker))
            await asyncio.sleep(_HEALTH_EVERY_S)

    async def one(due: float) -> None:
        load.outcomes.append(await client.ask(due))

    began = due = time.perf_counter()
    watching = asyncio.create_task(watch())
    async with asyncio.TaskGroup() as group:
        while (due := due + chosen.expovariate(arguments.times * capacity)) < began + arguments.seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(one(due))
            load.offered += 1
        load.ended = time.perf_counter()
        load.seconds = load.ended - began
        watching.cancel()
        load.normal_again_s = await client.normal_again(before, _LIMIT_S)
    return load


def _code(body: bytes) -> str:
    try:
        return json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return repr(body[:200])


def spread(values: Sequence[float]) -> dict[str, float]:
    found = describe(values)
    if found is None:
        return {}
    shown = {"min": found.minimum, "p50": found.p50, "p90": found.p90, "p99": found.p99, "max": found.maximum}
    return {name: round(value, 3) for name, value in shown.items()}


@dataclass(slots=True)
class Report:
    model: str
    capacity_rps: float
    offered_rps: float
    times_capacity: float
    seconds: float
    offered: int
    served: int
    served_rps: float
    refused: dict[str, int]
    errors: dict[str, int]
    queue_time_s: dict[str, float]
    queue_holds_s: float
    refusal_time_s: dict[str, float]
    retry_after_s: dict[str, float]
    retry_after_wrong: int
    client_late_s: dict[str, float]
    health_s: dict[str, float]
    parent_mib: dict[str, float]
    worker_mib: dict[str, float]
    latency_before_s: float
    normal_again_after_s: float | None
    complaints: list[str] = field(default_factory=list[str])


def halves(samples: Sequence[Sample], name: str) -> dict[str, float]:
    values: list[float] = [getattr(sample, name) for sample in samples]
    middle = len(values) // 2
    shown = {
        "start": values[0],
        "most of first half": max(values[:middle]),
        "most of second half": max(values[middle:]),
    }
    return {which: round(value, 1) for which, value in shown.items()}


def report(arguments: argparse.Namespace, capacity: float, before: float, load: Load) -> Report:
    served = [one for one in load.outcomes if one.complete and one.error is None]
    refused = [one for one in load.outcomes if one.refused]
    failed = [one for one in load.outcomes if not one.refused and (one.error is not None or not one.complete)]
    told = [int(one.retry_after) for one in refused if one.retry_after is not None and one.retry_after.isdecimal()]
    rate = sum(one.ended <= load.ended for one in served) / load.seconds
    found = Report(
        model=arguments.model or "tiny",
        capacity_rps=round(capacity, 1),
        offered_rps=round(load.offered / load.seconds, 1),
        times_capacity=round(load.offered / load.seconds / capacity, 2),
        seconds=round(load.seconds, 1),
        offered=load.offered,
        served=len(served),
        served_rps=round(rate, 1),
        refused=dict(Counter(f"{one.status} {one.code}" for one in refused)),
        errors=dict(Counter(one.error or "cut short" for one in failed)),
        queue_time_s=spread([one.first_token_s for one in served if one.first_token_s is not None]),
        queue_holds_s=round((MAX_QUEUE + MAX_NUM_SEQS) / rate, 2) if rate else 0.0,
        refusal_time_s=spread([one.total_s for one in refused]),
        retry_after_s=spread(told),
        retry_after_wrong=len(refused) - sum(each in RETRY_AFTER for each in told),
        client_late_s=spread([one.late_s for one in load.outcomes]),
        health_s=spread([sample.health_s for sample in load.samples]),
        parent_mib=halves(load.samples, "parent_mib"),
        worker_mib=halves(load.samples, "worker_mib"),
        latency_before_s=round(before, 3),
        normal_again_after_s=None if load.normal_again_s is None else round(load.normal_again_s, 2),
    )
    found.complaints = complaints(found, arguments)
    return found


def complaints(found: Report, arguments: argparse.Namespace) -> list[str]:
    told: list[str] = []
    if found.errors:
        told.append(f"other errors than refusals: {found.errors}")
    if found.retry_after_wrong:
        told.append(f"{found.retry_after_wrong} refusals without a sane Retry-After")
    bound = arguments.most_wait * found.queue_holds_s
    if found.queue_time_s and found.queue_time_s["max"] > bound:
        told.append(f"somebody waited {found.queue_time_s['max']} s, more than {bound:.1f} s")
    if arguments.max_queue_s and found.queue_time_s and found.queue_time_s["p50"] > arguments.max_queue_s:
        told.append(f"half of the admitted waited {found.queue_time_s['p50']} s, more than --max-queue-s")
    for name, held in (("parent", found.parent_mib), ("worker", found.worker_mib)):
        grown = held["most of second half"] - held["most of first half"]
        if grown > arguments.most_growth:
            told.append(f"the {name} grew by {grown:.1f} MiB in the second half of the load")
    if found.health_s["max"] > arguments.most_health:
        told.append(f"/health took {found.health_s['max']} s")
    again, limit = found.normal_again_after_s, found.queue_holds_s + arguments.most_recovery
    if again is None or again > limit:
        told.append(f"the latency was not normal again within {limit:.1f} s")
    return told


async def measure(model: Path, arguments: argparse.Namespace) -> Report:
    extra = forbidden_ends(arguments.model, model)
    prompts = await make_prompts(PROMPTS, PROMPT_TOKENS, "overload", count_tokens=counter(model))
    settings = (
        f"server.admin_key={ADMIN_KEY}",
        f"scheduler.max_num_seqs={MAX_NUM_SEQS}",
        f"scheduler.max_queue={MAX_QUEUE}",
        f"scheduler.max_queue_s={json.dumps(arguments.max_queue_s)}",
    )
    async with our_server([model], extra, settings) as peer:
        client = Client(peer, prompts, model.name, arguments.tokens, extra)
        await client.capacity(arguments.calm / 2, CLIENTS)  # warms up
        capacity = await client.capacity(arguments.calm, CLIENTS)
        before = await client.latency()
        print(f"{capacity:.1f} requests/s, latency {before:.3f} s", file=sys.stderr)
        worker = psutil.Process((await client.get("/health"))["worker"]["pid"])
        load = await overload(client, worker, before, capacity, arguments)
        client.close()
    return report(arguments, capacity, before, load)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: a random two-layer model, made on the spot")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the load lasts")
    parser.add_argument("--calm", type=float, default=8.0, help="seconds in which the capacity is measured")
    parser.add_argument("--times", type=float, default=10.0, help="the capacity")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer")
    parser.add_argument("--max-queue-s", type=float, help="the server's bound on the time to wait; default: none")
    parser.add_argument("--seed", type=int, default=0, help="decides when requests arrive")
    parser.add_argument("--most-wait", type=float, default=2.0)
    parser.add_argument("--most-growth", type=float, default=16.0, help="in MiB")
    parser.add_argument("--most-health", type=float, default=2.0)
    parser.add_argument("--most-recovery", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = uvloop.run(measure(model_directory(arguments.model, Path(scratch)), arguments))
    print(json.dumps(asdict(found)) if arguments.json else json.dumps(asdict(found), indent=2))
    sys.exit(1 if found.complaints else 0)


if __name__ == "__main__":
    main()
