from __future__ import annotations

from typing import Any, get_origin

import msgspec
import pytest

from mlx_serving.core.images.image import Image
from mlx_serving.core.latency import Latency
from mlx_serving.core.runtime_telemetry import (
    CacheTelemetry,
    DeviceMemory,
    ErrorTelemetry,
    GenerationTelemetry,
    MetalDevice,
    PrefixTelemetry,
    ProcessTelemetry,
    RuntimeTelemetry,
    TokenizationTelemetry,
)
from mlx_serving.core.schedule.scheduling import ModelLoad, SchedulerLoad, WorkDone
from mlx_serving.core.speculation.report import PairMember, Vocabulary, compare
from mlx_serving.errors import InvalidRequest
from mlx_serving.wire import jsonrpc, methods
from mlx_serving.wire.methods import (
    ABORT,
    BATCH_CHECK_DRAFT,
    BATCH_TOKENIZE,
    CHECK_DRAFT,
    DETOKENIZE,
    EMBED,
    GENERATE,
    LOAD_MODEL,
    MAX_TEXT_CHARS,
    METHODS,
    PAUSE,
    PROTOCOL_VERSION,
    PROTOCOLS,
    RESUME,
    RUNTIME_INFO,
    RUNTIME_STATE,
    RUNTIME_TELEMETRY,
    SHUTDOWN,
    STEP_FRAMES,
    TOKENIZE,
    TOKENIZE_CHAT,
    UNLOAD_MODEL,
    AbortResult,
    BatchError,
    BatchItem,
    BatchParams,
    BatchResult,
    BlasInfo,
    DetokenizeResult,
    EmbeddingFacts,
    GenerateParams,
    GenerateResult,
    LoadedModelState,
    LoadModelResult,
    MemoryInfo,
    Method,
    ModelCapabilities,
    Params,
    RuntimeInfoResult,
    RuntimeStateResult,
    StreamResult,
    SuccessResult,
    TokenizeParams,
    TokenizeResult,
)

AnyMethod = Method[Any, Any]

# The least that each method accepts, and everything that it accepts.
REQUIRED: dict[str, dict[str, object]] = {
    RUNTIME_INFO.name: {},
    RUNTIME_STATE.name: {},
    RUNTIME_TELEMETRY.name: {},
    SHUTDOWN.name: {},
    LOAD_MODEL.name: {"model_id": "m"},
    UNLOAD_MODEL.name: {"model_id": "m"},
    GENERATE.name: {"model_id": "m"},
    EMBED.name: {"model_id": "m", "inputs": ["a"]},
    ABORT.name: {"stream_id": "s"},
    PAUSE.name: {"stream_id": "s"},
    RESUME.name: {"stream_id": "s"},
    TOKENIZE.name: {"model_id": "m", "text": "t"},
    DETOKENIZE.name: {"model_id": "m", "tokens": [1]},
    TOKENIZE_CHAT.name: {"model_id": "m", "messages": [{}]},
    BATCH_TOKENIZE.name: {"requests": [{"anything": 1}]},
    CHECK_DRAFT.name: {"primary_id": "m", "draft_id": "d"},
    BATCH_CHECK_DRAFT.name: {"requests": [{"anything": 1}]},
}
IMAGE = {"data": "iVBORw==", "digest": "0" * 64, "width": 2, "height": 1, "detail": "low"}

FULL: dict[str, dict[str, object]] = {
    **REQUIRED,
    RUNTIME_INFO.name: {"protocols": [STEP_FRAMES], "heartbeat_interval_s": 0.5},
    LOAD_MODEL.name: {
        "model_id": "org/m",
        "revision": "main",
        "local_path": "/models/m",
        "context_length": 4096,
        "quantization": "int4",
        "draft": True,
        "trust_remote_code": True,
        "tool_parser": "mistral",
        "reasoning_parser": "none",
        "pooling": "mean",
        "kv_bits": 8,
        "kv_group_size": 32,
        "known": {
            "config_digest": "00ff",
            "capabilities": {
                "batch": True,
                "batch_prefill": False,
                "trim": True,
                "quantise_cache": False,
                "draft": True,
            },
        },
        "adapter_path": "/adapters/a",
        "fuse_adapter": True,
    },
    UNLOAD_MODEL.name: {"model_id": "m", "force": True},
    GENERATE.name: {
        "model_id": "m",
        "prompt": "p",
        "prompt_tokens": [0, 2**31 - 1],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "template_kwargs": {"thinking": False},
        "chat_template": "{{ messages[0].content }}",
        "images": [IMAGE],
        "cut_to_fit": True,
        "stream_id": "s",
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "typical_p": 0.95,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.2,
        "repetition_penalty": 1.1,
        "repetition_context_size": 64,
        "presence_penalty": 0.1,
        "frequency_penalty": -0.1,
        "logit_bias": {"7": -100.0},
        "banned_token_ids": [3],
        "allowed_token_ids": [4, 5],
        "bad_words": ["no"],
        "seed": 2**64 - 1,
        "min_tokens": 1,
        "stop_sequences": ["\n"],
        "stop_token_ids": [2],
        "ignore_eos": True,
        "logprobs": 3,
        "priority": "high",
        "caller": "somebody",
        "fork_of": "other",
        "delivered": [3, 4],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "required",
        "named_tool": "f",
        "parallel_tool_calls": False,
        "parse_output": True,
        "reasoning_budget": 7,
        "cache_salt": "tenant",
        "speculation": "draft",
        "draft_model_id": "d",
        "num_draft_tokens": 4,
        "prediction": "so",
        "timeout_s": 60.0,
        "streaming": False,
        "guidance": {"mode": "json_schema"},
    },
    EMBED.name: {
        "model_id": "m",
        "inputs": ["a", [1, 2]],
        "places": [4, 7],
        "queries": ["q"],
        "dimensions": 8,
        "truncate_to": -1,
        "stream_id": "s",
        "priority": "high",
        "caller": "somebody",
        "timeout_s": 60.0,
    },
    TOKENIZE.name: {"model_id": "m", "text": "", "add_special_tokens": False},
    DETOKENIZE.name: {"model_id": "m", "tokens": [], "skip_special_tokens": True},
    TOKENIZE_CHAT.name: {
        "model_id": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "template_kwargs": {"thinking": False},
        "chat_template": "{{ messages[0].content }}",
        "images": [IMAGE],
        "tools": [{"type": "function"}],
    },
}

WORK = WorkDone(9, 2, 1.5, prefilled_tokens=30, prefill_s=0.5, decoded_tokens=40, decode_s=0.25)
LATENCY = Latency(mean=2.0, min=1.0, max=3.0, p50=2.0, p95=3.0, p99=3.0)
WORDS = Vocabulary({"a": 0}, frozenset(), frozenset({0}), None)
REPORT = compare(
    PairMember("m", 1, 100, "llama", 400, can_draft=True, vocabulary=WORDS),
    PairMember("d", 1, 10, "qwen2", 40, can_draft=False, vocabulary=WORDS),
)
RESULTS: dict[str, object] = {
    RUNTIME_INFO.name: RuntimeInfoResult(
        version="0.1.0",
        mlx_version="0.32",
        mlx_lm_version="0.32",
        protocol=PROTOCOL_VERSION,
        protocols=list(PROTOCOLS),
        notifications=STEP_FRAMES,
        capabilities=["generate"],
        mlx_supported=True,
        device="cpu",
        metal=False,
        blas=BlasInfo(name="openblas", path="/x.so"),
        memory=MemoryInfo(
            rss=1, vms=2, active=3, cache=4, peak=5, capacity=9, limited_by="RAM", weights=2, kv_budget=6
        ),
        pid=42,
    ),
    RUNTIME_STATE.name: RuntimeStateResult(
        loaded_models=[LoadedModelState(model_id="m", state="ready", type="text", active_streams=2)],
        active_streams=2,
        paused_streams=1,
        restart_count=1,
    ),
    RUNTIME_TELEMETRY.name: RuntimeTelemetry(
        uptime_s=1.5,
        opening=1,
        scheduler=SchedulerLoad(
            queued=1,
            running=2,
            prefilling=3,
            paused=4,
            kv_held_bytes=5,
            kv_reserved_bytes=6,
            preemptions=7,
            done=WORK,
            models={"m": ModelLoad(1, 2, 3, 4, WORK, decode_step_s=0.01, prefill_tokens_per_s=100.0)},
        ),
        generation=GenerationTelemetry(4, 1, 40, 10.0, 12.5, LATENCY, None),
        tokenization=TokenizationTelemetry(3, 0, LATENCY),
        errors=ErrorTelemetry(1, 1, 0.25),
        caches=CacheTelemetry(10, {"m": 10}, PrefixTelemetry(5, None, 1, 2, 3, 40, 50, 6, {"absent": 3})),
        memory=DeviceMemory(1, 2, 3, 4, 5),
        metal=MetalDevice("Apple M4", 1, 2, 3, 4),
        process=ProcessTelemetry(42, 1, 2, 3, 4, 5),
    ),
    SHUTDOWN.name: SuccessResult(),
    LOAD_MODEL.name: LoadModelResult(
        model_id="m",
        state="ready",
        context_length=4096,
        parameter_count=10**9,
        dtype="float32",
        is_vision_model=False,
        cached_path="/m",
        model_type="llama",
        vocab_size=512,
        memory_bytes=4 * 10**9,
        has_chat_template=True,
        capabilities=ModelCapabilities(batch=True, batch_prefill=True, trim=True, quantise_cache=True, draft=True),
        config_digest="00ff",
        quantization=None,
        eos_token_ids=[2],
        embedding=EmbeddingFacts(dimensions=8, pooling="mean", normalised=True),
    ),
    UNLOAD_MODEL.name: SuccessResult(),
    GENERATE.name: GenerateResult(stream_id="s", started_at=1.5, prompt_tokens=3),
    EMBED.name: GenerateResult(stream_id="s", started_at=1.5, prompt_tokens=3),
    ABORT.name: AbortResult(aborted=True),
    PAUSE.name: StreamResult(found=True),
    RESUME.name: StreamResult(found=False),
    TOKENIZE.name: TokenizeResult(tokens=[1], token_strings=["a"]),
    DETOKENIZE.name: DetokenizeResult(text="a"),
    TOKENIZE_CHAT.name: TokenizeResult(tokens=[1], token_strings=["a"]),
    BATCH_TOKENIZE.name: BatchResult(
        [
            BatchItem(success=True, result=TokenizeResult(tokens=[], token_strings=[])),
            BatchItem(success=False, error=BatchError(code=-32602, message="m", type="InvalidParams")),
        ]
    ),
    CHECK_DRAFT.name: REPORT,
    BATCH_CHECK_DRAFT.name: BatchResult([BatchItem(success=True, result=REPORT)]),
}

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def _parse(method: AnyMethod, params: object) -> Any:
    return jsonrpc.parse_params(msgspec.Raw(msgspec.json.encode(params)), method.params)


def test_the_names_are_unique_and_the_ancestors() -> None:
    names = [method.name for method in METHODS]
    assert len(set(names)) == len(names)
    assert {
        "runtime/info",
        "runtime/state",
        "runtime/telemetry",
        "shutdown",
        "load_model",
        "unload_model",
        "generate",
        "tokenize",
        "batch_tokenize",
        "check_draft",
        "batch_check_draft",
    } <= set(names)


@every_method
def test_every_method_refuses_an_unknown_parameter_by_name(method: AnyMethod) -> None:
    assert issubclass(method.params, Params)
    with pytest.raises(InvalidRequest) as caught:
        _parse(method, REQUIRED[method.name] | {"no_such_parameter": 1})
    assert caught.value.field == "no_such_parameter"


@every_method
def test_every_method_names_a_parameter_that_is_missing(method: AnyMethod) -> None:
    for name in REQUIRED[method.name]:
        with pytest.raises(InvalidRequest) as caught:
            _parse(method, {key: value for key, value in REQUIRED[method.name].items() if key != name})
        assert caught.value.field == name


@every_method
@pytest.mark.parametrize("params", [None, [], [1], "m", 3])
def test_parameters_are_objects(method: AnyMethod, params: object) -> None:
    with pytest.raises(InvalidRequest, match="Expected `object`"):
        _parse(method, params)


@every_method
def test_every_parameter_crosses_the_pipe(method: AnyMethod) -> None:
    full = FULL[method.name]
    assert set(full) == {field.name for field in msgspec.structs.fields(method.params)}
    params = _parse(method, full)
    request = jsonrpc.parse_request(jsonrpc.encode_request(method.name, params, 1))
    assert msgspec.json.decode(request.params).keys() <= full.keys()
    received = jsonrpc.parse_params(request.params, method.params)
    assert msgspec.json.encode(received) == msgspec.json.encode(params)


def test_pictures_cross_the_pipe_as_they_are() -> None:
    image = Image(b"\x89PNG\r\n\x1a\n\0\xff", "ab" * 32, 640, 480, "low")
    sent = methods.TokenizeChatParams(
        model_id="m", messages=[{"role": "user", "content": []}], images=methods.image_params([image])
    )
    request = jsonrpc.parse_request(jsonrpc.encode_request("tokenize_chat", sent, 1))
    (received,) = jsonrpc.parse_params(request.params, methods.TokenizeChatParams).images
    assert (received.data, received.digest) == (image.data, image.digest)
    assert (received.width, received.height, received.detail) == (640, 480, "low")


@every_method
def test_parameters_left_at_their_defaults_are_not_sent(method: AnyMethod) -> None:
    required = REQUIRED[method.name]
    sent = jsonrpc.parse_request(jsonrpc.encode_request(method.name, _parse(method, required), 1)).params
    assert msgspec.json.decode(sent) == required


@every_method
def test_every_result_crosses_the_pipe(method: AnyMethod) -> None:
    result = RESULTS[method.name]
    assert isinstance(result, get_origin(method.result) or method.result)
    response = jsonrpc.parse_response(jsonrpc.encode_result(1, result))
    assert jsonrpc.parse_result(response.result, method.result) == result


BOUNDS: list[tuple[AnyMethod, str, list[object], list[object]]] = [
    (RUNTIME_INFO, "heartbeat_interval_s", [0.001, 3600], [0, -1, 3601, "1"]),
    (LOAD_MODEL, "model_id", ["m", "m" * 4096], ["", "m" * 4097, None, 1]),
    (LOAD_MODEL, "revision", ["", "r" * 256], ["r" * 257, 1]),
    (LOAD_MODEL, "local_path", ["p" * 4096], ["p" * 4097]),
    (LOAD_MODEL, "context_length", [1, 1_000_000], [0, -1, 1_000_001, 1.5]),
    (GENERATE, "prompt", ["", "p" * MAX_TEXT_CHARS], ["p" * (MAX_TEXT_CHARS + 1), 5]),
    (GENERATE, "stream_id", ["s", "s" * 256], ["", "s" * 257]),
    (GENERATE, "temperature", [0, 1.5], ["hot", True]),
    (GENERATE, "max_tokens", [1, 10**20], [1.5, "1", True]),
    (GENERATE, "timeout_s", [0.001, 1e12], [0, -1, "1"]),
    (ABORT, "stream_id", ["s"], ["", "s" * 257, None]),
    (PAUSE, "stream_id", ["s"], ["", "s" * 257, None]),
    (RESUME, "stream_id", ["s"], ["", "s" * 257, None]),
    (TOKENIZE, "text", ["t" * MAX_TEXT_CHARS], ["t" * (MAX_TEXT_CHARS + 1)]),
    (BATCH_TOKENIZE, "requests", [[], [1] * 10_000], [[1] * 10_001, {}]),
    (DETOKENIZE, "tokens", [[0] * 1000], [[0] * 1_000_001, "a"]),
]


@pytest.mark.parametrize(("method", "field", "good", "bad"), BOUNDS)
def test_a_value_beyond_its_limit_is_refused_and_named(
    method: AnyMethod, field: str, good: list[object], bad: list[object]
) -> None:
    for value in good:
        _parse(method, REQUIRED[method.name] | {field: value})
    for value in bad:
        with pytest.raises(InvalidRequest) as caught:
            _parse(method, REQUIRED[method.name] | {field: value})
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("method", "field"), [(GENERATE, "prompt_tokens"), (DETOKENIZE, "tokens")], ids=["generate", "detokenize"]
)
@pytest.mark.parametrize("token_id", [-1, 2**31, 1.5, "1", None])
def test_a_wrong_token_id_is_named_by_its_index(method: AnyMethod, field: str, token_id: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _parse(method, REQUIRED[method.name] | {field: [1, token_id]})
    assert caught.value.field == f"{field}[1]"


def test_entries_of_a_batch_are_checked_one_by_one() -> None:
    requests = [{"model_id": "m", "text": "t"}, {"model_id": "m"}, 3]
    params: BatchParams = _parse(BATCH_TOKENIZE, {"requests": requests})
    assert jsonrpc.parse_params(params.requests[0], TokenizeParams) == TokenizeParams(model_id="m", text="t")
    for raw, field in zip(params.requests[1:], ["text", None], strict=True):
        with pytest.raises(InvalidRequest) as caught:
            jsonrpc.parse_params(raw, TokenizeParams)
        assert caught.value.field == field


def test_the_keys_of_logit_bias_are_token_ids() -> None:
    params: GenerateParams = _parse(GENERATE, {"model_id": "m", "logit_bias": {"7": 1, "9": -2.5}})
    assert params.logit_bias == {7: 1.0, 9: -2.5}


def test_two_calls_do_not_share_their_defaults() -> None:
    first: GenerateParams = _parse(GENERATE, {"model_id": "m"})
    second: GenerateParams = _parse(GENERATE, {"model_id": "m"})
    assert first.stop_sequences is not second.stop_sequences
    assert first.logit_bias is not second.logit_bias
