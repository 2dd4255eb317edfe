"""HTTPS with a certificate of the operator's."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import httpx2
import pytest

from mlx_serving.config.schema import Config
from mlx_serving.errors import InvalidConfig
from mlx_serving.server.app import create_app
from mlx_serving.server.http.certificate import check_certificate
from mlx_serving.server.settings import ServerSettings, settings_of

from ..conftest import running
from ..scripted_engine import ScriptedEngine


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """For 127.0.0.1, signed by itself."""
    home = tmp_path_factory.mktemp("tls")
    certificate, key = home / "cert.pem", home / "key.pem"
    subject = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    files = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run(["openssl", "req", "-x509", "-nodes", *curve, *subject, *files], check=True, capture_output=True)
    return certificate, key


async def test_it_serves_https(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    settings = settings_of(Config.model_validate({"server": {"tls_cert": str(cert), "tls_key": str(key)}}))
    async with running(create_app(ScriptedEngine(), settings)) as address:
        assert address.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(cert))
        async with httpx2.AsyncClient(base_url=address.url, verify=trusting) as http:
            whole = await http.post("/v1/completions", json={"model": "tiny", "prompt": "Hi"})
            assert whole.json()["choices"][0]["text"] == "Hello world"
            streamed = await http.post("/v1/completions", json={"model": "tiny", "prompt": "Hi", "stream": True})
            assert streamed.text.endswith("data: [DONE]\n\n")
        plain = address.url.replace("https", "http")
        async with httpx2.AsyncClient(base_url=plain) as http:
            with pytest.raises(httpx2.TransportError):
                await http.get("/version")


async def test_a_certificate_that_cannot_be_used_is_refused_before_anybody_connects(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    cert, key = certificate
    (tmp_path / "nonsense.pem").write_text("nonsense")
    with pytest.raises(InvalidConfig, match=r"server\.tls_key: .*No such file"):
        check_certificate(cert, tmp_path / "missing.pem")
    with pytest.raises(InvalidConfig, match=r"server\.tls_cert: .*cannot be used"):
        check_certificate(tmp_path / "nonsense.pem", key)
    settings = ServerSettings(tls_cert=tmp_path / "missing.pem", tls_key=key)
    with pytest.raises(InvalidConfig, match=r"server\.tls_cert"):
        async with running(create_app(ScriptedEngine(), settings)):
            pytest.fail("it must not start")


@pytest.mark.parametrize("given", ["tls_cert", "tls_key"])
def test_a_certificate_needs_a_key(given: str) -> None:
    with pytest.raises(ValueError, match="needs tls_"):
        Config.model_validate({"server": {given: "x.pem"}})
