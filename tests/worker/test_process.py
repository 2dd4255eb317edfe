"""How a worker that a person drives begins and ends."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from ..tiny_models import SPELLED
from .driver import WorkerProcess


def lines(*requests: tuple[str, dict[str, object]]) -> bytes:
    messages = (
        {"jsonrpc": "2.0", "id": index, "method": method, "params": params}
        for index, (method, params) in enumerate(requests, 1)
    )
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


def test_the_end_of_input_finishes_what_was_accepted(cache: Path, speller: Path) -> None:
    """Piped commands, the last one without its newline: all are answered, streamed to the end, and the exit is 0."""
    with WorkerProcess.by_hand(cache) as worker:
        requests = lines(
            ("load_model", {"model_id": str(speller)}),
            ("generate", {"model_id": str(speller), "prompt": "a", "stream_id": "one"}),
            ("generate", {"model_id": str(speller), "prompt": "n", "stream_id": "two"}),
            ("tokenize", {"model_id": str(speller), "text": "abc"}),
        )
        worker.send_bytes(requests.removesuffix(b"\n"))
        worker.close_input()
        messages = worker.drain()
        assert worker.wait() == 0
    assert {message["id"] for message in messages if "result" in message} == {1, 2, 3, 4}
    for stream, text in (("one", SPELLED[1:]), ("two", SPELLED[14:])):
        mine = [message["params"] for message in messages if message.get("params", {}).get("stream_id") == stream]
        assert "".join(params.get("token", "") for params in mine) == text
        assert mine[-1]["finish_reason"] == "stop"
    assert "MLX Runtime ready" in worker.stderr


def test_shutdown_aborts_streams_answers_who_waits_and_exits(cache: Path, endless: Path) -> None:
    with WorkerProcess.by_hand(cache) as worker:
        worker.call("load_model", model_id=str(endless))
        worker.start_endless(endless, "s")
        unload = worker.send("unload_model", {"model_id": str(endless)})
        assert worker.call("shutdown") == {"success": True}
        assert list(worker.notifications("s"))[-1]["finish_reason"] == "abort"
        assert worker.answer_to(unload) == {"success": True}
        assert worker.wait() == 0


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_without_a_traceback(cache: Path, sent: signal.Signals) -> None:
    with WorkerProcess.by_hand(cache) as worker:
        worker.call("runtime/state")
        worker.process.send_signal(sent)
        assert worker.wait() == -sent
    assert "Traceback" not in worker.stderr


def test_what_is_printed_goes_to_stderr(cache: Path, models: Path, llama: Path) -> None:
    """`print`, and what native code writes to descriptor 1."""
    site = models / "printing"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def noisy(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).endswith('config.json'):\n"
        "        print('printed', flush=True)\n"
        "        os.write(1, b'written\\n')\n"
        "sys.addaudithook(noisy)\n"
    )
    with WorkerProcess.by_hand(cache, path=site) as worker:
        assert worker.call("load_model", model_id=str(llama))["state"] == "ready"
        assert worker.call("shutdown") == {"success": True}
        assert worker.wait() == 0
    assert "printed\n" in worker.stderr
    assert "written\n" in worker.stderr


def test_a_message_over_the_limit_is_refused_once_and_what_follows_is_served(cache: Path) -> None:
    with WorkerProcess.by_hand(cache, {"max_message_bytes": 2000}) as worker:
        worker.send_bytes(b"x" * 100_000)
        refused = worker.take(lambda message: "error" in message)["error"]
        worker.send_bytes(b"y" * 100_000 + b"\n")
        assert worker.call("runtime/state")["active_streams"] == 0
        assert (refused["code"], refused["data"]["details"]["limit"]) == (-32600, 2000)
        worker.call("shutdown")
        assert not any("error" in message for message in worker.drain())


def test_a_restart_count_is_passed_on(cache: Path) -> None:
    with WorkerProcess.by_hand(cache, {"restart_count": 3}) as worker:
        assert worker.call("runtime/state")["restart_count"] == 3


@pytest.mark.parametrize("settings", [{"scheduler": {"max_num_seqs": 0}}, {"unknown": 1}])
def test_settings_that_are_wrong_end_it_with_the_reason(cache: Path, settings: dict[str, object]) -> None:
    with WorkerProcess.by_hand(cache, settings) as worker:
        assert worker.wait() == 2
    assert "InvalidConfig" in worker.stderr
    assert next(iter(settings)) in worker.stderr
