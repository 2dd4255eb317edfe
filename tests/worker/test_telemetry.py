"""`runtime/telemetry`, by hand against a real process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
import pytest

from mlx_serving.core.runtime_telemetry import MetalDevice
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.core.scheduler import Scheduler
from mlx_serving.worker.generation import Generation
from mlx_serving.worker.pipe import Outbox
from mlx_serving.worker.telemetry import Telemetry
from mlx_serving.worker.tokenizer_thread import TokenizerThread

from ..tiny_models import SPELLED
from .driver import WorkerProcess

SETTINGS = {"scheduler": {"max_num_seqs": 2, "admission_window_s": 0.0}}


@pytest.fixture
def quiet(cache: Path, speller: Path) -> Any:
    """A worker of its own, which has room for two sequences and has `speller` loaded: nothing else is in its counts."""
    with WorkerProcess.by_hand(cache, SETTINGS) as process:
        process.call("load_model", model_id=str(speller))
        yield process


def test_a_fresh_worker_has_done_nothing(quiet: WorkerProcess, speller: Path) -> None:
    told = quiet.call("runtime/telemetry")
    scheduler = told["scheduler"]
    assert [scheduler[name] for name in ("queued", "running", "prefilling", "paused", "preemptions")] == [0] * 5
    assert scheduler["done"]["steps"] == told["opening"] == 0
    assert list(scheduler["models"]) == list(told["caches"]["kv_bytes_by_model"]) == [str(speller)]
    assert told["generation"]["calls"] == told["generation"]["total_tokens"] == told["errors"]["total"] == 0
    assert told["generation"]["latency_ms"] is None
    assert 0 < told["uptime_s"] < 600


def test_what_was_generated_is_counted(quiet: WorkerProcess, speller: Path) -> None:
    stream = quiet.generate(model_id=str(speller), prompt="xyza", max_tokens=6)
    assert quiet.text(stream) == SPELLED[1:7]
    told = quiet.call("runtime/telemetry")
    done, generation = told["scheduler"]["done"], told["generation"]
    assert (done["prefilled_tokens"], done["last_batch"], done["mean_batch"]) == (4, 1, 1.0)
    assert done["decoded_tokens"] == 5  # the first token comes of the prompt
    assert done["prefill_s"] > 0
    assert done["decode_s"] > 0
    assert (generation["calls"], generation["aborted"], generation["total_tokens"]) == (1, 0, 6)
    assert generation["avg_tokens_per_call"] == 6
    assert generation["tokens_per_second"] > 0
    assert generation["latency_ms"]["p99"] >= generation["time_to_first_token_ms"]["p50"] > 0
    assert told["tokenization"]["calls"] == 1
    assert told["tokenization"]["latency_ms"]["max"] > 0
    assert told["scheduler"]["models"][str(speller)]["done"] == done
    assert told["scheduler"]["kv_held_bytes"] == told["caches"]["kv_bytes"] == 0


def test_who_runs_and_who_waits_is_told_while_they_do(quiet: WorkerProcess, endless: Path, speller: Path) -> None:
    quiet.call("load_model", model_id=str(endless))
    for name in "ab":
        quiet.start_endless(endless, name)
        next(quiet.notifications(name))  # it has its slot
    quiet.start_endless(endless, "c")
    told = quiet.call("runtime/telemetry")
    scheduler = told["scheduler"]
    assert (scheduler["running"] + scheduler["prefilling"], scheduler["queued"]) == (2, 1)
    model, other = scheduler["models"][str(endless)], scheduler["models"][str(speller)]
    assert (model["running"] + model["prefilling"], model["queued"]) == (2, 1)
    assert (other["running"], other["queued"]) == (0, 0)
    assert scheduler["kv_reserved_bytes"] >= scheduler["kv_held_bytes"] > 0
    assert told["caches"]["kv_bytes_by_model"][str(endless)] == told["caches"]["kv_bytes"] > 0
    for name in "abc":
        quiet.call("abort", stream_id=name)
    ended = quiet.call("runtime/telemetry")
    assert (ended["scheduler"]["running"], ended["scheduler"]["queued"], ended["caches"]["kv_bytes"]) == (0, 0, 0)
    assert (ended["generation"]["calls"], ended["generation"]["aborted"]) == (3, 3)
    assert ended["scheduler"]["done"]["last_batch"] <= 2


def test_memory_and_process_are_what_the_system_says(quiet: WorkerProcess) -> None:
    told = quiet.call("runtime/telemetry")
    memory, process = told["memory"], told["process"]
    assert memory["peak_bytes"] >= memory["active_bytes"] > 0
    assert memory["limit_bytes"] > memory["active_bytes"]
    assert memory["cache_limit_bytes"] >= memory["cache_bytes"]
    assert (told["metal"] is not None) == mx.metal.is_available()
    seen = psutil.Process(quiet.process.pid)
    assert process["pid"] == seen.pid
    assert abs(process["handles"] - seen.num_fds()) <= 1  # looking takes one
    assert process["threads"] == seen.num_threads()
    assert process["rss_bytes"] == pytest.approx(seen.memory_info().rss, rel=0.2)
    assert process["outbox_bytes"] >= 0


def test_on_metal_the_device_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {
        "device_name": "Apple M4",
        "architecture": "applegpu_g16g",
        "memory_size": 16 << 30,
        "max_recommended_working_set_size": 12 << 30,
        "max_buffer_length": 8 << 30,
        "resource_limit": 499_000,
    }
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: facts)
    outbox = Outbox(os.open(os.devnull, os.O_WRONLY), lambda: None)
    generation = Generation(Scheduler(SchedulerPolicy()))
    tokenizers = TokenizerThread(lambda _: None)
    told = Telemetry(generation, tokenizers, outbox, cache_limit_bytes=lambda: 7).read(opening=3)
    assert told.metal == MetalDevice("Apple M4", 16 << 30, 12 << 30, 8 << 30, 499_000)
    assert (told.memory.cache_limit_bytes, told.opening) == (7, 3)


def test_asking_all_the_time_changes_no_text_and_costs_no_stream_a_token(quiet: WorkerProcess, speller: Path) -> None:
    alone = quiet.text(quiet.generate(model_id=str(speller), prompt="a"))
    stream = quiet.generate(model_id=str(speller), prompt="a")
    polls = [quiet.send("runtime/telemetry") for _ in range(200)]
    totals = [quiet.answer_to(poll)["generation"]["total_tokens"] for poll in polls]
    assert totals == sorted(totals)
    assert quiet.text(stream) == alone
    assert quiet.call("runtime/telemetry")["generation"]["calls"] == 2
