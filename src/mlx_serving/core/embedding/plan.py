"""What kind of embedding model a directory holds, and how vectors are made with it: read from its own files.

    config.json                        the architecture
    modules.json                       sentence-transformers' list of what follows the architecture
    1_Pooling/config.json              how the vectors of tokens become one
    sentence_bert_config.json          how many tokens an input may have, whether it is written small
    config_sentence_transformers.json  a text that goes before every input

What the library that computes the architecture would get wrong is refused by name: a vector that is wrong looks like
any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from mlx_serving.errors import ModelLoadError

Pooling: TypeAlias = Literal["mean", "cls", "last", "max", "mean_sqrt_len"]
Library: TypeAlias = Literal["encoder", "classifier", "decoder"]

_ENCODERS = ("bert", "xlm-roberta", "modernbert", "qwen3", "gemma3_text")
_CLASSIFIERS = ("bert", "xlm-roberta", "modernbert")
_BIDIRECTIONAL = ("bert", "roberta", "camembert", "distilbert", "mpnet", "xlm-roberta", "modernbert", "electra")
_NEVER_TEXT = frozenset({*_BIDIRECTIONAL, "nomic_bert", "new", "deberta-v2", "t5", "lfm2-colbert"})
_BOTH_WAYS = ("lfm2", "ministral3")  # they write text; as embedding models their attention looks ahead
_MODULES = frozenset({"Transformer", "Pooling", "Normalize", "Dense"})
_POOLINGS: Mapping[str, Pooling] = {
    "cls": "cls",
    "mean": "mean",
    "max": "max",
    "lasttoken": "last",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
}
_LEGACY = {f"pooling_mode_{name}": name for name in ("mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")} | {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}


@dataclass(frozen=True, slots=True)
class EmbeddingFiles:
    """The content of those files. `modules` is None when there is no such file, the others are empty then."""

    config: Mapping[str, object]
    modules: Sequence[Mapping[str, object]] | None = None
    pooling: Mapping[str, object] | None = None
    transformer: Mapping[str, object] | None = None
    prompts: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingPlan:
    """How to make vectors. `library` says what computes the architecture: mlx-vlm's encoder or its classifier, or
    mlx-lm's model of text.

    `pooling` is None for a classifier, whose vector is one number; `sigmoid` says whether that is brought between 0
    and 1. An input has at most `max_tokens`, special ones included; `prompt` goes before texts, which are written
    small if `lower_case`.
    """

    library: Library
    pooling: Pooling | None
    normalise: bool
    max_tokens: int
    lower_case: bool = False
    prompt: str = ""
    sigmoid: bool = False
    dense: bool = False


def plan(model: str, files: EmbeddingFiles, pooling: Pooling | None, default_tokens: int) -> EmbeddingPlan | None:
    """None for a model that writes text. `pooling` is what is configured for one that does, which makes vectors then.
    `default_tokens` holds for a decoder whose files do not tell how many it takes.

    Raises `ModelLoadError` for an embedding model that would be computed wrongly.
    """
    config = files.config
    kind = str(config.get("model_type", ""))
    if any(str(name).endswith("ForSequenceClassification") for name in _list(config.get("architectures"))):
        return _classifier(model, config, kind)
    if files.modules is None and kind not in _NEVER_TEXT:
        if pooling is None:
            return None
        return EmbeddingPlan("decoder", pooling, normalise=True, max_tokens=_positions(config, default_tokens))
    if pooling is not None:
        raise _refused(model, "it is an embedding model, whose own files say how it pools: configure no pooling")
    return _encoder(model, files, kind, default_tokens)


def _encoder(model: str, files: EmbeddingFiles, kind: str, default_tokens: int) -> EmbeddingPlan:
    config, transformer, prompts = files.config, files.transformer or {}, files.prompts or {}
    names = [str(module.get("type", "")).rpartition(".")[2] for module in files.modules or ()]
    unknown = sorted(set(names) - _MODULES)
    if unknown:
        raise _refused(model, f"its modules.json has a {unknown[0]}, which is not known here")
    dense = "Dense" in names
    if dense and kind != "gemma3_text":
        raise _refused(model, f"its modules.json has a Dense layer, which is not computed for {kind}")
    if config.get("auto_map") and kind not in _ENCODERS:
        raise _refused(model, "it needs code from its own directory, which is not executed")
    prompt = _prompt(prompts)
    how = files.pooling or {}
    if prompt and how.get("include_prompt") is False:
        raise _refused(model, "its pooling leaves the prompt out, which is not supported")
    limit = _limit(model, config, kind, default_tokens)
    stated = transformer.get("max_seq_length")
    return EmbeddingPlan(
        "encoder" if kind in _ENCODERS else "decoder",
        _pooling(model, how, kind),
        normalise="Normalize" in names or not names,
        max_tokens=min(limit, stated) if isinstance(stated, int) and stated > 0 else limit,
        lower_case=transformer.get("do_lower_case") is True,
        prompt=prompt,
        dense=dense,
    )


def _limit(model: str, config: Mapping[str, object], kind: str, default_tokens: int) -> int:
    """How many tokens the library computes as the model was trained; refuses what it computes otherwise."""
    positions = _positions(config, default_tokens)
    match kind:
        case "bert" | "xlm-roberta":
            _require(model, config, "hidden_act", "gelu")
            _require(model, config, "position_embedding_type", "absolute")
            _require(model, config, "is_decoder", value=False)
            if kind == "bert":
                return positions
            padding = config.get("pad_token_id")  # positions are counted from behind it
            return positions - (padding if isinstance(padding, int) else 1) - 1
        case "modernbert":
            _require(model, config, "hidden_activation", "gelu")
            return positions
        case "gemma3_text":
            if config.get("use_bidirectional_attention") is not True:
                raise _refused(model, "its attention looks back only, and gemma3_text is computed both ways here")
            window = config.get("sliding_window")  # looks so far to either side in half
            return min(positions, window // 2 + 1) if isinstance(window, int) and window > 0 else positions
        case _ if kind in _NEVER_TEXT or kind in _BOTH_WAYS:
            raise _refused(model, f"{kind} is not supported; there is {', '.join(_ENCODERS)}")
        case _:
            _require(model, config, "is_causal", value=True)
            _require(model, config, "use_bidirectional_attention", value=False)
            _require(model, config, "use_sliding_window", value=False)
            return positions


def _classifier(model: str, config: Mapping[str, object], kind: str) -> EmbeddingPlan:
    if kind not in _CLASSIFIERS:
        raise _refused(model, f"{kind} is not supported as a reranker; there is {', '.join(_CLASSIFIERS)}")
    labels = config.get("num_labels", len(_mapping(config.get("id2label"))) or 1)
    if labels != 1:
        raise _refused(model, f"a reranker gives one number, and this model gives {labels}")
    own = _mapping(config.get("sentence_transformers"))
    function = str(own.get("activation_fn") or config.get("sbert_ce_default_activation_function") or "Sigmoid")
    name = function.rpartition(".")[2]
    if name not in ("Sigmoid", "Identity"):
        raise _refused(model, f"its scores go through {function}, which is not known here")
    limit = _limit(model, config, kind, 512)
    return EmbeddingPlan("classifier", None, normalise=False, max_tokens=limit, sigmoid=name == "Sigmoid")


def _pooling(model: str, config: Mapping[str, object], kind: str) -> Pooling:
    stated = config.get("pooling_mode")
    active = [name for key, name in _LEGACY.items() if config.get(key) is True]
    if isinstance(stated, str):
        active = [stated]
    elif isinstance(stated, list | tuple):
        active = [str(name) for name in cast("Sequence[object]", stated)]
    if not active:
        if config or kind not in _BIDIRECTIONAL:
            raise _refused(model, "its files do not say how it pools")
        active = ["mean"]
    if len(active) > 1 or active[0] not in _POOLINGS:
        raise _refused(model, f"it pools by {' and '.join(active)}; supported is one of {', '.join(sorted(_POOLINGS))}")
    return _POOLINGS[active[0]]


def _prompt(config: Mapping[str, object]) -> str:
    name = config.get("default_prompt_name")
    return str(_mapping(config.get("prompts")).get(name, "")) if isinstance(name, str) else ""


def _require(model: str, config: Mapping[str, object], name: str, value: object) -> None:
    if config.get(name, value) != value and config.get(name) is not None:
        raise _refused(model, f"its {name} is {config[name]!r}; only {value!r} is computed right")


def _positions(config: Mapping[str, object], default: int) -> int:
    value = config.get("max_position_embeddings")
    return value if isinstance(value, int) and value > 0 else default


def _mapping(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[object]:
    return cast("Sequence[object]", value) if isinstance(value, list) else ()


def _refused(model: str, reason: str) -> ModelLoadError:
    return ModelLoadError(f"{model} cannot be used for embeddings: {reason}", model=model)
