from __future__ import annotations

import asyncio
import errno
import socket

import pytest
import uvloop

from mlx_serving.errors import InvalidConfig
from mlx_serving.server.http.listening import ListenAddress, address_of, listen, with_more_acceptors


async def test_port_0_is_a_free_port_that_is_reported() -> None:
    (listening,) = await listen("127.0.0.1", 0)
    with listening:
        address = address_of(listening)
        assert address.host == "127.0.0.1"
        assert address.port > 0


async def test_a_name_is_listened_on_at_all_its_addresses_with_one_port() -> None:
    sockets = await listen("localhost", 0)
    try:
        assert len({address_of(each).port for each in sockets}) == 1
    finally:
        for each in sockets:
            each.close()


async def test_a_port_in_use_is_said_to_be() -> None:
    (taken,) = await listen("127.0.0.1", 0)
    port = address_of(taken).port
    with taken, pytest.raises(InvalidConfig) as raised:
        await listen("127.0.0.1", port)
    why = "the port is already in use: stop the program that uses it, or choose another port"
    assert raised.value.message == f"Cannot listen on 127.0.0.1, port {port}: {why}"
    assert raised.value.details["issues"] == [{"path": "server.port", "message": why, "value": port}]


@pytest.mark.parametrize(
    ("host", "why"),
    [("host.invalid", "the host is not known"), ("192.0.2.1", "this machine does not have that address")],
)
async def test_a_wrong_host_is_said_to_be(host: str, why: str) -> None:
    with pytest.raises(InvalidConfig, match=why):
        await listen(host, 0)


async def test_one_address_of_a_name_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    async def two_addresses(*_args: object, **_options: object) -> list[object]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("192.0.2.1", 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0)),
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", two_addresses)
    (listening,) = await listen("somewhere", 0)
    with listening:
        assert address_of(listening).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("number", "why"),
    [(errno.EACCES, "ports below 1024"), (errno.EMFILE, "Too many open files")],
)
async def test_what_the_system_refuses_is_explained_and_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, number: int, why: str
) -> None:
    def refuse(_self: socket.socket, _address: object) -> None:
        raise OSError(number, "Too many open files")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(InvalidConfig, match=why):
        await listen("127.0.0.1", 80)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("10.1.2.3", "http://10.1.2.3:8000"),
    ],
)
def test_the_url_is_one_that_reaches_it(host: str, url: str) -> None:
    assert ListenAddress(host, 8000).url == url


def test_many_connections_are_accepted_in_one_turn_of_the_loop() -> None:
    """With a turn for each, clients that have a connection and use it well keep the others out."""

    async def turns_until_accepted(count: int) -> int:
        accepted: list[asyncio.BaseTransport] = []

        class Noting(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                accepted.append(transport)

        listening = await listen("127.0.0.1", 0)
        address = address_of(listening[0])
        loop = asyncio.get_running_loop()
        servers = [await loop.create_server(Noting, sock=each) for each in with_more_acceptors(listening)]
        clients = [socket.create_connection((address.host, address.port)) for _ in range(count)]
        turns = 0
        while len(accepted) < count:
            turns += 1
            await asyncio.sleep(0)
        for each in (*clients, *servers):
            each.close()
        for transport in accepted:
            transport.close()
        return turns

    assert uvloop.run(turns_until_accepted(64)) < 32
