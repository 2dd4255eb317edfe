"""Programs that stand in for the worker's Python: they speak just enough of the protocol to misbehave in one way."""

from __future__ import annotations

import sys
from pathlib import Path

_PRELUDE = '''
import json, os, signal, sys, time

fd = int(sys.argv[sys.argv.index("--fd") + 1])
settings = json.loads(sys.argv[sys.argv.index("--settings") + 1])
start = settings["restart_count"] if "restart_count" in settings else 0

def say(data):
    while data:
        data = data[os.write(fd, data):]

def say_json(message):
    say(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\\n")

def say_frame(body):
    say(b"\\xc1" + len(body).to_bytes(4, "big") + body)

def lines():
    pending = b""
    while data := os.read(fd, 65536):
        *whole, pending = (pending + data).split(b"\\n")
        yield from (json.loads(line) for line in whole)

INFO = {
    "version": "0", "mlx_version": "0", "mlx_lm_version": "0", "protocol": "json-rpc-2.0",
    "protocols": ["json-rpc-2.0", "msgpack-frames-1"], "notifications": "msgpack-frames-1", "capabilities": [],
    "mlx_supported": True, "device": "none", "metal": False, "blas": {"name": "", "path": ""},
    "memory": {"rss": 0, "vms": 0, "active": 0, "cache": 0, "peak": 0}, "pid": os.getpid(),
}

messages = lines()

def handshake(**changes):
    request = next(messages)
    say_json({"id": request["id"], "result": {**INFO, **changes}})

def obey():
    """Answer nothing, until told to shut down or left alone."""
    for message in messages:
        if message["method"] == "shutdown":
            sys.exit(0)

'''

GOOD = "handshake()\nobey()\n"


def stand_in(directory: Path, body: str) -> str:
    """An executable that runs `body` after the prelude above; give it as the worker's Python."""
    directory.mkdir(parents=True, exist_ok=True)
    program, script = directory / "worker.py", directory / "python"
    program.write_text(_PRELUDE + body)
    # A shell in between, because a line that begins with #! must not be long.
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{program}" "$@"\n')
    script.chmod(0o755)
    return str(script)
