"""How long an image keeps others waiting, and whether anybody's answer changes for it.

Four streams about images of their own and four of text run on one vision-language model, first each alone and then
together: the texts must be equal. The longest gap of the text streams while images are encoded is printed as a ratio to
the time that encoding one image takes, and to the longest gap of the same text streams without any images beside them.

    python benchmarks/vision.py [--tokens N] [--side PIXELS] [--layers N]

The model is made by the script: a random Qwen2-VL whose encoder is `--layers` deep, so that an image costs many steps.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests import tiny_vision_models

from mlx_serving.assembly import build
from mlx_serving.config.schema import Config
from mlx_serving.core.generation import ChatPrompt, GenerationRequest, SamplingParams
from mlx_serving.core.images.image import Image
from mlx_serving.core.speculation.request import Speculation
from mlx_serving.engine.engine_core import EngineCore

MODEL = "m"
STREAMS = 4
_TEXT_PART = 20  # a text has so many times the tokens of an answer about an image: it is still going on then


@dataclass(slots=True)
class Heard:
    """What a stream has given, and when."""

    text: str = ""
    times: list[float] = field(default_factory=list[float])

    def longest_gap(self, since: float, until: float) -> float:
        times = [one for one in self.times if since <= one <= until]
        return max((later - earlier for earlier, later in pairwise(times)), default=0.0)


def image(number: int, side: int) -> Image:
    drawn = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    PillowImage.fromarray(drawn).resize((side, side), PillowImage.Resampling.NEAREST).save(file, "PNG")
    return Image(file.getvalue(), hashlib.sha256(file.getvalue()).hexdigest(), side, side)


def request(name: str, content: object, images: tuple[Image, ...], tokens: int) -> GenerationRequest:
    never = dict.fromkeys(range(256, 263), -100.0)
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, logit_bias=never)
    prompt = ChatPrompt(({"role": "user", "content": content},), images=images)
    return GenerationRequest(name, MODEL, prompt, sampling, speculation=Speculation("off"))


async def hear(core: EngineCore, asked: GenerationRequest, begun: asyncio.Event | None = None) -> Heard:
    heard = Heard()
    async with core.generate(asked) as deltas:
        async for delta in deltas:
            heard.text += delta.text
            if delta.token_ids:
                heard.times.append(time.perf_counter())
            if begun is not None and len(heard.times) == 8:
                begun.set()
    return heard


async def together(
    core: EngineCore, texts: Sequence[GenerationRequest], shown: Sequence[GenerationRequest]
) -> tuple[list[Heard], list[Heard], float, float]:
    """Text streams, and those about images when the others have begun. Also when those came, and when the last of them
    had its first token."""
    begun = [asyncio.Event() for _ in texts]
    text = [asyncio.create_task(hear(core, one, event)) for one, event in zip(texts, begun, strict=True)]
    for event in begun:
        await event.wait()
    since = time.perf_counter()
    pictured = [asyncio.create_task(hear(core, one)) for one in shown]
    heard = [await task for task in pictured]
    until = max((one.times[0] for one in heard), default=since + 1.0)
    return [await task for task in text], heard, since, until


async def encoded(core: EngineCore) -> tuple[float, int]:
    """Seconds that encoding took so far, and images."""
    runtime = (await core.telemetry()).runtime
    assert runtime is not None
    done = runtime.scheduler.done
    return done.encode_s, done.encoded_images


async def measure(directory: Path, tokens: int, side: int) -> None:
    served = {"model": str(directory), "name": MODEL}
    core = build(Config.model_validate({"models": {"served": [served]}, "prefix_cache": {"enabled": False}}))
    await core.start()
    try:
        places = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
        texts = [request(f"t{number}", f"Text {number}", (), _TEXT_PART * tokens) for number in range(STREAMS)]
        shown = [request(f"i{number}", places, (image(number, side),), tokens) for number in range(STREAMS)]
        alone = [(await hear(core, one)).text for one in (*texts, *shown)]
        # The first use of every shape compiles it.
        warm = [_named(request(f"i{n}", places, (image(200 + n, side),), tokens), "w") for n in range(STREAMS)]
        await together(core, [_named(one, "v") for one in texts], warm)
        quiet, *_ = await together(core, [_named(one, "q") for one in texts], [])
        fresh = [_named(request(f"i{n}", places, (image(100 + n, side),), tokens), "f") for n in range(STREAMS)]
        before = await encoded(core)
        heard, _, since, until = await together(core, [_named(one, "b") for one in texts], fresh)
        seconds, images = (now - then for now, then in zip(await encoded(core), before, strict=True))
        one_image = seconds / images
        crowded = await asyncio.gather(*(hear(core, _named(one, "c")) for one in (*texts, *shown)))
    finally:
        await core.stop()
    equal = sum(one == other.text for one, other in zip(alone, crowded, strict=True))
    gap = max(one.longest_gap(since, until) for one in heard)
    calm = max(one.longest_gap(one.times[0], one.times[-1]) for one in quiet)
    print(f"texts equal to those alone: {equal} of {len(alone)}")
    print(f"encoding one image of {side} x {side}: {one_image * 1000:.0f} ms")
    print(f"longest gap of {STREAMS} text streams while {STREAMS} images are encoded: {gap * 1000:.0f} ms")
    print(f"  ratio to encoding one image: {gap / one_image:.2f}")
    print(f"  ratio to their longest gap without images ({calm * 1000:.0f} ms): {gap / calm:.2f}")


def _named(asked: GenerationRequest, prefix: str) -> GenerationRequest:
    return replace(asked, request_id=f"{prefix}-{asked.request_id}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100, help="of each answer about an image; texts have 20 times")
    parser.add_argument("--side", type=int, default=448, help="of each image, in pixels")
    parser.add_argument("--layers", type=int, default=8, help="of the encoder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        most = arguments.side**2
        tiny_vision_models.make("qwen2_vl", Path(folder), encoder_layers=arguments.layers, max_pixels=most)
        asyncio.run(measure(Path(folder), arguments.tokens, arguments.side))


if __name__ == "__main__":
    main()
