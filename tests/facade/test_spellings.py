"""One program, written twice: both spellings do the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx_serving
from mlx_serving.telemetry.events import Event

from .embedding import NO_SPECIAL_TOKENS, configuration


async def snake(model: Path) -> list[object]:
    engine = await mlx_serving.create_engine(configuration(model))
    heard: list[str] = []

    def hear(event: Event) -> None:
        heard.append(event.name)

    engine.on("model:loaded", hear)
    try:
        handle = await engine.load_model({"model_id": str(model), "context_length": 300})
        asked = {
            "model": handle.id, "prompt": "Hello", "max_tokens": 9, "temperature": 1.0, "top_p": 0.9, "top_k": 50,
            "min_p": 0.01, "repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1, "seed": 7,
            "logit_bias": NO_SPECIAL_TOKENS, "stop_sequences": ["\x00"], "stop_token_ids": [258],
            "typical_p": 0.95, "xtc_probability": 0.5, "xtc_threshold": 0.01, "repetition_context_size": 5,
            "banned_token_ids": [3], "allowed_token_ids": list(range(200)), "bad_words": ["no"], "min_tokens": 2,
            "ignore_eos": True, "logprobs": 1,
        }  # fmt: skip
        options = {"stream_id": "s", "timeout_ms": 60_000}
        chunks = [chunk async for chunk in engine.create_generator(asked, options)]
        tokens = await engine.tokenize({"model_id": handle.id, "text": "abc", "add_special_tokens": False})
        facts = engine.get_model_info(handle.id)
        assert facts is not None
        return [
            handle.to_object(),
            [chunk.to_object() for chunk in chunks[:-1]],
            tokens.to_object(),
            facts.to_object(),
            [model.to_object() for model in engine.list_models()],
            engine.get_cache_stats().to_object(),
            await engine.count_tokens(handle.id, "abc"),
            await mlx_serving.batch_tokenize(engine, handle.id, ["a", "bc"]),
            await mlx_serving.is_engine_healthy(engine),
            (await engine.get_runtime_info()).capabilities,
            (await engine.health_check()).status,
            await engine.unload_model(handle.id),
            heard,
        ]
    finally:
        await engine.dispose()


async def camel(model: Path) -> list[object]:
    mlx: Any = mlx_serving  # the ancestor's spellings are found when they are asked for: no type checker knows them
    engine = await mlx.createEngine(configuration(model))
    heard: list[str] = []

    def hear(event: Event) -> None:
        heard.append(event.name)

    engine.on("model:loaded", hear)
    try:
        handle = await engine.loadModel({"modelId": str(model), "contextLength": 300})
        asked = {
            "model": handle.id, "prompt": "Hello", "maxTokens": 9, "temperature": 1.0, "topP": 0.9, "topK": 50,
            "minP": 0.01, "repetitionPenalty": 1.1, "presencePenalty": 0.1, "frequencyPenalty": 0.1, "seed": 7,
            "logitBias": NO_SPECIAL_TOKENS, "stopSequences": ["\x00"], "stopTokenIds": [258],
            "typicalP": 0.95, "xtcProbability": 0.5, "xtcThreshold": 0.01, "repetitionContextSize": 5,
            "bannedTokenIds": [3], "allowedTokenIds": list(range(200)), "badWords": ["no"], "minTokens": 2,
            "ignoreEos": True, "logprobs": 1,
        }  # fmt: skip
        options = {"streamId": "s", "timeoutMs": 60_000}
        chunks = [chunk async for chunk in engine.createGenerator(asked, options)]
        tokens = await engine.tokenize({"modelId": handle.id, "text": "abc", "addSpecialTokens": False})
        facts = engine.getModelInfo(handle.id)
        assert facts is not None
        return [
            handle.toObject(),
            [chunk.toObject() for chunk in chunks[:-1]],
            tokens.toObject(),
            facts.toObject(),
            [model.toObject() for model in engine.listModels()],
            engine.getCacheStats().toObject(),
            await engine.countTokens(handle.id, "abc"),
            await mlx.batchTokenize(engine, handle.id, ["a", "bc"]),
            await mlx.isEngineHealthy(engine),
            (await engine.getRuntimeInfo()).capabilities,
            (await engine.healthCheck()).status,
            await engine.unloadModel(handle.id),
            heard,
        ]
    finally:
        await engine.dispose()


async def test_both_spellings_run_the_same(tiny_model: Path) -> None:
    results = await snake(tiny_model)
    assert await camel(tiny_model) == results
    assert results[1] != []
    assert results[10] == "healthy"
    assert json.loads(json.dumps(results)) == results  # plain objects, down to the last
