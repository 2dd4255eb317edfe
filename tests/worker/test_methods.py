"""Every method of the protocol, by hand against a real process: results and notifications have their shapes."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from mlx_serving.wire.methods import METHODS

from ..tiny_models import SPELLED, VOCABULARY, token_ids
from .driver import Refused, WorkerProcess


def test_runtime_info_tells_versions_protocols_and_memory(worker: WorkerProcess) -> None:
    info = worker.call("runtime/info")
    assert set(info) == {
        "version",
        "mlx_version",
        "mlx_lm_version",
        "protocol",
        "protocols",
        "notifications",
        "capabilities",
        "mlx_supported",
        "device",
        "metal",
        "blas",
        "memory",
        "pid",
        "device_name",
        "working_set_bytes",
    }
    assert info["protocol"] == info["notifications"] == "json-rpc-2.0"
    assert info["protocols"] == ["json-rpc-2.0", "msgpack-frames-1"]
    assert info["mlx_supported"] is True
    assert info["pid"] == worker.process.pid
    assert info["capabilities"] == [method.name for method in METHODS]
    assert info["memory"]["rss"] > info["memory"]["active"] > 0
    assert set(info["blas"]) == {"name", "path"}


def test_loading_a_model_answers_with_its_facts(worker: WorkerProcess, speller: Path) -> None:
    facts = worker.call("load_model", model_id=str(speller))
    assert len(facts.pop("base")) == 64
    assert facts == {
        "model_id": str(speller),
        "state": "ready",
        "context_length": 512,
        "parameter_count": 107_200,
        "dtype": "float32",
        "is_vision_model": False,
        "cached_path": str(speller),
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "memory_bytes": 4 * 107_200,
        "has_chat_template": True,
        "capabilities": {
            "batch": True,
            "batch_prefill": True,
            "trim": True,
            "quantise_cache": False,
            "draft": True,
            "images": None,
        },
        "config_digest": hashlib.sha256((speller / "config.json").read_bytes()).hexdigest(),
        "quantization": None,
        "eos_token_ids": [258],
        "adapter": None,
        "embedding": None,
        "kv_bits": None,
        "kv_group_size": None,
        "kv_bytes_per_token": 512,
        "own_bytes": 0,
    }


def test_loading_reports_progress_and_the_state_lists_the_model(worker: WorkerProcess, llama: Path) -> None:
    worker.call("load_model", model_id="tiny", local_path=str(llama), context_length=100)
    reading, loaded = (
        worker.take(lambda message: message.get("params", {}).get("model_id") == "tiny")["params"] for _ in range(2)
    )
    assert (reading["stage"], reading["done"]) == ("reading", 0)
    assert loaded["stage"] == "loading"
    assert loaded["done"] == loaded["total"] > 0
    state = worker.call("runtime/state")
    assert {"model_id": "tiny", "state": "ready", "type": "text", "active_streams": 0} in state["loaded_models"]
    assert state["active_streams"] == state["restart_count"] == 0
    assert worker.call("unload_model", model_id="tiny") == {"success": True}
    assert "tiny" not in [model["model_id"] for model in worker.call("runtime/state")["loaded_models"]]
    assert worker.refusal("tokenize", model_id="tiny", text="a").type == "ModelNotLoaded"


def test_unloading_gives_the_memory_back(worker: WorkerProcess, qwen3: Path) -> None:
    before = worker.call("runtime/info")["memory"]
    worker.call("load_model", model_id=str(qwen3))
    worker.text(worker.generate(model_id=str(qwen3), prompt="hello", max_tokens=4))
    loaded = worker.call("runtime/info")["memory"]
    worker.call("unload_model", model_id=str(qwen3))
    after = worker.call("runtime/info")["memory"]
    assert loaded["active"] > before["active"] + 100_000
    assert after["active"] == before["active"]
    assert after["cache"] == 0


def test_unloading_an_absent_model_is_a_success(worker: WorkerProcess) -> None:
    assert worker.call("unload_model", model_id="absent", force=True) == {"success": True}


def test_a_stream_is_a_handshake_then_chunks_then_stats_then_an_event(worker: WorkerProcess, speller: Path) -> None:
    result = worker.call("generate", model_id=str(speller), prompt="xyza", max_tokens=3, stream_id="shape")
    assert set(result) == {"stream_id", "started_at", "prompt_tokens"}
    assert result["stream_id"] == "shape"
    assert result["prompt_tokens"] == 4
    assert abs(result["started_at"] - time.time()) < 120
    *chunks, stats, event = worker.notifications("shape")
    assert chunks == [
        {"method": "stream.chunk", "stream_id": "shape", "token": text, "token_id": token_id, "is_final": False}
        for text, token_id in zip("bcd", token_ids("bcd"), strict=True)
    ]
    assert {name: stats[name] for name in ("method", "prompt_tokens", "tokens_generated")} == {
        "method": "stream.stats",
        "prompt_tokens": 4,
        "tokens_generated": 3,
    }
    assert 0 < stats["time_to_first_token"] < stats["total_time"]
    assert stats["tokens_per_second"] > 0
    assert event == {
        "method": "stream.event",
        "stream_id": "shape",
        "event": "completed",
        "finish_reason": "length",
        "is_final": True,
    }


def test_a_stream_without_an_id_gets_one_of_its_own(worker: WorkerProcess, speller: Path) -> None:
    first, second = (worker.generate(model_id=str(speller), prompt="a", max_tokens=1) for _ in range(2))
    assert first != second
    assert worker.text(first) == worker.text(second) == "b"


@pytest.mark.parametrize(
    ("params", "text", "reason"),
    [
        pytest.param({"max_tokens": 5}, "bcdef", "length", id="max_tokens"),
        pytest.param({}, SPELLED[1:], "stop", id="end of turn"),
        pytest.param({"stop_sequences": ["mno"]}, "bcdefghijkl", "stop", id="stop string over several tokens"),
        pytest.param({"stop_sequences": ["€🙈"]}, "bcdefghijklmnopqrstuvwxyzé", "stop", id="stop string of characters"),
        pytest.param({"stop_sequences": ["xyzw", "789"]}, SPELLED[1:-3], "stop", id="second stop string"),
        pytest.param({"stop_token_ids": token_ids("d")}, "bc", "stop", id="stop token"),
        pytest.param({"stop_sequences": ["c", "g"], "min_tokens": 3}, "bcdef", "stop", id="stop string in time"),
        pytest.param({"bad_words": ["zz", "ef"], "max_tokens": 4}, "bcde", "length", id="bad words elsewhere"),
        pytest.param({"allowed_token_ids": token_ids("bcq"), "max_tokens": 2}, "bc", "length", id="allowed tokens"),
    ],
)
def test_finish_reasons(
    worker: WorkerProcess, speller: Path, params: dict[str, object], text: str, reason: str
) -> None:
    stream = worker.generate(model_id=str(speller), prompt="a", **params)
    *chunks, stats, event = worker.notifications(stream)
    assert "".join(chunk["token"] for chunk in chunks) == text
    assert event["finish_reason"] == reason
    assert stats["tokens_generated"] >= len(text)


def test_a_character_of_several_tokens_arrives_whole(worker: WorkerProcess, speller: Path) -> None:
    stream = worker.generate(model_id=str(speller), prompt="y", max_tokens=12)
    pieces = [chunk["token"] for chunk in worker.notifications(stream) if chunk["method"] == "stream.chunk"]
    assert pieces == ["z", "", "é", "", "", "€", "", "", "", "🙈", "0", "1"]


def test_log_probabilities_come_with_their_chunk(worker: WorkerProcess, speller: Path) -> None:
    stream = worker.generate(model_id=str(speller), prompt="y", max_tokens=3, logprobs=2)
    chunks = [chunk for chunk in worker.notifications(stream) if chunk["method"] == "stream.chunk"]
    assert [chunk["top_logprobs"][0]["bytes"] for chunk in chunks] == [[122], [0xC3], [0xA9]]
    for chunk in chunks:
        best, second = chunk["top_logprobs"]
        assert (best["token_id"], best["logprob"]) == (chunk["token_id"], chunk["logprob"])
        assert 0 >= best["logprob"] > second["logprob"]


def test_chat_messages_go_through_the_model_s_template(worker: WorkerProcess, speller: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    result = worker.call("generate", model_id=str(speller), messages=messages, max_tokens=1, stream_id="chat")
    rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    tokens = worker.call("tokenize", model_id=str(speller), text=rendered)["tokens"]
    assert result["prompt_tokens"] == len(tokens)
    list(worker.notifications("chat"))


def test_prompt_tokens_are_used_as_they_are(worker: WorkerProcess, speller: Path) -> None:
    stream = worker.generate(model_id=str(speller), prompt_tokens=token_ids("k"), max_tokens=3)
    assert worker.text(stream) == "lmn"


def test_tokenize_and_detokenize_are_inverse(worker: WorkerProcess, speller: Path) -> None:
    text = "héllo 🙂\n"
    result = worker.call("tokenize", model_id=str(speller), text=text)
    assert result["tokens"] == token_ids(text)
    assert len(result["token_strings"]) == len(result["tokens"])
    assert worker.call("detokenize", model_id=str(speller), tokens=result["tokens"]) == {"text": text}


def test_a_conversation_is_tokenized_as_a_generation_would_see_it(worker: WorkerProcess, speller: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    found = worker.call("tokenize_chat", model_id=str(speller), messages=messages)
    asked = worker.call("generate", model_id=str(speller), messages=messages, max_tokens=1)
    assert len(found["tokens"]) == len(found["token_strings"]) == asked["prompt_tokens"]
    text = worker.call("detokenize", model_id=str(speller), tokens=found["tokens"])["text"]
    assert text.startswith("<|im_start|>user\nHi<|im_end|>")


def test_detokenize_keeps_special_tokens_unless_told_otherwise(worker: WorkerProcess, speller: Path) -> None:
    tokens = [257, *token_ids("a"), 258]
    assert worker.call("detokenize", model_id=str(speller), tokens=tokens)["text"] == "<|im_start|>a<|im_end|>"
    bare = worker.call("detokenize", model_id=str(speller), tokens=tokens, skip_special_tokens=True)
    assert bare == {"text": "a"}


def test_batch_tokenize_isolates_what_is_wrong(worker: WorkerProcess, speller: Path) -> None:
    results = worker.call(
        "batch_tokenize",
        requests=[
            {"model_id": str(speller), "text": "ab"},
            {"model_id": "absent", "text": "ab"},
            {"model_id": str(speller)},
            "nonsense",
            {"model_id": str(speller), "text": ""},
        ],
    )["results"]
    assert [entry["success"] for entry in results] == [True, False, False, False, True]
    assert results[0]["result"]["tokens"] == token_ids("ab")
    assert results[0]["error"] is None
    alone = worker.refusal("tokenize", model_id="absent", text="ab")
    assert results[1]["error"] == {
        "code": alone.code,
        "message": alone.message,
        "type": alone.type,
        "details": alone.details,
    }
    assert results[2]["error"]["code"] == results[3]["error"]["code"] == -32602
    assert "`text`" in results[2]["error"]["message"]
    assert results[4]["result"] == {"tokens": [], "token_strings": []}


@pytest.mark.parametrize("identity", ["text", "", 0, -7, 2**53])
def test_an_answer_carries_the_id_of_its_request(worker: WorkerProcess, identity: object) -> None:
    assert worker.answer_to(worker.send("runtime/state", request_id=identity))["restart_count"] == 0


def test_a_null_id_is_answered_and_a_missing_one_is_not(worker: WorkerProcess) -> None:
    worker.send_bytes(b'{"jsonrpc":"2.0","method":"no_such_method"}\n{"jsonrpc":"2.0","id":null,"method":"nor_this"}\n')
    with pytest.raises(Refused, match="nor_this"):
        worker.answer_to(None)


def test_a_generate_without_an_id_streams_without_a_handshake(worker: WorkerProcess, speller: Path) -> None:
    worker.send_bytes(
        b'{"jsonrpc":"2.0","method":"generate","params":{"model_id":"%s","prompt":"a","max_tokens":2,"stream_id":"quiet"}}\n'
        % str(speller).encode()
    )
    assert worker.text("quiet") == "bc"
