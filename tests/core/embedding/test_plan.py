from __future__ import annotations

from typing import Any

import pytest

from mlx_serving.core.embedding.plan import EmbeddingFiles, EmbeddingPlan, Pooling, plan
from mlx_serving.errors import ModelLoadError

BERT: dict[str, Any] = {"model_type": "bert", "hidden_act": "gelu", "max_position_embeddings": 512}
MODULES = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Normalize")]
MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def files(config: dict[str, Any], **more: Any) -> EmbeddingFiles:
    return EmbeddingFiles({**config}, **more)


def plan_of(given: EmbeddingFiles, pooling: Pooling | None = None) -> EmbeddingPlan:
    found = plan("m", given, pooling, 8192)
    assert found is not None
    return found


def test_a_sentence_transformer_says_all_itself() -> None:
    given = files(
        BERT,
        modules=MODULES,
        pooling=MEAN,
        transformer={"max_seq_length": 256, "do_lower_case": True},
        prompts={"prompts": {"q": "query: "}, "default_prompt_name": "q"},
    )
    assert plan_of(given) == EmbeddingPlan("encoder", "mean", True, 256, lower_case=True, prompt="query: ")


def test_a_model_that_writes_text_is_none() -> None:
    assert plan("m", files({"model_type": "llama"}), None, 8192) is None


def test_a_model_that_writes_text_makes_vectors_when_that_is_configured() -> None:
    assert plan_of(files({"model_type": "llama"}), "last") == EmbeddingPlan("decoder", "last", True, 8192)


def test_a_bare_encoder_is_pooled_by_the_mean_and_normalised() -> None:
    assert plan_of(files(BERT)) == EmbeddingPlan("encoder", "mean", True, 512)


def test_without_a_normalising_module_vectors_keep_their_length() -> None:
    assert not plan_of(files(BERT, modules=MODULES[:2], pooling=MEAN)).normalise


@pytest.mark.parametrize(
    ("pooling", "found"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
    ],
)
def test_pooling_is_read(pooling: dict[str, Any], found: str) -> None:
    assert plan_of(files(BERT, modules=MODULES, pooling=pooling)).pooling == found


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({**BERT, "model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({**BERT, "model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "modernbert", "max_position_embeddings": 8192, "hidden_activation": "gelu"}, 8192),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True, "sliding_window": 512}, 257),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, 8192),
        ({"model_type": "qwen3", "max_position_embeddings": 32768}, 32768),
    ],
)
def test_inputs_are_as_long_as_the_library_computes_rightly(config: dict[str, Any], tokens: int) -> None:
    found = plan_of(files(config, modules=MODULES, pooling=MEAN))
    assert (found.library, found.max_tokens) == ("encoder", tokens)


def test_a_decoder_that_is_a_sentence_transformer_is_computed_as_text_is() -> None:
    found = plan_of(files({"model_type": "mistral"}, modules=MODULES, pooling={"pooling_mode": "lasttoken"}))
    assert (found.library, found.pooling) == ("decoder", "last")


def test_dense_layers_are_computed_where_the_architecture_has_them() -> None:
    config = {"model_type": "gemma3_text", "use_bidirectional_attention": True}
    assert plan_of(files(config, modules=[*MODULES, {"type": "x.Dense"}], pooling=MEAN)).dense


@pytest.mark.parametrize(
    ("given", "pooling", "reason"),
    [
        (files(BERT), "mean", "configure no pooling"),
        (files(BERT, modules=[{"type": "x.LSTM"}]), None, "has a LSTM"),
        (files(BERT, modules=[*MODULES, {"type": "x.Dense"}], pooling=MEAN), None, "Dense layer"),
        (files({"model_type": "own", "auto_map": {"AutoModel": "x"}}, modules=MODULES), None, "code from its own"),
        (files({"model_type": "qwen3"}, modules=MODULES, pooling={}), None, "do not say how it pools"),
        (files(BERT, modules=MODULES, pooling={"pooling_mode": "weightedmean"}), None, "pools by weightedmean"),
        (files(BERT, modules=MODULES, pooling={"pooling_mode": ["cls", "mean"]}), None, "pools by cls and mean"),
        (files({**BERT, "hidden_act": "gelu_new"}), None, "its hidden_act is 'gelu_new'"),
        (files({**BERT, "position_embedding_type": "relative_key"}), None, "its position_embedding_type"),
        (files({**BERT, "is_decoder": True}), None, "its is_decoder is True"),
        (files({"model_type": "modernbert", "hidden_activation": "silu"}), None, "its hidden_activation"),
        (files({"model_type": "gemma3_text"}, modules=MODULES), None, "looks back only"),
        (files({"model_type": "qwen3", "is_causal": False}, modules=MODULES), None, "its is_causal is False"),
        (files({"model_type": "mpnet"}), None, "mpnet is not supported"),
        (files({"model_type": "lfm2"}, modules=MODULES, pooling=MEAN), None, "lfm2 is not supported"),
        (
            files(
                BERT,
                modules=MODULES,
                pooling={**MEAN, "include_prompt": False},
                prompts={"prompts": {"q": "query: "}, "default_prompt_name": "q"},
            ),
            None,
            "leaves the prompt out",
        ),
    ],
)
def test_what_would_be_wrong_is_refused_by_name(given: EmbeddingFiles, pooling: Pooling | None, reason: str) -> None:
    with pytest.raises(ModelLoadError, match="m cannot be used for embeddings: ") as caught:
        plan("m", given, pooling, 8192)
    assert reason in caught.value.message


CLASSIFIER = {**BERT, "architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}


@pytest.mark.parametrize(
    ("config", "sigmoid"),
    [
        (CLASSIFIER, True),
        ({**CLASSIFIER, "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, False),
        ({**CLASSIFIER, "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, False),
        ({**CLASSIFIER, "id2label": None, "num_labels": 1}, True),
    ],
)
def test_a_classifier_of_one_label_is_a_reranker(config: dict[str, Any], *, sigmoid: bool) -> None:
    assert plan_of(files(config)) == EmbeddingPlan("classifier", None, False, 512, sigmoid=sigmoid)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({**CLASSIFIER, "id2label": {"0": "a", "1": "b"}}, "this model gives 2"),
        ({**CLASSIFIER, "model_type": "deberta-v2"}, "deberta-v2 is not supported as a reranker"),
        ({**CLASSIFIER, "sbert_ce_default_activation_function": "torch.nn.Tanh"}, "go through torch.nn.Tanh"),
    ],
)
def test_other_classifiers_are_refused(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        plan("m", files(config), None, 8192)
