"""Workers that misbehave: what the supervisor makes of each, and what it reports."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from mlx_serving.core.retry import BackoffPolicy
from mlx_serving.core.serving import CrashReport
from mlx_serving.engine.supervisor import Supervisor
from mlx_serving.errors import WorkerDied, WorkerGaveUp, WorkerHung
from mlx_serving.wire import methods

from ..event_log import EventLog
from .harness import supervised, zombies
from .stand_ins import GOOD, stand_in

METAL = "libc++abi: terminating: [METAL] Command buffer execution failed: Insufficient Memory (00000008)"


def last_crash(supervisor: Supervisor) -> CrashReport:
    crash = supervisor.health().last_crash
    assert crash is not None
    return crash


async def test_a_crash_report_tells_signal_stderr_and_what_a_known_text_means(tmp_path: Path) -> None:
    body = f"handshake()\nsys.stderr.write('before\\n{METAL}')\nsys.stderr.flush()\nos.abort()\n"
    async with supervised(stand_in(tmp_path, body), max_restarts=0) as (supervisor, bus):
        log = EventLog(bus)
        client = await supervisor.client()
        with pytest.raises(WorkerDied) as caught:
            await client.call(methods.RUNTIME_STATE, methods.NoParams())
        await log.wait_for_state("gave up")
        crash = last_crash(supervisor)
        assert (crash.signal, crash.exit_code) == ("SIGABRT", None)
        assert crash.stderr_tail == f"before\n{METAL}"
        assert crash.finding is not None
        assert "ran out of memory" in crash.finding
        details = caught.value.details
        assert details == {
            "signal": "SIGABRT",
            "finding": crash.finding,
            "advice": crash.advice,
            "stderr_tail": crash.stderr_tail,
        }
        assert "SIGABRT" in caught.value.message
        assert crash.finding in caught.value.message


async def test_an_exit_code_is_reported_as_such(tmp_path: Path) -> None:
    async with supervised(stand_in(tmp_path, "sys.exit(3)\n"), max_restarts=0) as (supervisor, _):
        with pytest.raises(WorkerGaveUp, match="exit code 3"):
            await supervisor.client()
        crash = last_crash(supervisor)
        assert (crash.exit_code, crash.signal, crash.finding, crash.stderr_tail) == (3, None, None, "")


async def test_restarts_are_given_up_after_too_many_deaths_with_the_reason(tmp_path: Path) -> None:
    body = "sys.stderr.write('no luck\\n')\nsys.exit(1)\n"
    async with supervised(stand_in(tmp_path, body), max_restarts=2) as (supervisor, bus):
        log = EventLog(bus)
        with pytest.raises(WorkerGaveUp) as caught:
            await supervisor.client()
        assert log.states() == [*(["starting", "backing off"] * 2), "starting", "gave up"]
        error = caught.value
        assert "died 3 times" in error.message
        assert error.details["stderr_tail"] == "no luck"
        assert error.details["retry_after"] == pytest.approx(30, abs=29)
        assert not error.retryable
        with pytest.raises(WorkerGaveUp):  # at once, without another child
            await supervisor.client()
        assert log.states()[-1] == "gave up"
        assert supervisor.health().restarts == 2


async def test_a_start_after_the_pause_heals(tmp_path: Path) -> None:
    body = "if start < 2: sys.exit(1)\n" + GOOD
    async with supervised(stand_in(tmp_path, body), max_restarts=1, give_up_pause_s=1e-6) as (supervisor, bus):
        log = EventLog(bus)
        asking = asyncio.create_task(supervisor.client())
        await log.wait_for_state("gave up")
        await asking  # woken by giving up, it asks again: the pause is over
        assert supervisor.health().state == "ready"
        assert supervisor.health().restarts == 2


async def test_a_restart_heals_without_waiting(tmp_path: Path) -> None:
    body = "if start < 1: sys.exit(1)\n" + GOOD
    async with supervised(stand_in(tmp_path, body), max_restarts=0) as (supervisor, _):
        with pytest.raises(WorkerGaveUp):
            await supervisor.client()
        supervisor.restart()
        await supervisor.client()


async def test_a_restart_skips_the_wait_after_a_death(tmp_path: Path) -> None:
    body = "if start < 1: sys.exit(1)\n" + GOOD
    patient = BackoffPolicy(initial_delay_s=3600, max_delay_s=3600)
    async with supervised(stand_in(tmp_path, body), backoff=patient) as (supervisor, bus):
        log = EventLog(bus)
        asking = asyncio.create_task(supervisor.client())
        await log.wait_for_state("backing off")
        supervisor.restart()
        await asking


async def test_who_waits_for_a_restart_hears_of_a_stop(tmp_path: Path) -> None:
    patient = BackoffPolicy(initial_delay_s=3600, max_delay_s=3600)
    async with supervised(stand_in(tmp_path, "sys.exit(1)\n"), backoff=patient) as (supervisor, bus):
        log = EventLog(bus)
        asking = asyncio.create_task(supervisor.client())
        await log.wait_for_state("backing off")
        await supervisor.stop()
        with pytest.raises(Exception, match="shut down"):
            await asking


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("say(b'hello\\n')\nobey()\n", "no JSON-RPC message"),
        ("handshake()\nsay(b'<html>\\n')\nobey()\n", "no JSON-RPC message"),
        ("handshake()\nsay_frame(b'\\x93\\x09\\x01\\x01')\nobey()\n", "frame of unknown shape"),
        ("handshake()\nsay(b'\\xc1\\xff\\xff\\xff\\xff')\nobey()\n", "4294967295 bytes"),
        ("handshake(notifications='json-rpc-2.0', protocols=['json-rpc-2.0'])\nobey()\n", "msgpack-frames-1"),
        ("handshake(pid='twelve')\nobey()\n", "does not fit RuntimeInfoResult"),
        ("r = next(messages)\nsay_json({'id': r['id'], 'error': {'code': -32601, 'message': 'no'}})\nobey()\n", "no"),
    ],
)
async def test_a_worker_that_breaks_the_protocol_is_replaced(tmp_path: Path, body: str, reason: str) -> None:
    misbehaves = "if start == 0:\n" + "".join(f"    {line}\n" for line in body.splitlines())
    async with supervised(stand_in(tmp_path, misbehaves + GOOD)) as (supervisor, bus):
        log = EventLog(bus)
        await supervisor.client()
        await log.wait_for_state("backing off")
        await supervisor.client()
        crash = last_crash(supervisor)
        assert reason in crash.cause
        assert crash.signal == "SIGKILL"
        assert crash.finding is None  # it was killed on purpose
        assert supervisor.health().restarts == 1


async def test_what_is_under_way_when_the_protocol_breaks_fails_with_the_reason(tmp_path: Path) -> None:
    body = "handshake()\nnext(messages)\nsay(b'oops\\n')\nobey()\n"
    async with supervised(stand_in(tmp_path, body)) as (supervisor, _):
        client = await supervisor.client()
        with pytest.raises(WorkerDied, match="no JSON-RPC message"):
            await client.call(methods.RUNTIME_STATE, methods.NoParams())


async def test_a_worker_that_never_shakes_hands_is_replaced(tmp_path: Path) -> None:
    body = "if start == 0: obey()\n" + GOOD
    async with supervised(stand_in(tmp_path, body), startup_timeout_s=1.5) as (supervisor, _):
        await supervisor.client()
        assert last_crash(supervisor).cause == "startup timeout"


async def test_a_worker_that_has_work_but_makes_no_progress_is_replaced(tmp_path: Path) -> None:
    stuck = "while True:\n    say_frame(b'\\x93\\x02\\x07\\xc3')\n    time.sleep(0.05)\n"
    async with supervised(
        stand_in(tmp_path, "handshake()\n" + stuck),
        stall_timeout_s=0.8,
        heartbeat_interval_s=0.5,
        heartbeat_timeout_s=60,
    ) as (supervisor, _):
        client = await supervisor.client()
        with pytest.raises(WorkerHung, match=r"no progress for 0\.8 s"):
            await client.call(methods.RUNTIME_STATE, methods.NoParams())


async def test_a_worker_that_ignores_the_request_and_sigterm_is_killed(tmp_path: Path) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nhandshake()\nwhile True: signal.pause()\n"
    quick = {"shutdown_timeout_s": 0.1, "terminate_timeout_s": 0.1}
    async with supervised(stand_in(tmp_path, deaf), **quick) as (supervisor, bus):
        log = EventLog(bus)
        await supervisor.client()
        await supervisor.stop()
        assert log.states()[-1] == "stopped"
        assert supervisor.health().last_crash is None
        assert zombies() == []


async def test_a_program_that_is_not_there_is_reported_and_given_up(tmp_path: Path) -> None:
    missing = str(tmp_path / "no-such-python")
    async with supervised(missing, max_restarts=1) as (supervisor, _):
        with pytest.raises(WorkerGaveUp, match=r"cannot be started: .*no-such-python"):
            await supervisor.client()
        assert last_crash(supervisor).exit_code == 127


async def test_a_grandchild_that_holds_stderr_does_not_delay_the_restart(tmp_path: Path) -> None:
    body = (
        "if start == 0 and os.fork() == 0:\n"
        "    os.close(fd)\n"
        "    os.read(os.open(sys.argv[0] + '.fifo', os.O_RDONLY), 1)\n"
        "    os._exit(0)\n"
        "if start == 0:\n"
        "    sys.stderr.write('unfinished line')\n"
        "    sys.stderr.flush()\n"
        "    os._exit(1)\n"
    )
    python = stand_in(tmp_path, body + GOOD)
    fifo = tmp_path / "worker.py.fifo"
    os.mkfifo(fifo)
    holder = os.open(fifo, os.O_RDWR)
    try:
        async with supervised(python) as (supervisor, _):
            await supervisor.client()
            assert last_crash(supervisor).stderr_tail == "unfinished line"
    finally:
        os.write(holder, b"x")  # the grandchild may go
        os.close(holder)


async def test_only_the_end_of_stderr_is_kept_and_long_lines_are_cut(tmp_path: Path) -> None:
    body = (
        "for n in range(1000): sys.stderr.write(f'line {n}\\n')\n"
        "sys.stderr.write('x' * 100_000 + '\\n')\n"
        "sys.stderr.buffer.write(b'\\xff\\xfe last\\n')\nsys.stderr.flush()\nsys.exit(1)\n"
    )
    async with supervised(stand_in(tmp_path, body), max_restarts=0) as (supervisor, _):
        with pytest.raises(WorkerGaveUp):
            await supervisor.client()
        tail = last_crash(supervisor).stderr_tail
        assert tail.endswith("\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} last")
        assert len(tail.splitlines()) <= 50
        assert max(map(len, tail.splitlines())) <= 4096
