"""The verb `generate`: print one answer, as it comes."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import cast

from mlx_serving.cli.draft_models import add_draft_arguments, serving_draft
from mlx_serving.cli.model_arguments import add_model_arguments, config_from, running_engine, sampling_from
from mlx_serving.errors import InvalidRequest

EPILOG = """\
examples:
  mlx-serving generate "What is the capital of France?"
  echo "Summarise: ..." | mlx-serving generate - --max-tokens 100
  mlx-serving generate --model ./a-vision-model --image photo.jpg "What is this?"
  mlx-serving generate --model ./large --draft-model ./small "Write a poem." --json
  mlx-serving generate --raw "Once upon a time" --temperature 0.8 --seed 7 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to say to the model; - reads it from stdin")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="PATH",
        help="a picture before the prompt: a file, or a URL where images.fetch is on; repeatable",
    )
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    parser.add_argument("--json", action="store_true", help="print one JSON object with text, usage and timing")
    add_draft_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    if not prompt:
        raise InvalidRequest("the prompt is empty", field="prompt")
    for name, text in (("the prompt", prompt), ("--system", args.system or ""), ("--stop", "".join(args.stop))):
        if _is_broken(text):
            raise InvalidRequest(f"{name} is not UTF-8 text")
    if args.raw and args.system is not None:
        raise InvalidRequest("--system needs the chat template that --raw leaves out", field="system")
    if args.raw and args.image:
        raise InvalidRequest("--image needs the chat template that --raw leaves out", field="image")
    return asyncio.run(_generate(args, prompt))


def _is_broken(text: str) -> bool:
    """Whether it came from bytes that are no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


async def _generate(args: argparse.Namespace, prompt: str) -> int:
    from mlx_serving.core.generation import ChatPrompt, GenerationRequest, TextPrompt
    from mlx_serving.core.images.image import ImageSource
    from mlx_serving.core.images.parts import Pictures
    from mlx_serving.core.speculation.request import Speculation

    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    pictures = Pictures()
    named = [
        ImageSource(path, local=True, field=f"--image (number {number})")
        for number, path in enumerate(cast("list[str]", args.image), 1)
    ]
    messages = (*system, {"role": "user", "content": pictures.content([*named, prompt])})
    config, draft = serving_draft(config_from(args), args.draft_model)
    request = GenerationRequest(
        request_id="generate",
        model=config.models.default,
        prompt=TextPrompt(prompt) if args.raw else ChatPrompt(messages, sources=pictures.sources),
        sampling=sampling_from(args),
        speculation=Speculation(draft_model=draft),
    )
    pieces: list[str] = []
    async with running_engine(config) as engine, engine.generate(request) as deltas:
        async for delta in deltas:
            pieces.append(delta.text)
            if not args.json:
                sys.stdout.write(delta.text)
                sys.stdout.flush()
            elif delta.finish_reason is not None and delta.stats is not None:
                _print_json(request.model, "".join(pieces), delta.finish_reason.value, delta.stats)
    if not args.json:
        sys.stdout.write("\n")
    return 0


def _print_json(model: str, text: str, finish_reason: str, stats: object) -> None:
    import json
    from dataclasses import asdict

    facts = asdict(stats)  # pyright: ignore[reportArgumentType]  a GenerationStats, imported late
    answer = {"model": model, "text": text, "finish_reason": finish_reason, "stats": facts}
    print(json.dumps(answer, ensure_ascii=False))
