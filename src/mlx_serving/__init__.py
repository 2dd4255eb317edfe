"""mlx-serving: the LLM serving engine for Apple Silicon that never drops a request.

    from mlx_serving import Engine

    async with Engine() as engine:
        await engine.load_model("smollm2-135m")
        print(await engine.generate({"model": "smollm2-135m", "prompt": "Hello", "max_tokens": 20}))

Names are imported when they are first used: `import mlx_serving` costs next to nothing and never imports MLX.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_serving.config.schema import Config
    from mlx_serving.errors import EngineError
    from mlx_serving.errors import EngineError as EngineClientError
    from mlx_serving.facade.batches import BatchEntry, GenerationResult
    from mlx_serving.facade.convenience import (
        MLXEngine,
        batch_tokenize,
        collect_chunks,
        create_mlx_engine,
        ensure_model_loaded,
        generate_text,
        generate_text_streaming,
        get_total_token_count,
        is_engine_healthy,
        retry_load_model,
        wait_for_model_ready,
        with_engine,
    )
    from mlx_serving.facade.embeddings import EmbeddingResult, EmbedParams, RankedDocument, RerankParams
    from mlx_serving.facade.engine import ENGINE_API_SNAPSHOT_VERSION, Engine, create_engine
    from mlx_serving.facade.model_options import LoadModelOptions
    from mlx_serving.facade.options import CreateGeneratorOptions, GeneratorParams, TokenizeRequest
    from mlx_serving.facade.shapes import (
        ErrorChunk,
        GenerationStats,
        GeneratorChunk,
        MetadataChunk,
        ModelHandle,
        TokenChunk,
        TokenLogprob,
        ToolCall,
    )
    from mlx_serving.facade.speculation import CompatibilityReport
    from mlx_serving.facade.sync import SyncEngine
    from mlx_serving.facade.vision import (
        ImageMetadata,
        ImageProcessedChunk,
        LoadVisionModelOptions,
        VisionGenerationStats,
        VisionGeneratorParams,
        VisionModelHandle,
    )

_HOME = {
    "mlx_serving.config.schema": ("Config",),
    "mlx_serving.errors": ("EngineError",),
    "mlx_serving.facade.batches": ("BatchEntry", "GenerationResult"),
    "mlx_serving.facade.convenience": (
        "MLXEngine",
        "batch_tokenize",
        "collect_chunks",
        "create_mlx_engine",
        "ensure_model_loaded",
        "generate_text",
        "generate_text_streaming",
        "get_total_token_count",
        "is_engine_healthy",
        "retry_load_model",
        "wait_for_model_ready",
        "with_engine",
    ),
    "mlx_serving.facade.embeddings": ("EmbedParams", "EmbeddingResult", "RankedDocument", "RerankParams"),
    "mlx_serving.facade.engine": ("ENGINE_API_SNAPSHOT_VERSION", "Engine", "create_engine"),
    "mlx_serving.facade.model_options": ("LoadModelOptions",),
    "mlx_serving.facade.options": ("CreateGeneratorOptions", "GeneratorParams", "TokenizeRequest"),
    "mlx_serving.facade.shapes": (
        "ErrorChunk",
        "GenerationStats",
        "GeneratorChunk",
        "MetadataChunk",
        "ModelHandle",
        "TokenChunk",
        "TokenLogprob",
        "ToolCall",
    ),
    "mlx_serving.facade.speculation": ("CompatibilityReport",),
    "mlx_serving.facade.sync": ("SyncEngine",),
    "mlx_serving.facade.vision": (
        "ImageMetadata",
        "ImageProcessedChunk",
        "LoadVisionModelOptions",
        "VisionGenerationStats",
        "VisionGeneratorParams",
        "VisionModelHandle",
    ),
}
_ALIASES = {
    "EngineClientError": "EngineError",
    "createEngine": "create_engine",
    "createMLXEngine": "create_mlx_engine",
    "withEngine": "with_engine",
    "generateText": "generate_text",
    "generateTextStreaming": "generate_text_streaming",
    "ensureModelLoaded": "ensure_model_loaded",
    "batchTokenize": "batch_tokenize",
    "collectChunks": "collect_chunks",
    "waitForModelReady": "wait_for_model_ready",
    "isEngineHealthy": "is_engine_healthy",
    "getTotalTokenCount": "get_total_token_count",
    "retryLoadModel": "retry_load_model",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "ENGINE_API_SNAPSHOT_VERSION",
    "BatchEntry",
    "CompatibilityReport",
    "Config",
    "CreateGeneratorOptions",
    "EmbedParams",
    "EmbeddingResult",
    "Engine",
    "EngineClientError",
    "EngineError",
    "ErrorChunk",
    "GenerationResult",
    "GenerationStats",
    "GeneratorChunk",
    "GeneratorParams",
    "ImageMetadata",
    "ImageProcessedChunk",
    "LoadModelOptions",
    "LoadVisionModelOptions",
    "MLXEngine",
    "MetadataChunk",
    "ModelHandle",
    "RankedDocument",
    "RerankParams",
    "SyncEngine",
    "TokenChunk",
    "TokenLogprob",
    "TokenizeRequest",
    "ToolCall",
    "VisionGenerationStats",
    "VisionGeneratorParams",
    "VisionModelHandle",
    "batch_tokenize",
    "collect_chunks",
    "create_engine",
    "create_mlx_engine",
    "ensure_model_loaded",
    "generate_text",
    "generate_text_streaming",
    "get_total_token_count",
    "is_engine_healthy",
    "retry_load_model",
    "wait_for_model_ready",
    "with_engine",
]


def __getattr__(name: str) -> object:
    canonical = _ALIASES.get(name, name)
    module = _MODULE_OF.get(canonical)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(module), canonical)
