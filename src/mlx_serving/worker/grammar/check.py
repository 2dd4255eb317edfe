"""A process that tries a grammar before the worker takes it in: one that blows up native code takes this one down.

It reads a line for each, `[grammar, schema]` in JSON, the schema null unless the grammar is one's, and answers with a
line: what is wrong as a JSON text, empty if nothing is.
It kills itself when one takes too much time of the processor, and ends when its input does.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
import threading

from llguidance import LLMatcher

from mlx_serving.core.grammar.structure import has_finite_instance
from mlx_serving.worker.grammar.limits import grammar_limits

CPU_SECONDS = 0.75
_MEMORY_BYTES = 2**31
_STACK_BYTES = 2**21  # a quarter of what threads of the worker have


def main() -> None:
    threading.stack_size(_STACK_BYTES)
    checking = threading.Thread(target=_check_all)
    checking.start()
    checking.join()


def _check_all() -> None:
    with contextlib.suppress(ValueError, OSError):  # some systems do not have this limit
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    limits = grammar_limits()
    sys.stdout.write('"ready"\n')
    sys.stdout.flush()
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # nobody handles its signal: it ends the process
        grammar, schema = json.loads(line)
        if schema is not None and not has_finite_instance(schema):
            problem = "Unsatisfiable schema: its $ref leads back to itself without an end"
        else:
            problem = LLMatcher.validate_grammar(grammar, limits=limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(problem) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
