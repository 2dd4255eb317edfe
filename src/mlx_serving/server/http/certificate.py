"""Whether a certificate and its key can be served, told before anybody connects."""

from __future__ import annotations

import ssl
from pathlib import Path

from mlx_serving.errors import InvalidConfig


def check_certificate(certificate: Path | None, key: Path | None) -> None:
    """Raises `InvalidConfig`, which names the file that is wrong."""
    if certificate is None:
        return
    for path, setting in ((certificate, "server.tls_cert"), (key, "server.tls_key")):
        try:
            if path is not None:
                path.read_bytes()
        except OSError as error:
            raise _refused(setting, f"{path} cannot be read: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password asked for at a terminal that is not there.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        why = getattr(error, "reason", None) or str(error)
        raise _refused("server.tls_cert", f"{certificate} and {key} cannot be used: {why}") from None


def _refused(setting: str, why: str) -> InvalidConfig:
    return InvalidConfig(f"{setting}: {why}", issues=[{"path": setting, "message": why}])
