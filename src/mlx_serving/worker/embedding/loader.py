"""From the name of an embedding model or a reranker to one in memory.

mlx-vlm computes encoders; it is imported when the first of them is loaded. Pooling and normalisation are ours, because
its own are always the mean and always normalised. A model of text that is to make vectors is mlx-lm's: what its layers
give is what its head takes, which is tried when it is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import get_total_parameters, load_model, load_tokenizer

from mlx_serving.core.embedding.plan import EmbeddingFiles, EmbeddingPlan, plan
from mlx_serving.errors import ModelLoadError
from mlx_serving.wire.methods import EmbeddingFacts, LoadModelParams, LoadModelResult, ModelCapabilities
from mlx_serving.worker.embedding.model import EmbeddingModel, EncodedInput, Forward
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.loading.loader import Aside, RequireMemory
from mlx_serving.worker.loading.model_files import OnProgress, blaming, find_directory, read_object
from mlx_serving.worker.loading.model_shape import DEFAULT_CONTEXT_LENGTH, prefill_memory_of
from mlx_serving.worker.loading.weights import parameters
from mlx_serving.worker.tokenizing import PromptTokenizer

_NOTHING = ModelCapabilities(batch=True, batch_prefill=True, trim=False, quantise_cache=False, draft=False)
_TRIED = (1, 2, 3)
_TOLERANCE = 1e-3  # of the largest logit


AnyLoading: TypeAlias = Generator[Aside | None, None, LoadedModel | EmbeddingModel]
"""A load in slices, of a model of either kind; see `loader.Loading`."""


def embedder_loading(
    params: LoadModelParams, on_progress: OnProgress, require_memory: RequireMemory
) -> Generator[Aside | None, None, EmbeddingModel | None]:
    """Returns None for a model that writes text, of which nothing was read but its small files. What needs arrays is
    one slice: such models are small.

    Raises what `loader.loading` raises, `ModelLoadError` also for a model whose vectors would be wrong.
    """
    found = _Found(params, on_progress)
    yield Aside(found.find)
    how, directory = found.how, found.directory
    if how is None:
        return None
    with blaming("its architecture or weights", params.model_id, directory):
        packed = params.quantization not in (None, "none") or params.kv_bits is not None
        if packed or params.adapter_path is not None:
            raise ModelLoadError(
                f"{params.model_id} makes embeddings: nothing of it is quantised on load, and it takes no adapter",
                model=params.model_id,
            )
        require_memory(sum(file.stat().st_size for file in directory.rglob("*.safetensors")))
        on_progress("reading", 0, 1)
        return _load(params, how, directory, on_progress)


class _Found:
    """What a thread without arrays finds out."""

    directory: Path
    how: EmbeddingPlan | None

    def __init__(self, params: LoadModelParams, on_progress: OnProgress) -> None:
        self._params = params
        self._on_progress = on_progress

    def find(self) -> None:
        params = self._params
        self.directory = find_directory(params, self._on_progress)
        with blaming("its config.json", params.model_id, self.directory):
            config = read_object(self.directory / "config.json")
        with blaming("the files that say how it makes embeddings", params.model_id, self.directory):
            files = _files(self.directory, config)
            self.how = plan(params.model_id, files, params.pooling, DEFAULT_CONTEXT_LENGTH)


def _load(params: LoadModelParams, how: EmbeddingPlan, directory: Path, on_progress: OnProgress) -> EmbeddingModel:
    config = read_object(directory / "config.json")
    model, forward = _architecture(params.model_id, how, directory)
    weights = parameters(model)
    mx.eval(weights)  # pyright: ignore[reportUnknownMemberType]  MLX's stub leaves its arguments untyped
    on_progress("loading", 1, 1)
    # Said outright: left open, transformers asks on stdin whether code from the directory may run.
    tokenizer = load_tokenizer(directory, {"trust_remote_code": False})
    dtype = str(max(weights, key=lambda weight: weight.nbytes).dtype).removeprefix("mlx.core.")
    limit = min(how.max_tokens, params.context_length or how.max_tokens)
    pad = config.get("pad_token_id")
    digest = hashlib.sha256((directory / "config.json").read_bytes()).hexdigest()
    quantization = config.get("quantization")

    def loaded(dimensions: int) -> EmbeddingModel:
        return EmbeddingModel(
            facts=LoadModelResult(
                model_id=params.model_id,
                state="ready",
                context_length=limit,
                parameter_count=get_total_parameters(model),
                dtype=dtype,
                is_vision_model=False,
                cached_path=str(directory),
                model_type=str(config.get("model_type", "")),
                vocab_size=_vocabulary(config, len(cast(Any, tokenizer))),
                memory_bytes=sum(weight.nbytes for weight in weights),
                has_chat_template=False,
                capabilities=_NOTHING,
                config_digest=digest,
                quantization=None if quantization is None else json.dumps(quantization),
                eos_token_ids=[],
                embedding=EmbeddingFacts(dimensions, how.pooling, how.normalise, scores=how.pooling is None),
            ),
            plan=how,
            tokenizer=PromptTokenizer(tokenizer),
            forward=forward,
            head=_dense(model) if how.dense else _as_it_is,
            memory=prefill_memory_of(config, 4 if dtype == "float32" else 2),
            pad_token_id=pad if isinstance(pad, int) else 0,
        )

    # The first use compiles what is computed, and tells what comes out.
    tried = loaded(0).vectors([EncodedInput(list(_TRIED)), EncodedInput(list(_TRIED[:1]))])
    return loaded(tried.shape[1])


def _architecture(model_id: str, how: EmbeddingPlan, directory: Path) -> tuple[nn.Module, Forward]:
    match how.library:
        case "encoder":
            from mlx_vlm.embedding_loader import load_embedding_model as load_encoder

            encoder: Any = load_encoder(directory, lazy=True)
            return encoder, lambda ids, mask, types: _hidden(encoder, ids, mask, types)
        case "classifier":
            from mlx_vlm.reranker_loader import load_sequence_classification_model

            classifier: Any = load_sequence_classification_model(directory, lazy=True)
            return (
                classifier,
                lambda ids, mask, types: (
                    classifier(ids, attention_mask=mask, **({} if types is None else {"token_type_ids": types})).logits
                ),
            )
        case "decoder":
            decoder: Any = load_model(directory, lazy=True)[0]
            _require_states(model_id, decoder)
            return decoder, lambda ids, mask, types: decoder.model(ids)


def _hidden(encoder: Any, ids: mx.array, mask: mx.array, types: mx.array | None) -> mx.array:
    return encoder(ids, attention_mask=mask, **({} if types is None else {"token_type_ids": types})).last_hidden_state


def _require_states(model_id: str, decoder: Any) -> None:
    """Raises `ModelLoadError` unless `decoder.model` gives what the head takes: the states behind the last norm."""
    body = getattr(decoder, "model", None)
    embedding = getattr(body, "embed_tokens", None)
    head = getattr(decoder, "lm_head", None) or getattr(embedding, "as_linear", None)
    if body is not None and head is not None:
        ids = mx.array([list(_TRIED)])
        logits = decoder(ids)
        error = mx.max(mx.abs(head(body(ids)) - logits))
        if bool((error <= _TOLERANCE * mx.max(mx.abs(logits))).item()):
            return
    raise ModelLoadError(
        f"{model_id} cannot be used for embeddings: where its architecture keeps the states of its last layer is not "
        "known here",
        model=model_id,
    )


def _dense(model: Any) -> Callable[[mx.array], mx.array]:
    def apply(pooled: mx.array) -> mx.array:
        for layer in model.dense:
            pooled = layer(pooled)
        return pooled

    return apply


def _as_it_is(pooled: mx.array) -> mx.array:
    return pooled


def _files(directory: Path, config: Mapping[str, object]) -> EmbeddingFiles:
    if not (directory / "modules.json").is_file():
        return EmbeddingFiles(config)
    modules = cast("list[Mapping[str, object]]", json.loads((directory / "modules.json").read_text(encoding="utf-8")))
    pooling = next((str(each.get("path", "")) for each in modules if str(each.get("type", "")).endswith("Pooling")), "")
    if Path(pooling).name != pooling:
        raise ValueError(f"modules.json leads to {pooling!r}, outside of the directory")
    return EmbeddingFiles(
        config,
        modules,
        pooling=read_object(directory / pooling / "config.json") if pooling else {},
        transformer=_optional(directory / "sentence_bert_config.json"),
        prompts=_optional(directory / "config_sentence_transformers.json"),
    )


def _optional(path: Path) -> Mapping[str, object]:
    return read_object(path) if path.is_file() else {}


def _vocabulary(config: Mapping[str, object], default: int) -> int:
    size = config.get("vocab_size")
    return size if isinstance(size, int) and size > 0 else default
