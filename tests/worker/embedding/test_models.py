"""What embedding models compute, against references that share no code with them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from mlx_lm.utils import load_model

from mlx_serving.errors import ModelLoadError
from mlx_serving.wire.methods import LoadModelParams, Pooling
from mlx_serving.worker.embedding.loader import embedder_loading
from mlx_serving.worker.embedding.model import EmbeddingModel, EncodedInput

from ... import tiny_encoders
from ...reference_encoder import ReferenceEncoder, cosine
from ...tiny_models import make_llama, make_llama4

MINILM = "all-minilm-l6-v2"


def silent(stage: str, done: int, total: int) -> None:
    pass


def unbounded(weights: int) -> None:
    pass


def load(reference: Path | str, pooling: Pooling | None = None) -> EmbeddingModel:
    params = LoadModelParams(model_id=str(reference), pooling=pooling)
    model = loaded(params)
    assert model is not None
    return model


def loaded(params: LoadModelParams) -> EmbeddingModel | None:
    """All slices at once."""
    slices = embedder_loading(params, silent, unbounded)
    while True:
        try:
            aside = next(slices)
        except StopIteration as end:
            return cast("EmbeddingModel | None", end.value)
        assert aside is not None
        aside.work()


def inputs_of(*lengths: int, seed: int = 0) -> list[EncodedInput]:
    """Random bytes between the special tokens."""
    drawn = random.Random(seed)
    return [
        EncodedInput([tiny_encoders.CLS, *(drawn.randrange(256) for _ in range(length - 2)), tiny_encoders.SEP])
        for length in lengths
    ]


MIXED = (3, 40, 7, 300, 12, 3)


def assert_alike(made: npt.ArrayLike, expected: npt.ArrayLike) -> None:
    assert np.allclose(made, expected, atol=2e-4)
    assert all(cosine(one, other) > 0.99999 for one, other in zip(np.array(made), np.array(expected), strict=True))


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("stated", "pooling"),
    [
        ("mean", "mean"),
        ("cls", "cls"),
        ("max", "max"),
        ("lasttoken", "last"),
        ("mean_sqrt_len_tokens", "mean_sqrt_len"),
    ],
)
def test_bert_is_pooled_as_its_files_say(tmp_path: Path, stated: str, pooling: str, *, normalise: bool) -> None:
    directory = tiny_encoders.make_bert(tmp_path / "bert", pooling=stated, normalise=normalise)
    inputs = inputs_of(*MIXED)
    reference = ReferenceEncoder(directory)
    expected = [reference.vector(each.token_ids, pooling, normalise=normalise) for each in inputs]
    model = load(directory)
    assert_alike(model.vectors(inputs), expected)
    facts = model.facts.embedding
    assert facts is not None
    assert (facts.dimensions, facts.pooling, facts.normalised, facts.scores) == (64, pooling, normalise, False)


@pytest.mark.parametrize(
    ("make", "pooling"), [(tiny_encoders.make_xlm_roberta, "mean"), (tiny_encoders.make_modernbert, "cls")]
)
def test_other_encoders_are_computed_as_their_papers_say(
    tmp_path: Path, make: Callable[[Path], Path], pooling: str
) -> None:
    directory = make(tmp_path / "model")
    inputs = inputs_of(*MIXED)
    reference = ReferenceEncoder(directory)
    assert_alike(load(directory).vectors(inputs), [reference.vector(each.token_ids, pooling) for each in inputs])


def last_state(directory: Path, token_ids: list[int]) -> npt.NDArray[np.float64]:
    """By mlx-lm, alone."""
    decoder: Any = load_model(directory)[0]
    state = np.array(decoder.model(mx.array([token_ids]))[0, -1], np.float64)
    return state / np.linalg.norm(state)


def test_a_decoder_made_for_embeddings_pools_its_last_token(tmp_path: Path) -> None:
    directory = tiny_encoders.make_qwen3_embedding(tmp_path / "qwen3")
    inputs = inputs_of(*MIXED)
    assert_alike(load(directory).vectors(inputs), [last_state(directory, each.token_ids) for each in inputs])


def test_a_model_that_writes_text_makes_vectors_when_pooling_is_configured(tmp_path: Path) -> None:
    directory = make_llama(tmp_path / "llama")
    inputs = inputs_of(*MIXED)
    assert_alike(load(directory, "last").vectors(inputs), [last_state(directory, each.token_ids) for each in inputs])
    params = LoadModelParams(model_id=str(directory))
    assert loaded(params) is None


def test_an_architecture_whose_states_are_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="where its architecture keeps the states"):
        load(make_llama4(tmp_path / "llama4"), "mean")


def test_a_reranker_scores_pairs(tmp_path: Path) -> None:
    directory = tiny_encoders.make_reranker(tmp_path / "reranker")
    model, reference = load(directory), ReferenceEncoder(directory)
    pairs = [model.encode(text, "What is it?", None) for text in ("A cat.", "", "It is a rather longer text " * 3)]
    assert pairs[0].types == [0] * 13 + [1] * 7
    logits = np.array([reference.score(each.token_ids, each.types or []) for each in pairs])
    assert np.allclose(model.vectors(pairs)[:, 0], 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_a_broken_directory_is_told(tmp_path: Path) -> None:
    directory = tiny_encoders.make_bert(tmp_path / "bert")
    (directory / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ModelLoadError, match="how it makes embeddings: FileNotFoundError"):
        load(directory)
    (directory / "modules.json").write_text('[{"path": "../elsewhere", "type": "x.Pooling"}]')
    with pytest.raises(ModelLoadError, match="outside of the directory"):
        load(directory)


def test_minilm_knows_what_belongs_together() -> None:
    model = load(MINILM)
    about = ["A cat sits on the mat.", "A kitten is lying on a rug.", "The stock market fell sharply today."]
    cat, kitten, market = model.vectors([model.encode(text, None, None) for text in about])
    assert cosine(cat, kitten) > 0.5 > cosine(cat, market)
