"""Vision-language models in the test's own process, pictures for them, and mlx-vlm itself to compare with."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import mlx.core as mx
import numpy as np
from PIL import Image as PillowImage

from mlx_serving.core.generation import ChatPrompt, SamplingParams
from mlx_serving.core.images.image import Image, ImageDetail
from mlx_serving.core.prefix.index import PrefixCachePolicy
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.wire.methods import KnownCapabilities
from mlx_serving.worker.assemble import make_runner
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.vision.architecture import VisionText
from mlx_serving.worker.vision.features import FeatureCache
from mlx_serving.worker.vision.pictures import Prepared

from ... import tiny_vision_models
from ...tiny_vision_models import Family
from ..bench import POLICY, Bench, Stream, load

Turn: TypeAlias = Sequence["str | Image"]
"""Texts and pictures of one message."""

MARGIN = 2e-3
"""Greedy texts are compared only where the likeliest token is this much likelier than the next, in log-probability."""


@cache
def picture(number: int, width: int = 70, height: int = 60, detail: ImageDetail = "auto") -> Image:
    """A PNG of random squares."""
    drawn = np.random.default_rng(number).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    PillowImage.fromarray(drawn).resize((width, height), PillowImage.Resampling.NEAREST).save(file, "PNG")
    digest = hashlib.sha256(f"{number} {width} {height} {detail}".encode()).hexdigest()
    return Image(file.getvalue(), digest, width, height, detail)


def chat(*turns: Turn) -> ChatPrompt:
    """Messages of the user and the assistant in turn."""
    messages: list[dict[str, object]] = []
    images: list[Image] = []
    for number, turn in enumerate(turns):
        parts: list[dict[str, object]] = []
        for part in turn:
            if isinstance(part, Image):
                images.append(part)
                parts.append({"type": "image"})
            else:
                parts.append({"type": "text", "text": part})
        content = parts if any(isinstance(part, Image) for part in turn) else "".join(str(part) for part in turn)
        messages.append({"role": "assistant" if number % 2 else "user", "content": content})
    return ChatPrompt(tuple(messages), images=tuple(images))


def prepared(model: LoadedModel, prompt: ChatPrompt) -> Prepared:
    return model.tokenizer.prepare(prompt)


class VisionBench(Bench):
    def __init__(
        self,
        directory: Path,
        policy: SchedulerPolicy = POLICY,
        *,
        prefix_policy: PrefixCachePolicy | None = None,
        known: KnownCapabilities | None = None,
    ) -> None:
        features = FeatureCache()
        loaded = load(directory, known=known, make_runner=partial(make_runner, features))
        super().__init__(loaded, policy, prefix_policy=prefix_policy, features=features)

    def ask(self, stream_id: str, prompt: ChatPrompt, params: SamplingParams | None = None, **terms: Any) -> Stream:
        ready = prepared(self.model, prompt)
        return self.start(stream_id, ready.token_ids, params, pictures=ready.pictures, **terms)

    def answer(self, prompt: ChatPrompt, params: SamplingParams | None = None) -> list[int]:
        """One stream, alone, to its end."""
        stream = self.ask("alone", prompt, params)
        self.finish()
        del self.streams["alone"]
        assert stream.completed
        return stream.tokens

    @property
    def encoded(self) -> int:
        """Images encoded so far."""
        return self.scheduler.load().done.encoded_images


class Reference:
    """mlx-vlm itself, on a copy of the model of its own."""

    def __init__(self, directory: Path) -> None:
        import mlx_vlm.utils as library
        from transformers import AutoProcessor

        self.model: Any = cast(Any, library).load_model(directory)
        self.processor: Any = cast(Any, AutoProcessor).from_pretrained(str(directory), trust_remote_code=False)

    def inputs(self, text: str, images: Sequence[Image]) -> dict[str, mx.array]:
        """What its processor makes of a whole prompt."""
        opened = [PillowImage.open(io.BytesIO(image.data)) for image in images]
        made = self.processor(images=opened or None, text=[text])
        return {name: _arrays(made[name]) for name in made}

    def tokens(self, inputs: dict[str, mx.array], max_tokens: int) -> tuple[list[int], float]:
        """Greedy tokens, and by how much the closest of them was likelier than the next one."""
        from mlx_vlm.generate import ar

        rest = dict(inputs)
        ids, mask, pixels = rest.pop("input_ids"), rest.pop("attention_mask"), rest.pop("pixel_values", None)
        tokens: list[int] = []
        margin = float("inf")
        steps = cast(Any, ar).generate_step(
            ids, self.model, pixels, mask, max_tokens=max_tokens, temperature=0.0, **rest
        )
        for token, logprobs in steps:
            tokens.append(int(token))
            first, second = sorted(np.array(logprobs).reshape(-1).tolist())[:-3:-1]
            margin = min(margin, first - second)
        return tokens[:max_tokens], margin


def _arrays(value: object) -> Any:
    """Images of several sizes are a list."""
    if isinstance(value, list) and isinstance(value[0], np.ndarray):
        return [mx.array(one) for one in cast("list[Any]", value)]
    return mx.array(np.asarray(value))


def make(family: Family, directory: Path) -> Path:
    if family == "phi3_v":
        tiny_vision_models.narrow_phi3_v()
    return tiny_vision_models.make(family, directory)


def sight(model: LoadedModel) -> VisionText:
    assert isinstance(model.model, VisionText)
    return model.model
