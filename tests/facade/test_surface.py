"""The public surface, frozen: names, signatures, options in both spellings, plain objects, error codes.

A change that is meant is recorded with `python -m tests.facade.test_surface`, run from the root of the repository; the
difference in `surface.json` then belongs to the change.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel

import mlx_serving
from mlx_serving import errors
from mlx_serving.facade import batches, embeddings, model_options, options, shapes, speculation, vision
from mlx_serving.facade.shapes import camel

SNAPSHOT = Path(__file__).with_name("surface.json")

OPTIONS: tuple[type[BaseModel], ...] = (
    model_options.LoadModelOptions,
    options.GeneratorParams,
    options.CreateGeneratorOptions,
    options.TokenizeRequest,
    embeddings.EmbedParams,
    embeddings.RerankParams,
    vision.LoadVisionModelOptions,
    vision.VisionGeneratorParams,
    vision.VisionConfig,
)
SHAPES: tuple[type[shapes.Shape], ...] = (
    shapes.ModelDescriptor,
    shapes.ModelHandle,
    shapes.GenerationStats,
    shapes.TokenLogprob,
    shapes.ToolCall,
    shapes.ToolCallPiece,
    shapes.TokenChunk,
    shapes.MetadataChunk,
    shapes.ErrorChunk,
    shapes.TokenizeResponse,
    shapes.ModelAlias,
    shapes.CachedModel,
    shapes.ModelCacheStats,
    speculation.ComparedModel,
    speculation.PerformanceEstimate,
    speculation.CompatibilityDetails,
    speculation.CompatibilityReport,
    batches.BatchEntry,
    batches.GenerationResult,
    embeddings.EmbeddingResult,
    embeddings.RankedDocument,
    vision.VisionModelHandle,
    vision.ImageMetadata,
    vision.ImageProcessedChunk,
    vision.VisionGenerationStats,
)
CLASSES = ("Engine", "MLXEngine", "SyncEngine")


def _signature(function: Callable[..., Any]) -> str:
    kind = "async " if inspect.iscoroutinefunction(function) else ""
    return kind + str(inspect.signature(function)).replace("'", "")


def _methods(cls: type) -> dict[str, str]:
    members = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
    public = {name: value for name, value in members.items() if not name.startswith("_")}
    methods = {name: value for name, value in public.items() if inspect.isfunction(value)}
    return {"__init__": _signature(cls.__init__), **{name: _signature(value) for name, value in methods.items()}}


def _spellings(model: type[BaseModel]) -> dict[str, list[str]]:
    return {
        name: [str(choice) for choice in field.validation_alias.choices]
        if isinstance(field.validation_alias, AliasChoices)
        else [name]
        for name, field in model.model_fields.items()
    }


def _functions() -> list[str]:
    return [name for name in mlx_serving.__all__ if name.islower()]


def _twin(name: str) -> str:
    return camel(name).replace("Mlx", "MLX")


def _exported(name: str) -> str:
    value = getattr(mlx_serving, name)
    if inspect.isclass(value):
        return "class"
    return _signature(value) if inspect.isfunction(value) else repr(value)


def surface() -> dict[str, Any]:
    names = [*mlx_serving.__all__, *map(_twin, _functions())]
    return {
        "names": {name: _exported(name) for name in names},
        "methods": {name: _methods(getattr(mlx_serving, name)) for name in CLASSES},
        "options": {model.__name__: _spellings(model) for model in OPTIONS},
        "objects": {shape.__name__: [camel(field.name) for field in dataclasses.fields(shape)] for shape in SHAPES},  # pyright: ignore[reportArgumentType]  every shape is a dataclass
        "errors": {
            cls.__name__: {"code": cls.code, "json_rpc": cls.rpc_code, "http": cls.http_status}
            for cls in vars(errors).values()
            if inspect.isclass(cls) and issubclass(cls, errors.EngineError)
        },
    }


def test_the_surface_is_what_was_promised() -> None:
    assert surface() == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_every_method_of_several_words_has_its_twin() -> None:
    for name in ("Engine", "MLXEngine"):
        cls = getattr(mlx_serving, name)
        for method in _methods(cls):
            if "_" in method.strip("_"):
                assert getattr(cls, camel(method)) is getattr(cls, method)


def test_every_function_of_several_words_has_its_twin() -> None:
    for name in _functions():
        assert getattr(mlx_serving, _twin(name)) is getattr(mlx_serving, name)


def test_every_option_of_several_words_is_accepted_in_both_spellings() -> None:
    for model in OPTIONS:
        for name, spellings in _spellings(model).items():
            assert {name, camel(name)} <= set(spellings)


def test_what_is_exported_can_be_listed_and_nothing_else_is_found() -> None:
    assert sorted(mlx_serving.__all__) == sorted(set(mlx_serving.__all__))
    assert not hasattr(mlx_serving, "nothing_of_that_name")


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(surface(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
