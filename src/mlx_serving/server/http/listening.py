"""Sockets to listen on, and what is wrong when there are none."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_serving.errors import InvalidConfig

_BACKLOG = 2048
_ACCEPTED_AT_ONCE = 16
_REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  every interface, seen from this machine
_UNAVAILABLE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


@dataclass(frozen=True, slots=True)
class ListenAddress:
    host: str
    port: int
    scheme: str = "http"

    @property
    def url(self) -> str:
        """Where a client on this machine reaches it."""
        host = _REACHED_AT.get(self.host, self.host)
        return f"{self.scheme}://[{host}]:{self.port}" if ":" in host else f"{self.scheme}://{host}:{self.port}"


async def listen(host: str, port: int) -> Sequence[socket.socket]:
    """Listening sockets, one for each address of `host`. With port 0 all get the same free port.

    Raises `InvalidConfig` for a host that is not known or not this machine's, and for a port that is taken or reserved.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise _cannot(host, port, "server.host", f"the host is not known ({error.strerror})") from None
    sockets: list[socket.socket] = []
    unavailable: OSError | None = None
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            chosen = sockets[0].getsockname()[1] if sockets else port
            try:
                sockets.append(_listening(family, (str(address[0]), chosen, *address[2:])))
            except OSError as error:
                # `localhost` also names ::1 on machines that have no IPv6: one address is enough.
                if error.errno not in _UNAVAILABLE:
                    raise
                unavailable = error
    except OSError as error:
        _close(sockets)
        raise _explained(host, port, error) from None
    if not sockets and unavailable is not None:
        raise _explained(host, port, unavailable)
    return sockets


def with_more_acceptors(listening: Sequence[socket.socket]) -> list[socket.socket]:
    """The sockets, and so many copies of each that as many connections are accepted in one turn of the event loop.

    libuv, under uvloop, accepts one a turn from each socket. When there is much to do, turns are long: the clients who
    have a connection would then keep those out who come, until these give up or the load is over.
    """
    return [*listening, *(each.dup() for each in listening for _ in range(_ACCEPTED_AT_ONCE - 1))]


def address_of(listening: socket.socket, scheme: str = "http") -> ListenAddress:
    host, port = listening.getsockname()[:2]
    return ListenAddress(str(host), int(port), scheme)


def _listening(family: socket.AddressFamily, address: tuple[str | int, ...]) -> socket.socket:
    created = socket.socket(family, socket.SOCK_STREAM)
    try:
        created.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            created.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        created.bind(address)
        # Two sockets may share an address until one of them listens.
        created.listen(_BACKLOG)
        created.setblocking(False)
    except OSError:
        created.close()
        raise
    return created


def _close(sockets: Sequence[socket.socket]) -> None:
    for each in sockets:
        each.close()


def _explained(host: str, port: int, error: OSError) -> InvalidConfig:
    match error.errno:
        case errno.EADDRINUSE:
            why = "the port is already in use: stop the program that uses it, or choose another port"
            return _cannot(host, port, "server.port", why)
        case errno.EACCES:
            return _cannot(host, port, "server.port", "ports below 1024 are the superuser's: choose another port")
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return _cannot(host, port, "server.host", "this machine does not have that address")
        case _:
            return _cannot(host, port, "server.host", error.strerror or str(error))


def _cannot(host: str, port: int, path: str, why: str) -> InvalidConfig:
    message = f"Cannot listen on {host}, port {port}: {why}"
    value = port if path == "server.port" else host
    return InvalidConfig(message, issues=[{"path": path, "message": why, "value": value}])
