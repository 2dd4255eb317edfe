"""The loop while the other end of the pipe reads nothing: commands are obeyed, steps wait, and nothing piles up."""

from __future__ import annotations

import os
import queue
import threading
from typing import cast

from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.core.scheduler import Scheduler
from mlx_serving.wire.notifications import Row, StepFrame
from mlx_serving.worker.embedding.embeddings import Embeddings
from mlx_serving.worker.generation import Generation
from mlx_serving.worker.handlers import Handlers
from mlx_serving.worker.heartbeat import Progress
from mlx_serving.worker.loop import Inbox, Loop
from mlx_serving.worker.memory import MemoryGuard
from mlx_serving.worker.pipe import Outbox

from .driver import TIMEOUT_S

TEXT = "x" * 100_000


class Chatter(Generation):
    """Has the same to say in every step, without end."""

    def __init__(self) -> None:
        super().__init__(Scheduler(SchedulerPolicy()))
        self.steps = 0

    @property
    def is_idle(self) -> bool:
        return False

    def step(self) -> StepFrame:
        self.steps += 1
        return StepFrame([Row("s", [1], TEXT)])


def idle_embeddings() -> Embeddings:
    return Embeddings(SchedulerPolicy(), lambda: 0)


class NoGuard:
    next_look = None

    def refresh(self) -> None:
        pass


class NoHandlers:
    owes_answers = False
    is_loading = False
    chores = ()

    def routes(self) -> tuple[()]:
        return ()


def test_no_step_is_made_while_the_other_end_reads_nothing() -> None:
    read_fd, write_fd = os.pipe()
    inbox, generation, progress = Inbox(), Chatter(), Progress()
    outbox = Outbox(write_fd, inbox.wake)
    loop = Loop(inbox, outbox, generation, idle_embeddings(), cast(MemoryGuard, NoGuard()), progress, linger=False)
    answers: queue.SimpleQueue[int] = queue.SimpleQueue()

    def steps() -> int:
        inbox.put(lambda: answers.put(generation.steps))
        return answers.get(timeout=TIMEOUT_S)

    thread = threading.Thread(target=loop.run, args=(cast(Handlers, NoHandlers()),))
    thread.start()
    while not outbox.is_congested:
        steps()
    made = steps()
    assert made < 20
    assert [steps() for _ in range(100)] == [made] * 100
    read = 0
    while steps() < 3 * made:
        read += len(os.read(read_fd, 1 << 16))
    assert read > 0
    inbox.put(loop.stop)
    os.close(read_fd)
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    outbox.flush(TIMEOUT_S)
    os.close(write_fd)


def test_a_worker_that_waits_for_its_reader_is_not_busy() -> None:
    read_fd, write_fd = os.pipe()
    inbox, generation, progress = Inbox(), Chatter(), Progress()
    outbox = Outbox(write_fd, inbox.wake)
    loop = Loop(inbox, outbox, generation, idle_embeddings(), cast(MemoryGuard, NoGuard()), progress, linger=False)
    thread = threading.Thread(target=loop.run, args=(cast(Handlers, NoHandlers()),))
    thread.start()
    while not outbox.is_congested or progress.busy:
        pass
    count = progress.count
    assert count == generation.steps
    inbox.put(loop.stop)
    thread.join(TIMEOUT_S)
    os.close(read_fd)
    outbox.flush(TIMEOUT_S)
    os.close(write_fd)


def test_memory_is_looked_at_before_those_who_come_are_heard() -> None:
    _, write_fd = os.pipe()
    inbox, happened = Inbox(), list[str]()

    class Guard(NoGuard):
        def refresh(self) -> None:
            happened.append("looked")

    inbox.put(lambda: happened.append("heard"))
    guard, embeddings = cast(MemoryGuard, Guard()), idle_embeddings()
    loop = Loop(inbox, Outbox(write_fd, inbox.wake), Chatter(), embeddings, guard, Progress(), linger=False)
    inbox.put(loop.stop)
    loop.run(cast(Handlers, NoHandlers()))
    os.close(write_fd)
    assert happened == ["looked", "heard"]
