"""`mlx-serving`: one verb a module, and only the module of the verb that was asked for is imported."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from importlib import import_module

from mlx_serving.errors import EngineError, InvalidConfig, InvalidRequest

_VERBS = {
    "serve": "serve models over HTTP: OpenAI's API on 127.0.0.1:8000",
    "generate": "print one answer",
    "chat": "talk to a model in the terminal",
    "pull": "download or convert a model, bring it up to date, and verify it",
    "models": "list, pull, verify, remove models; tell about one",
    "alias": "move a name from one model to another, in a server that runs",
    "bench": "measure throughput and latency, of ourselves and of other servers",
    "cache": "what the prefix cache keeps on disk; clear it",
    "keys": "make, list and remove API keys with limits",
    "hardware": "tell what this machine is made of, and which settings and models suit it",
    "doctor": "check this machine and this installation",
    "config": "show, check, describe the configuration",
}
_EXAMPLES = """\
examples:
  mlx-serving serve
  mlx-serving serve --model mlx-community/Qwen3-4B-4bit --port 9000
  mlx-serving generate "What is the capital of France?"
  mlx-serving models list

mlx-serving VERB --help tells more about a verb.
"""

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the result is the exit status: 0 good, 1 failed, 2 wrong usage or configuration, 130 Ctrl-C.

    `serve` has more of them: its epilog lists all.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:  # closed by whoever started us
                # While what goes wrong can still be told: at exit, Python would tell it in its own way.
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; Python must not try to flush it again at exit.
        sys.stdout = None
        return 0
    except OSError as error:
        if error.errno not in _FULL:
            raise
        sys.stdout = None
        _complain(f"the output cannot be written: {error.strerror}")
        return EXIT_FAILURE


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in _VERBS:
        return _without_verb(arguments)
    verb = arguments[0]
    module = import_module(f"mlx_serving.cli.{verb}")
    parser = argparse.ArgumentParser(
        prog=f"mlx-serving {verb}",
        description=_description(module.__doc__ or ""),
        epilog=getattr(module, "EPILOG", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    try:
        return module.run(parser.parse_args(arguments[1:]))
    except InvalidConfig as error:
        from mlx_serving.cli.config_arguments import explain

        _complain(explain(error) if "issues" in error.details else error.message)
        return EXIT_USAGE
    except InvalidRequest as error:
        _complain(error.message)
        return EXIT_USAGE
    except EngineError as error:
        _complain(error.message, error.details.get("advice"), error.details.get("stderr_tail"))
        return EXIT_FAILURE


def _description(docstring: str) -> str:
    """What follows the verb's name in its module's docstring, as a sentence of its own."""
    text = docstring.partition(":")[2].strip()
    return text[:1].upper() + text[1:]


def _without_verb(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="mlx-serving",
        usage="mlx-serving VERB [options]",
        description="The LLM serving engine for Apple Silicon that never drops a request.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    for name, summary in _VERBS.items():
        verbs.add_parser(name, help=summary)
    if arguments == ["--version"]:
        from importlib.metadata import version

        print(f"mlx-serving {version('mlx-serving')}")
        return 0
    if arguments and not arguments[0].startswith("-"):
        from mlx_serving.core.suggest import did_you_mean

        hint = did_you_mean(arguments[0], _VERBS)
        _complain(f"there is no verb {arguments[0]!r}" + (f"; did you mean {hint}?" if hint else ""))
        sys.stderr.write(f"verbs: {', '.join(_VERBS)}\n")
        return EXIT_USAGE
    parser.parse_args(arguments)
    parser.print_help()
    return 0 if not arguments else EXIT_USAGE


def _complain(message: str, *more: object) -> None:
    sys.stderr.write(f"mlx-serving: {message}\n")
    for text in more:
        if text:
            sys.stderr.write(f"{text}\n")
