"""Whether the images of an architecture can be computed one by one, found by trying it with one."""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image as PillowImage

from mlx_serving.core.generation import ChatPrompt
from mlx_serving.core.images.image import Image
from mlx_serving.worker.tokenizing import PromptTokenizer
from mlx_serving.worker.vision.architecture import VisionText

_SIDE = 64


def why_blind(model: VisionText, tokenizer: PromptTokenizer) -> str | None:
    """Why a model takes no images; None if it does."""
    messages = ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]},)
    try:
        model.try_images(tokenizer.prepare(ChatPrompt(messages, images=(_image(),))))
    except Exception as error:  # noqa: BLE001  whatever an architecture raises here, it says that it cannot
        return f"its images cannot be computed here: {error}"
    return None


def _image() -> Image:
    """A picture of a gradient."""
    across = np.linspace(0, 255, _SIDE, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(across[None], across[:, None], np.uint8(128)), axis=-1)
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, "PNG")
    return Image(file.getvalue(), hashlib.sha256(pixels.tobytes()).hexdigest(), _SIDE, _SIDE)
