"""A real worker process, driven from the other end of its pipe. Waits end at a deadline, never at a sleep."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from typing_extensions import TypeIs

from mlx_serving.wire.framing import Frame, Line, MessageReader, Oversized
from mlx_serving.wire.notifications import Notification, decode_binary

TIMEOUT_S = 60.0
Message: TypeAlias = dict[str, Any]


class Refused(Exception):
    """An answer with an error."""

    def __init__(self, error: Message) -> None:
        super().__init__(error["message"])
        self.code: int = error["code"]
        self.message: str = error["message"]
        self.type: str = error["data"]["type"]
        self.details: Message = error["data"]["details"]


class _End:
    pass


class WorkerProcess:
    """Start one with `by_hand` or `on_socket`; leaving the block kills what is left of it.

    Messages that a call is not looking for stay for the next one, in the order in which they came.
    """

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket | None) -> None:
        self.process = process
        self._connection = connection
        self._ids = itertools.count(1)
        self._arrived: queue.SimpleQueue[Message | Notification | _End] = queue.SimpleQueue()
        self._unread: list[Message | Notification] = []
        self._ended = False
        self._stderr: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_messages, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @classmethod
    def by_hand(
        cls, cache: Path, settings: Mapping[str, object] | None = None, *, path: Path | None = None
    ) -> WorkerProcess:
        """`path` is put before the places where its modules are looked for."""
        return cls(_spawn(cache, settings, [], path=path), None)

    @classmethod
    def on_socket(cls, cache: Path, settings: Mapping[str, object] | None = None) -> WorkerProcess:
        ours, theirs = socket.socketpair()
        with theirs:
            process = _spawn(cache, settings, ["--fd", str(theirs.fileno())], pass_fds=(theirs.fileno(),))
        return cls(process, ours)

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_input()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(TIMEOUT_S)
        for reader in self._readers:
            reader.join(TIMEOUT_S)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        if self._connection is not None:
            self._connection.close()

    # -- what goes in

    def send_bytes(self, data: bytes) -> None:
        if self._connection is not None:
            self._connection.sendall(data)
            return
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def send(self, method: str, params: Mapping[str, object] | None = None, *, request_id: object = None) -> Any:
        """Write a request and return its id, which is a fresh one unless given."""
        identity = next(self._ids) if request_id is None else request_id
        message: Message = {"jsonrpc": "2.0", "id": identity, "method": method, "params": params or {}}
        self.send_bytes(json.dumps(message).encode() + b"\n")
        return identity

    def close_input(self) -> None:
        assert self.process.stdin is not None
        if not self.process.stdin.closed:
            self.process.stdin.close()
        if self._connection is not None:
            with contextlib.suppress(OSError):  # the other end is gone already
                self._connection.shutdown(socket.SHUT_WR)

    # -- what comes out

    def call(self, method: str, **params: object) -> Message:
        """The result. Raises `Refused`."""
        return self.answer_to(self.send(method, params))

    def refusal(self, method: str, **params: object) -> Refused:
        """The error that must be the answer."""
        try:
            result = self.call(method, **params)
        except Refused as refused:
            return refused
        raise AssertionError(f"{method} was to be refused, but answered {result}")

    def answer_to(self, request_id: object) -> Message:
        answer = self.take(lambda message: "method" not in message and message["id"] == request_id)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer["result"]

    def take(self, wanted: Callable[[Message], bool]) -> Message:
        """The first JSON message that is wanted."""
        return self._take(lambda message: _is_json(message) and wanted(message))

    def take_frame(self, wanted: Callable[[Any], bool]) -> Any:
        """The first binary notification that is wanted."""
        return self._take(lambda message: not _is_json(message) and wanted(message))

    def notifications(self, stream_id: str) -> Iterator[Message]:
        """(method, params) of a stream as {"method", ...params}, up to its last."""
        while True:
            message = self.take(lambda message: message.get("params", {}).get("stream_id") == stream_id)
            yield {"method": message["method"], **message["params"]}
            if message["params"].get("is_final"):
                return

    def text(self, stream_id: str) -> str:
        """All text of a stream, to its end."""
        return "".join(chunk.get("token", "") for chunk in self.notifications(stream_id))

    def generate(self, **params: object) -> str:
        """Start a stream and return its id."""
        return self.call("generate", **params)["stream_id"]

    def start_endless(self, model: Path, stream_id: str, prompt: str = "a") -> None:
        """Start a stream that goes on until it is aborted; `model` is the one that the fixture `endless` gives."""
        self.generate(
            model_id=str(model), prompt=prompt, stream_id=stream_id, max_tokens=900_000, logit_bias={"258": -100}
        )

    def forget(self) -> None:
        """Drop what came before the last answer that was taken and was not looked for."""
        self._unread.clear()

    def drain(self) -> list[Message]:
        """Every JSON message that is left, up to the end of the output."""
        while not self._ended:
            self._receive(time.monotonic() + TIMEOUT_S)
        messages = [message for message in self._unread if _is_json(message)]
        self._unread.clear()
        return messages

    def wait(self) -> int:
        return self.process.wait(TIMEOUT_S)

    @property
    def stderr(self) -> str:
        """Complete once the process has ended."""
        if self.process.poll() is not None:
            self._readers[1].join(TIMEOUT_S)
        return "".join(self._stderr)

    def _take(self, wanted: Callable[[Any], bool]) -> Any:
        deadline = time.monotonic() + TIMEOUT_S
        looked_at = 0
        while True:
            for index in range(looked_at, len(self._unread)):
                if wanted(self._unread[index]):
                    return self._unread.pop(index)
            looked_at = len(self._unread)
            if self._ended:
                raise AssertionError(f"the worker ended before it said what was awaited; stderr: {self.stderr}")
            self._receive(deadline)

    def _receive(self, deadline: float) -> None:
        try:
            message = self._arrived.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise AssertionError(f"nothing for {TIMEOUT_S} s; unread: {self._unread[-5:]}") from None
        if isinstance(message, _End):
            self._ended = True
        else:
            self._unread.append(message)

    def _read_messages(self) -> None:
        reader = MessageReader()
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno() if self._connection is None else self._connection.fileno()
        try:
            while data := os.read(descriptor, 1 << 16):
                for message in reader.feed(data):
                    match message:
                        case Line():
                            self._arrived.put(json.loads(message.data))
                        case Frame():
                            self._arrived.put(decode_binary(message.data))
                        case Oversized():
                            raise AssertionError(f"the worker wrote {message}")
        except ConnectionResetError:
            pass  # killed with our bytes unread
        finally:
            self._arrived.put(_End())

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._stderr.append(line.decode(errors="replace"))


def _is_json(message: Message | Notification) -> TypeIs[Message]:
    return isinstance(message, dict)


def _spawn(
    cache: Path,
    settings: Mapping[str, object] | None,
    arguments: list[str],
    *,
    pass_fds: tuple[int, ...] = (),
    path: Path | None = None,
) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLX_SERVING_")}
    environment |= {"MLX_SERVING_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.Popen(
        [sys.executable, "-m", "mlx_serving.worker", *arguments, "--settings", json.dumps(settings or {})],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        pass_fds=pass_fds,
    )
