"""What clients see of a server whose worker is lost, stopped and troubled: every answer is compared with that of an
undisturbed run.

    python benchmarks/chaos.py                                    # the embedded model, SIGKILL at random moments
    python benchmarks/chaos.py --by stop --requests 50            # SIGSTOP instead
    python benchmarks/chaos.py --tiny --by mixed --tokens 200     # a random two-layer model, everything by turns

The same requests (streamed and whole, greedy and seeded, some with penalties or log-probabilities) go through
`mlx-serving serve` twice, 16 at a time. In the second run things happen, each after a random number of pieces of text,
and aimed at a phase of the worker (prefill or decode):

    kill       SIGKILL                             restart    POST /admin/workers/restart
    stop       SIGSTOP                             truncated  half a frame, then SIGKILL
    garbage    nonsense in the pipe, or bytes missing from a frame; the worker goes on
    full-pipe  the server stands still for up to two seconds while its worker writes; in half of the cases the worker
               does not read for as long
    slow-disk  SIGKILL, and a load that takes its time; in half of the cases SIGKILL in the middle of it
    memory     RLIMIT_AS below what the worker has, or an allocation that fails in MLX's words
    mixed      each of these in turn

In one case of three, the next worker is lost as well, before it serves: while it starts, while it loads the model, or
in the first prefill. All the while a client leaves each of its answers in the middle, and every third of the streamed
answers has a reader that stalls now and then. The worker is the real one, in an entry module of the tests that obeys.

Prints how many answers are byte-identical, the errors, the incidents by phase, how long streams paused (as the server
counts it, from a loss to the next worker's acceptance), and the longest silence of each streamed answer in both runs.
An answer that differs is looked into: where it leaves the other one, the two likeliest tokens there, and how far apart
they were.

Exits with 1 when a request failed, when an answer differs otherwise than by a near-tie, or when less happened than was
asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx2

from chaos_clients import Answer, Difference, Progress, look_into, requests, run, vanish_again_and_again
from chaos_incidents import ADMIN_KEY, KINDS, Incidents, Trouble
from mlx_serving.core.percentiles import describe
from peers import tiny_model

_LEAVERS = 1


@dataclass(slots=True)
class Report:
    model: str
    by: str
    requests: int
    seconds: dict[str, float]
    incidents: int
    incidents_by_phase: dict[str, dict[str, int]]
    incidents_in_a_recovery: int
    restarts: int
    completed: int
    identical: int
    near_ties: int
    errors: dict[str, int]
    different: list[Difference]
    streams_recovered: int
    pause_s: dict[str, float]
    longest_silence_s: dict[str, dict[str, float]]
    complaints: list[str] = field(default_factory=list[str])


@asynccontextmanager
async def served(model: str, trouble: Trouble, log: Path) -> AsyncGenerator[tuple[httpx2.AsyncClient, int]]:
    """A client of the server, and the server's process id."""
    settings = (
        "server.port=0",
        f"server.admin_key={ADMIN_KEY}",
        "generation.timeout_s=1800",
        "logging.level=info",
        "logging.format=json",
        f"worker.python={trouble.as_python()}",
        # A hang is noticed sooner than by default, so that it can be tried more often.
        "worker.heartbeat_interval_s=0.5",
        "worker.heartbeat_timeout_s=4",
        "worker.startup_timeout_s=15",
        # More is lost in these minutes than an operator would put up with.
        "worker.max_restarts=1000",
    )
    sets = [part for setting in settings for part in ("--set", setting)]
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mlx_serving", "serve", "--model", model, "--json", *sets),
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        assert process.stdout is not None
        url = json.loads(await process.stdout.readline())["url"]
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=url, timeout=1800, limits=limits) as client:
            try:
                yield client, process.pid
            finally:
                process.terminate()
                await process.wait()


async def disturb(incidents: Incidents, kinds: Sequence[str], count: int, pieces: int, progress: Progress) -> None:
    while (happened := len(incidents.happened)) < count:
        await progress.reach(int(pieces * (happened + incidents.chosen.random()) / (count + 1)))
        await incidents.inflict(kinds[happened % len(kinds)])


def pauses(log: Path) -> list[float]:
    """Of the streams that went on in another worker, as the server has logged them."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line["pause_s"] for line in lines if line["event"] == "generation:recovered"]


def spread(values: Sequence[float]) -> dict[str, float]:
    found = describe(values)
    if found is None:
        return {}
    shown = {"min": found.minimum, "p50": found.p50, "p90": found.p90, "p99": found.p99, "max": found.maximum}
    return {name: round(value, 3) for name, value in shown.items()}


def silences(answers: Sequence[Answer]) -> dict[str, float]:
    return spread([answer.longest_silence_s for answer in answers if answer.longest_silence_s is not None])


def by_phase(incidents: Incidents) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for each in incidents.happened:
        counts.setdefault(each.kind, Counter())[each.phase] += 1
    return {kind: dict(phases) for kind, phases in counts.items()}


async def measure(arguments: argparse.Namespace, model: str, scratch: Path) -> Report:
    log = arguments.log or scratch / "server.log"
    bodies = requests(arguments.requests, arguments.tokens, arguments.seed)
    trouble = Trouble(scratch / "trouble")
    async with served(model, trouble, log) as (client, server):
        calm, progress = Progress(), Progress()
        began = time.perf_counter()
        undisturbed = await run(client, bodies, arguments.at_once, calm)
        calm_s = time.perf_counter() - began
        print(f"undisturbed: {len(bodies)} requests in {calm_s:.1f} s", file=sys.stderr)
        incidents = Incidents(client, server, trouble, random.Random(arguments.seed))
        kinds = KINDS if arguments.by == "mixed" else (arguments.by,)
        beside = [asyncio.create_task(vanish_again_and_again(client)) for _ in range(_LEAVERS)]
        trouble_maker = asyncio.create_task(disturb(incidents, kinds, arguments.losses, calm.pieces, progress))
        began = time.perf_counter()
        answers = await run(client, bodies, arguments.at_once, progress)
        disturbed_s = time.perf_counter() - began
        print(f"disturbed: {disturbed_s:.1f} s", file=sys.stderr)
        for task in (*beside, trouble_maker):
            task.cancel()
        for outcome in await asyncio.gather(*beside, trouble_maker, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        different = [
            await look_into(client, body, one.text, other.text)
            for body, one, other in zip(bodies, undisturbed, answers, strict=True)
            if other.error is None and one.text != other.text
        ]
        restarts = (await client.get("/health")).json()["worker"]["restarts"]
    recovered = pauses(log)
    found = Report(
        model=Path(model).name,
        by=arguments.by,
        requests=len(bodies),
        seconds={"undisturbed": round(calm_s, 1), "disturbed": round(disturbed_s, 1)},
        incidents=len(incidents.happened),
        incidents_by_phase=by_phase(incidents),
        incidents_in_a_recovery=sum(each.in_recovery for each in incidents.happened),
        restarts=restarts,
        completed=sum(answer.error is None for answer in answers),
        identical=sum(one.text == other.text for one, other in zip(undisturbed, answers, strict=True)),
        near_ties=sum(each.near_tie for each in different),
        errors=dict(Counter(answer.error for answer in [*undisturbed, *answers] if answer.error is not None)),
        different=different,
        streams_recovered=len(recovered),
        pause_s=spread(recovered),
        longest_silence_s={"undisturbed": silences(undisturbed), "disturbed": silences(answers)},
    )
    if found.errors:
        found.complaints.append(f"requests failed: {found.errors}")
    if found.near_ties < len(different):
        found.complaints.append(f"{len(different) - found.near_ties} answers differ otherwise than by a near-tie")
    if found.incidents < arguments.losses:
        found.complaints.append(f"{found.incidents} incidents of {arguments.losses} took place before all was answered")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tiny", action="store_true", help="a random two-layer model instead, made on the spot")
    parser.add_argument("--by", choices=(*KINDS, "mixed"), default="kill")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--losses", type=int, default=20, help="incidents")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer, at most")
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="chooses the requests and what happens")
    parser.add_argument("--log", type=Path, help="where the server's log goes")
    parser.add_argument("--json", action="store_true", help="on one line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = str(tiny_model(Path(scratch))) if arguments.tiny else arguments.model
        found = asyncio.run(measure(arguments, model, Path(scratch)))
    print(json.dumps(asdict(found), indent=None if arguments.json else 2))
    sys.exit(1 if found.complaints else 0)


if __name__ == "__main__":
    main()
