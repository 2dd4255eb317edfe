from __future__ import annotations

import asyncio
import gzip
import ssl
import subprocess
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mlx_serving.core.images.addresses import FetchPolicy
from mlx_serving.core.images.rules import ImagePolicy
from mlx_serving.errors import ImageFetchFailed, InvalidImageInput, UnsupportedImageFormat
from mlx_serving.images.fetching import Fetcher, system_addresses

from ..pictures import png
from ..web_pages import HANGING, Names, Web, answer, redirect, web

WHERE = "messages[0].content[0].image_url.url"
SECRET = "?token=secret"


@pytest_asyncio.fixture(loop_scope="session")
async def pages() -> AsyncGenerator[Web]:
    async with web() as served:
        yield served


def policy(pages: Web, **fetch: Any) -> ImagePolicy:
    """This machine may be fetched from, but at one address only."""
    allowed = FetchPolicy(
        enabled=True, allowed_ports=f"80 443 {pages.port}", allowed_networks="127.0.0.1/32", timeout_s=20
    )
    return ImagePolicy(max_bytes=100_000, fetch=replace(allowed, **fetch))


async def fetch(pages: Web, url: str, names: Names | None = None, **how: Any) -> bytes:
    fetcher = Fetcher(names) if names is not None else Fetcher()
    found = await fetcher.fetch(url, policy(pages, **how), WHERE)
    assert isinstance(found.data, bytes)
    return found.data


async def refused(pages: Web, url: str, names: Names | None = None, **how: Any) -> str:
    with pytest.raises(ImageFetchFailed) as raised:
        await fetch(pages, url, names, **how)
    assert raised.value.field == WHERE
    assert raised.value.http_status == 400
    assert "secret" not in str(raised.value.to_object())
    return raised.value.message


async def test_a_picture_is_fetched_with_nothing_of_ours(pages: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    pages.pages["/a.png?x=1"] = answer(png(), "image/png; charset=binary", set_cookie="a=b")
    assert await fetch(pages, pages.url("/a.png?x=1#part")) == png()
    head = pages.requests[-1].lower()
    assert f"host: 127.0.0.1:{pages.port}\r\n" in head
    assert "accept-encoding: identity" in head
    assert not any(word in head for word in ("cookie", "authorization", "referer", "#part"))


async def test_the_name_is_told_and_the_address_that_was_checked_is_connected_to(pages: Web) -> None:
    """The second answer of the resolver would be another one: it is never asked for."""
    names = Names({"pictures.test": [["127.0.0.1"], ["169.254.169.254"]]})
    pages.pages["/a.png"] = answer(png())
    assert await fetch(pages, pages.url("/a.png", "pictures.test"), names) == png()
    assert names.asked == ["pictures.test"]
    assert f"Host: pictures.test:{pages.port}\r\n" in pages.requests[-1]


async def test_every_address_of_a_host_is_checked(pages: Web) -> None:
    for addresses in (
        ["127.0.0.1", "10.0.0.1"],
        ["10.0.0.1", "127.0.0.1"],
        ["127.0.0.2"],
        ["::1"],
        ["::ffff:10.0.0.1"],
    ):
        names = Names({"pictures.test": [addresses]})
        assert "not public" in await refused(pages, pages.url("/a.png" + SECRET, "pictures.test"), names)
    assert pages.requests == []


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.2", "2130706434", "0x7f.0.0.2", "127.2", "0", "[::1]", "[::ffff:127.0.0.2]"]
)
async def test_no_spelling_of_this_machine_gets_there(pages: Web, host: str) -> None:
    """With the resolver of the system, which knows more spellings of addresses than people do."""
    message = await refused(pages, pages.url("/a.png" + SECRET, host), allowed_networks="127.0.0.1/32")
    if host != "localhost":
        assert "not public" in message or "could not be fetched" in message
    assert pages.requests == [] or host == "localhost"


async def test_every_hop_is_checked(pages: Web) -> None:
    names = Names({"inside.test": [["10.0.0.1"]]})
    for number, target in enumerate(
        (
            "http://169.254.169.254/latest/meta-data/" + SECRET,
            f"http://inside.test:{pages.port}/" + SECRET,
            "http://127.0.0.2/" + SECRET,
            f"http://[::1]:{pages.port}/" + SECRET,
            "file:///etc/passwd",
            "ftp://example.org/",
            "http://user:secret@127.0.0.1/",
            "http://127.0.0.1:22/",
            "http://127.0.0.1:" + "9" * 20,
        )
    ):
        pages.pages["/go"] = redirect(target)
        await refused(pages, pages.url("/go"), names)
        assert len(pages.requests) == number + 1


async def test_redirects_are_followed_up_to_a_limit(pages: Web) -> None:
    pages.pages |= {f"/{number}": redirect(f"/{number + 1}", 307) for number in range(10)}
    pages.pages["/3"] = answer(png())
    assert await fetch(pages, pages.url("/0"), max_redirects=3) == png()
    assert "at most 2 times" in await refused(pages, pages.url("/0"), max_redirects=2)
    pages.pages["/round"] = redirect("/round")
    await refused(pages, pages.url("/round"))


async def test_a_large_answer_is_not_read_to_its_end(pages: Web) -> None:
    pages.pages["/announced"] = answer(b"", content_length="100001") + HANGING
    pages.pages["/unannounced"] = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n" + bytes(200_000) + HANGING
    chunks = b"".join(b"%x\r\n%s\r\n" % (1000, bytes(1000)) for _ in range(200))
    pages.pages["/chunked"] = (
        b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + HANGING
    )
    for path in ("/announced", "/unannounced", "/chunked"):
        with pytest.raises(InvalidImageInput, match="at most 100000 bytes"):
            await fetch(pages, pages.url(path))


async def test_an_answer_without_an_announced_length_is_read(pages: Web) -> None:
    pages.pages["/open"] = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n" + png()
    assert await fetch(pages, pages.url("/open")) == png()


async def test_what_takes_too_long_is_given_up(pages: Web) -> None:
    pages.pages |= {"/slow" + SECRET: answer(png(), content_length="99999") + HANGING, "/mute" + SECRET: HANGING}
    for path in ("/slow", "/mute"):
        assert "within 0.2 s" in await refused(pages, pages.url(path + SECRET), timeout_s=0.2)


async def test_what_is_no_picture_is_refused_by_its_type(pages: Web) -> None:
    for media_type in ("text/html", "image/svg+xml", "application/json", "multipart/x-mixed-replace"):
        pages.pages["/x"] = answer(b"<html>", media_type)
        with pytest.raises(UnsupportedImageFormat):
            await fetch(pages, pages.url("/x"))


async def test_what_goes_wrong_is_told_without_the_url(pages: Web) -> None:
    pages.pages |= {
        "/gone" + SECRET: answer(b"", None, 404),
        "/packed" + SECRET: answer(gzip.compress(bytes(1000)), content_encoding="gzip"),
        "/cut" + SECRET: answer(png(), content_length="99999"),
        "/noise" + SECRET: b"SSH-2.0-OpenSSH_9.6\r\n\r\n\r\n",
        "/headers" + SECRET: b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
        "/empty" + SECRET: b"",
    }
    assert "answered 404" in await refused(pages, pages.url("/gone" + SECRET))
    assert "has packed its answer" in await refused(pages, pages.url("/packed" + SECRET))
    for path in ("/cut", "/noise", "/headers", "/empty"):
        assert "could not be fetched from 127.0.0.1" in await refused(pages, pages.url(path + SECRET))


async def test_a_host_that_is_not_there_is_told(pages: Web) -> None:
    async def nobody(host: str, port: int) -> list[str]:
        raise OSError("unknown")

    with pytest.raises(ImageFetchFailed, match=r"could not be fetched from nowhere\.test"):
        await Fetcher(nobody).fetch("http://nowhere.test/secret", policy(pages), WHERE)
    closed = await asyncio.start_server(lambda _, __: None, "127.0.0.1", 0)
    port = closed.sockets[0].getsockname()[1]
    closed.close()
    await closed.wait_closed()
    await refused(pages, f"http://127.0.0.1:{port}/secret", allowed_ports=str(port))
    assert "could not be fetched" in await refused(
        pages, pages.url("/", "pictures.test"), Names({"pictures.test": [[]]})
    )


async def test_a_certificate_must_be_that_of_the_name_and_known(tmp_path: Path) -> None:
    """The connection goes to an address, and the name decides."""
    subject = ["-subj", "/CN=pictures.test", "-addext", "subjectAltName=DNS:pictures.test"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    await asyncio.to_thread(
        subprocess.run,
        ["openssl", "req", "-x509", "-nodes", *curve, *subject, *files],
        check=True,
        capture_output=True,
    )
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    names = Names({"pictures.test": [["127.0.0.1"]], "other.test": [["127.0.0.1"]]})
    async with web(serving) as pages:
        pages.pages["/a.png"] = answer(png())
        url = pages.url("/a.png", "pictures.test").replace("http:", "https:")
        found = await Fetcher(names, trusted).fetch(url, policy(pages), WHERE)
        assert found.data == png()
        assert len(pages.requests) == 1
        for fetcher, wrong in (
            (Fetcher(names, trusted), url.replace("pictures.test", "other.test")),
            (Fetcher(names, trusted), url.replace("pictures.test", "127.0.0.1")),
            (Fetcher(names), url),  # the system does not know who made it
        ):
            with pytest.raises(ImageFetchFailed, match="SSLCertVerificationError"):
                await fetcher.fetch(wrong, policy(pages), WHERE)
        assert len(pages.requests) == 1


async def test_a_server_without_tls_is_told_nothing(pages: Web) -> None:
    fetcher = Fetcher(trusted=ssl.create_default_context())
    with pytest.raises(ImageFetchFailed):
        await fetcher.fetch(f"https://127.0.0.1:{pages.port}/", policy(pages, timeout_s=1), WHERE)
    assert pages.requests == []


async def test_the_system_is_asked_for_names() -> None:
    assert await system_addresses("127.0.0.1", 80) == ["127.0.0.1"]
