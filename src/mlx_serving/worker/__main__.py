"""`python -m mlx_serving.worker`: serve JSON-RPC on stdin and stdout, or on an inherited socket.

    printf '%s\\n' '{"jsonrpc":"2.0","id":1,"method":"load_model","params":{"model_id":"smollm2-135m"}}' \\
      '{"jsonrpc":"2.0","id":2,"method":"generate","params":{"model_id":"smollm2-135m","prompt":"Hello"}}' \\
      | python -m mlx_serving.worker
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback

from mlx_serving.catalog.store import cache_directory
from mlx_serving.errors import EngineError
from mlx_serving.machine import blas
from mlx_serving.wire import settings as wire_settings
from mlx_serving.worker import exports

_LAST_WORDS_S = 5.0
_LAST_WRITES_S = 2.0


def _claim_stdout() -> int:
    """Keep fd 1 for ourselves and point it at stderr: whatever a library prints cannot touch the protocol."""
    claimed = os.dup(1)
    os.dup2(2, 1)
    return claimed


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mlx_serving.worker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fd", type=int, help="an inherited socket to speak on, instead of stdin and stdout")
    parser.add_argument("--settings", default="{}", help="a JSON object; mlx_serving.wire.settings has its fields")
    arguments = parser.parse_args()
    # CPython sleeps through a Ctrl-C that comes just as it begins to wait. There is nothing to save: end at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    by_hand = arguments.fd is None
    settings = wire_settings.decode(arguments.settings)
    blas_in_use = blas.settle(cache_directory() / "blas")
    claimed = _claim_stdout()
    read_fd, write_fd = (0, claimed) if by_hand else (arguments.fd, arguments.fd)

    exports.remember(cache_directory() / "exports")
    # From here on MLX: on this thread, and on no other.
    from mlx_serving.worker import assemble, pipe

    worker = assemble.assemble(settings, write_fd, blas_in_use, linger=by_hand)

    def deliver(command: pipe.Message | pipe.EndOfInput) -> None:
        worker.inbox.put(command)
        if isinstance(command, pipe.EndOfInput) and not by_hand:
            # The parent is gone. A step that never returns must not leave an orphan that holds the device.
            timer = threading.Timer(_LAST_WORDS_S, os._exit, (0,))
            timer.daemon = True
            timer.start()

    pipe.start_reader(read_fd, settings.max_message_bytes, deliver)
    if by_hand:
        sys.stderr.write("MLX Runtime ready\n")  # the ancestor's word to a person at the terminal
        sys.stderr.flush()
    worker.loop.run(worker.handlers)
    if worker.disk is not None:
        worker.disk.flush(_LAST_WRITES_S)
    worker.outbox.flush(_LAST_WORDS_S)
    return 0


if __name__ == "__main__":
    try:
        status = main()
    except EngineError as error:
        sys.stderr.write(f"{error.code}: {error.message}\n")
        status = 2
    except Exception:  # noqa: BLE001  the supervisor reads the reason from stderr
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    # Not sys.exit: threads of ours are blocked in system calls, and native teardown has nothing to save.
    os._exit(status)
