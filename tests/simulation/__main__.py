"""Run many random histories and tell what happened in them: `python -m tests.simulation [histories] [events]`."""

from __future__ import annotations

import sys
import time
from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from .histories import History


def main(histories: int = 10_000, events: int = 25) -> None:
    tally: Counter[str] = Counter()

    class Counted(History):
        def teardown(self) -> None:
            super().teardown()
            tally["histories"] += 1
            tally["workers"] += sum(worker.restarts + 1 for worker in self.world.pool.health())
            tally["requests"] += len(self.world.readers)
            tally["requests that lost a worker"] += len(self.world.recovered)
            tally["tokens"] += sum(len(reader.tokens) for reader in self.world.readers)
            tally["simulated seconds"] += round(self.world.clock.now)
            tally.update(f"ended: {reader.ending}" for reader in self.world.readers)

    began = time.perf_counter()
    run_state_machine_as_test(  # pyright: ignore[reportUnknownMemberType]  untyped
        Counted,
        settings=settings(
            max_examples=histories,
            stateful_step_count=events,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
    for name, count in sorted(tally.items()):
        sys.stdout.write(f"{count:>10,} {name}\n")
    sys.stdout.write(f"{time.perf_counter() - began:>10.1f} seconds\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
