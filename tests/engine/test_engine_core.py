"""The engine without a surface: what it is built of, calls that are repeated, health."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path

import pytest

from mlx_serving.assembly import build
from mlx_serving.config.schema import Config
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.errors import (
    CircuitOpen,
    DeadlineExceeded,
    InsufficientMemory,
    InvalidConfig,
    InvalidRequest,
    WorkerGaveUp,
)
from mlx_serving.telemetry.events import CircuitChanged, ModelLoaded
from mlx_serving.wire import methods

from ..event_log import EventLog
from ..tiny_models import write_hole
from .harness import complete, endless, request, running, send, serving, worker_pid
from .stand_ins import stand_in


async def test_nothing_runs_before_the_start(tiny_model: Path) -> None:
    core = build(serving(tiny_model))
    health = await core.health()
    assert (health.status, health.worker.state, health.worker.pid) == ("unhealthy", "stopped", None)
    assert [model.state for model in core.served_models()] == ["absent"]
    await core.stop()


async def test_start_waits_for_the_worker_and_loads_what_is_marked_for_it(tiny_model: Path) -> None:
    served = [
        {"model": str(tiny_model), "name": "now", "context_length": 100},
        {"model": str(tiny_model), "name": "later", "preload": False},
    ]
    async with running(Config.model_validate({"models": {"served": served}})) as core:
        log = EventLog(core.events)
        await core.start()
        assert (await core.health()).worker.state == "ready"
        loaded = await log.wait_for(ModelLoaded)
        assert (loaded.model_id, loaded.context_length) == ("now", 100)
        assert core.default_model == "now"
        assert [(model.name, model.state, model.default) for model in core.served_models()] == [
            ("now", "ready", True),
            ("later", "absent", False),
        ]


async def test_health_is_good_while_all_is_well(core: EngineCore) -> None:
    await complete(core, request())
    health = await core.health()
    assert (health.status, health.reasons, health.loaded_models) == ("healthy", (), ("tiny",))
    assert health.uptime_s > 0


async def test_the_limit_of_the_operator_and_the_deadline_hold_through_the_stack(tiny_model: Path) -> None:
    generation = {"max_tokens_limit": 1000, "timeout_s": 0.2}
    async with running(serving(tiny_model, generation=generation)) as core:
        with pytest.raises(InvalidRequest, match="at most 1000"):
            await complete(core, request(max_tokens=1001))
        await core.load_served(str(tiny_model), name="tiny", revision=None)
        with pytest.raises(DeadlineExceeded):
            await complete(core, request(max_tokens=1000))
        with pytest.raises(DeadlineExceeded):
            await complete(core, request(max_tokens=1000, timeout_s=0.01))
        assert (await core.runtime_state()).active_streams == 0


async def test_a_call_is_repeated_when_the_worker_dies_under_it(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core:
        pid = await worker_pid(core)
        send(pid, signal.SIGSTOP)
        call = asyncio.create_task(core.runtime_state())
        await asyncio.sleep(0)
        send(pid, signal.SIGKILL)
        assert (await call).restart_count == 1


async def test_a_call_with_a_model_loads_it_and_is_repeated_too(tiny_model: Path) -> None:
    def params(model_id: str) -> methods.TokenizeParams:
        return methods.TokenizeParams(model_id=model_id, text="abc")

    async with running(serving(tiny_model)) as core:
        first = await core.call_with_model("tiny", methods.TOKENIZE, params)
        assert len(first.tokens) == 3
        pid = await worker_pid(core)
        send(pid, signal.SIGSTOP)
        call = asyncio.create_task(core.call_with_model("tiny", methods.TOKENIZE, params))
        await asyncio.sleep(0)
        send(pid, signal.SIGKILL)
        assert await call == first


async def test_an_error_of_the_caller_is_not_repeated(core: EngineCore) -> None:
    with pytest.raises(InvalidRequest, match="vocabulary"):
        await core.call_with_model(
            "tiny", methods.DETOKENIZE, lambda model_id: methods.DetokenizeParams(model_id=model_id, tokens=[10**6])
        )


async def test_the_breaker_opens_when_requests_keep_killing_workers(tmp_path: Path, tiny_model: Path) -> None:
    facts: dict[str, object] = {
        "model_id": "m", "state": "ready", "context_length": 9, "parameter_count": 1, "dtype": "f",
        "is_vision_model": False, "cached_path": "", "model_type": "t", "vocab_size": 9, "memory_bytes": 1,
        "has_chat_template": False, "capabilities": {
            "batch": True, "batch_prefill": True, "trim": True, "quantise_cache": True, "draft": True,
        }, "eos_token_ids": [], "quantization": None, "config_digest": "00",
    }  # fmt: skip
    body = (
        f"handshake()\nfacts = {facts!r}\nfor m in messages:\n"
        "    if m['method'] == 'load_model': say_json({'id': m['id'], 'result': facts})\n"
        "    if m['method'] == 'generate': os.abort()\n"
        "    if m['method'] == 'shutdown': break\n"
    )
    config = serving(
        tiny_model,
        worker={"python": stand_in(tmp_path, body), "blas": "none", "max_restarts": 1000},
        circuit_breaker={"failure_threshold": 2, "recovery_timeout_s": 3600},
        retry={"max_attempts": 1},
    )
    async with running(config) as core:
        log = EventLog(core.events)
        for _ in range(2):
            with pytest.raises(Exception, match="SIGABRT"):
                await complete(core, endless())
        with pytest.raises(CircuitOpen) as caught:
            await complete(core, endless())
        assert caught.value.retry_after > 3000
        health = await core.health()
        assert health.status == "degraded"
        assert "the circuit breaker is open" in health.reasons
        assert [event.current for event in log.of(CircuitChanged)] == ["open"]


async def test_health_tells_of_a_worker_that_died_for_want_of_memory(tmp_path: Path, tiny_model: Path) -> None:
    body = "handshake()\nif start == 0: sys.exit('std::bad_alloc')\nobey()\n"
    worker = {"python": stand_in(tmp_path, body), "blas": "none"}
    async with running(serving(tiny_model, worker=worker)) as core:
        log = EventLog(core.events)
        await core.start()
        await log.wait_for_state("ready", 2)
        health = await core.health()
        assert (health.status, health.worker.kv_share) == ("degraded", 0.75)
        assert health.reasons == ("KV caches get 75% of their memory: a worker has died for want of it",)


async def test_a_model_that_does_not_fit_is_refused_and_the_others_are_served(tiny_model: Path, tmp_path: Path) -> None:
    huge = shutil.copytree(tiny_model, tmp_path / "huge")
    write_hole(huge / "model-00002.safetensors", 8 << 40)
    async with running(serving(tiny_model)) as core:
        assert len(await complete(core, request())) > 0
        with pytest.raises(InsufficientMemory) as refusal:
            await core.load_served(str(huge), name="huge", revision=None)
        assert refusal.value.details["weights_bytes"] >= 8 << 40  # pyright: ignore[reportOperatorIssue]  a number
        assert len(await complete(core, request())) > 0
        assert [model.name for model in core.served_models()] == ["tiny"]


async def test_health_tells_of_a_worker_that_was_given_up(tmp_path: Path, tiny_model: Path) -> None:
    worker = {"python": stand_in(tmp_path, "sys.exit(9)\n"), "blas": "none", "max_restarts": 0}
    async with running(serving(tiny_model, worker=worker)) as core:
        with pytest.raises(WorkerGaveUp):
            await core.start()
        with pytest.raises(WorkerGaveUp):
            await complete(core, request())
        health = await core.health()
        assert (health.status, health.worker.state) == ("unhealthy", "gave up")
        assert health.reasons[0] == "the worker was given up"


def test_a_blas_library_that_is_not_there_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"missing\.so"):
        build(Config.model_validate({"worker": {"blas": str(tmp_path / "missing.so")}}))
