"""The verb `chat`: talk to a model in the terminal."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from mlx_serving.cli.draft_models import add_draft_arguments, serving_draft
from mlx_serving.cli.model_arguments import add_model_arguments, config_from, log_for_debugging, sampling_from
from mlx_serving.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlx_serving.core.generation import SamplingParams
    from mlx_serving.facade.sync import SyncEngine

EPILOG = """\
commands in the chat: /clear forgets the conversation, /exit (or Ctrl-D) leaves; Ctrl-C stops an answer

example:
  mlx-serving chat --system "You are brief." --temperature 0.5
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", metavar="TEXT", help="a system message before the conversation")
    add_draft_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    config, draft = serving_draft(config_from(args), args.draft_model)
    sampling = sampling_from(args)

    from mlx_serving.cli.progress import preparing
    from mlx_serving.facade.sync import SyncEngine

    log_for_debugging(config)
    asyncio.run(preparing(config))
    model = config.models.default
    # The engine lives in a thread of its own, so that this one can wait for the keyboard, and hear Ctrl-C.
    with SyncEngine(config.model_copy(update={"models": config.models})) as engine:
        engine.generate(
            "Hello", model=model, max_tokens=1, draft_model=draft
        )  # loads it, and the first answer pays for nothing
        if sys.stdin.isatty():
            print(f"{model} is ready. /exit or Ctrl-D leaves, /clear starts over.")
        _converse(engine, model, args.system, sampling, draft)
    return 0


def _converse(engine: SyncEngine, model: str, system: str | None, sampling: SamplingParams, draft: str | None) -> None:
    opening = [] if system is None else [_message("system", system)]
    messages = list(opening)
    for line in _lines():
        match line.strip():
            case "":
                continue
            case "/exit":
                return
            case "/clear":
                messages = list(opening)
            case command if command.startswith("/") and command[1:].isalpha():
                print(f"there is no {command}: /clear starts over, /exit leaves")
            case _:
                asked = [*messages, _message("user", line)]
                answer = _answer(engine, model, asked, sampling, draft)
                if answer:  # else the conversation goes on as if nothing had been asked
                    messages = [*asked, _message("assistant", answer)]


def _message(role: str, content: str) -> dict[str, object]:
    return {"role": role, "content": content}


def _lines() -> Iterator[str]:
    """What is typed, or comes through a pipe, until its end."""
    with contextlib.suppress(ImportError):  # not every Python is built with it
        import_module("readline")  # gives `input` arrow keys and a history
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            if sys.stdin.isatty():
                print()
            return


def _answer(
    engine: SyncEngine,
    model: str,
    messages: list[dict[str, object]],
    sampling: SamplingParams,
    draft: str | None,
) -> str:
    """Print the answer as it comes. Ctrl-C ends it, and what came so far counts."""
    pieces: list[str] = []
    chosen = {name: getattr(sampling, name) for name in ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")}
    try:
        for piece in engine.stream(messages, model=model, draft_model=draft, **chosen):
            pieces.append(piece)
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pass
    except EngineError as error:
        print()
        sys.stdout.flush()
        print(f"mlx-serving: {error.message}", file=sys.stderr)
        return "".join(pieces)
    print()
    return "".join(pieces)
