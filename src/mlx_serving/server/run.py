"""Serving the application until it is told to stop.

    listening ──first signal──▶ draining ──nothing in flight──▶ stopped, exit code 0
                                    ├──drain_timeout_s──▶ stopped, exit code 75: some were cut off, or left
                                    └──second signal──▶ stopped, exit code 128 + the signal's number

While draining, new generations are refused with 503 and /health/ready answers 503, so that balancers look elsewhere;
the port is closed when the last generation has ended. What is cut off by the time limit or the second signal ends
with an error, which says where the rest will be if it was left for the next start (`handover.py`).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from socket import socket

import uvicorn

from mlx_serving.errors import EngineClosed
from mlx_serving.server.app import ServerApp
from mlx_serving.server.http.certificate import check_certificate
from mlx_serving.server.http.http_protocol import BoundedHttpProtocol
from mlx_serving.server.http.listening import ListenAddress, address_of, listen, with_more_acceptors
from mlx_serving.server.resume.handover import resume_path
from mlx_serving.server.websocket.protocol import BoundedWebSocketProtocol
from mlx_serving.telemetry.logger import get_logger

_log = get_logger("mlx_serving.server")

EXIT_UNFINISHED = 75
"""The exit code of a server that cut requests off or left them for the next start: sysexits.h calls it TEMPFAIL, and so
does systemd."""

# Longer than the pools of clients keep a connection, so that they never send into one that is being closed.
_KEEP_ALIVE_S = 75
# For the answers that are no generations: bodies half read, a model that is being loaded.
_LAST_ANSWERS_S = 5

OnStarted = Callable[[Sequence[ListenAddress]], None]


class HttpServer:
    """One listening server. Needs no signals: `stop` is what a signal calls."""

    def __init__(self, app: ServerApp, *, on_started: OnStarted) -> None:
        self._app = app
        self._on_started = on_started
        self._draining: asyncio.Task[None] | None = None
        self._exit_code = 0
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                http=BoundedHttpProtocol,
                ws=BoundedWebSocketProtocol,
                ws_max_size=app.settings.max_body_bytes,
                # A client that does not read for a while answers no ping; it may.
                ws_ping_timeout=None,
                lifespan="off",
                log_config=None,
                # The application logs its own requests and defects; what remains is noise about broken clients.
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_LAST_ANSWERS_S,
                ssl_certfile=app.settings.tls_cert,
                ssl_keyfile=app.settings.tls_key,
            )
        )

    async def run(self, host: str, port: int) -> int:
        """Serve until stopped; returns the exit code. Raises `InvalidConfig` when it cannot listen there, and for a
        certificate that it cannot use."""
        settings = self._app.settings
        check_certificate(settings.tls_cert, settings.tls_key)
        listening = await listen(host, port)
        scheme = "http" if settings.tls_cert is None else "https"
        addresses = [address_of(each, scheme) for each in listening]
        sockets = with_more_acceptors(listening)
        self._uvicorn.when_started = lambda: self._on_started(addresses)
        try:
            await self._uvicorn.serve(sockets)
        except asyncio.CancelledError:
            self._end_all()
            if self._uvicorn.started:
                await self._uvicorn.shutdown(sockets)
            raise
        finally:
            if self._draining is not None:
                self._draining.cancel()
        return self._exit_code

    def stop(self, signum: int) -> None:
        """The first call drains, the second ends everything at once."""
        if self._draining is None:
            _log.info("draining", in_flight=len(self._app.in_flight), timeout_s=self._app.settings.drain_timeout_s)
            self._draining = asyncio.create_task(self._drain())
        else:
            _log.warning("stopping at once", in_flight=len(self._app.in_flight))
            self._draining.cancel()
            self._exit_code = 128 + signum
            self._end_all()

    async def _drain(self) -> None:
        in_flight = self._app.in_flight
        in_flight.close()
        cut_off = 0
        try:
            async with asyncio.timeout(self._app.settings.drain_timeout_s):
                await in_flight.wait_idle()
        except TimeoutError:
            cut_off = len(in_flight)
            _log.warning("drain timed out", cut_off=cut_off, exit_code=EXIT_UNFINISHED)
        self._cut_off()
        handover = self._app.handover
        if cut_off or (handover is not None and handover.left_unfinished):
            self._exit_code = EXIT_UNFINISHED
        self._uvicorn.should_exit = True

    def _cut_off(self) -> None:
        """End what is running; whoever is to finish it gets it as it is at this moment."""
        left = frozenset[str]() if self._app.handover is None else self._app.handover.leave()
        self._app.in_flight.interrupt_all(lambda name: _stopped(name if name in left else None))

    def _end_all(self) -> None:
        self._app.in_flight.close()
        self._cut_off()
        self._uvicorn.should_exit = True
        self._uvicorn.force_exit = True


async def serve(app: ServerApp, host: str, port: int, *, on_started: OnStarted) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code of the process.

    `on_started` is called once, with the addresses, when connections are accepted; port 0 is a free one. Must run in
    the main thread, whose handlers for the two signals are its own meanwhile. Raises `InvalidConfig` when it cannot
    listen there.
    """
    server = HttpServer(app, on_started=on_started)
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for each in signals:
        loop.add_signal_handler(each, server.stop, each)
    try:
        return await server.run(host, port)
    finally:
        for each in signals:
            loop.remove_signal_handler(each)


def _stopped(left: str | None) -> EngineClosed:
    """`left` is the id of an answer that the next start will finish."""
    if left is None:
        return EngineClosed("The server was stopped before this was finished; send the request again")
    path = resume_path(left)
    return EngineClosed(
        f"The server was stopped before this was finished. Its next start goes on with it: GET {path}",
        resume={"id": left, "path": path},
    )


class _Uvicorn(uvicorn.Server):
    """uvicorn's server without its signal handling, that tells when it listens."""

    when_started: Callable[[], None]

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        self.when_started()
