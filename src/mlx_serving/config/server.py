"""The HTTP server and who may use it."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_core import PydanticCustomError

from mlx_serving.config.fields import NO_SPACES, Section

MAX_KEY_CHARS = 512


def _sendable(key: SecretStr) -> SecretStr:
    """A key that clients can put into a header. The message must not quote it."""
    text = key.get_secret_value()
    if not 1 <= len(text) <= MAX_KEY_CHARS or not all("!" <= char <= "~" for char in text):
        raise PydanticCustomError(
            "key",
            "must be 1 to {limit} printable ASCII characters without spaces, to fit into a header",
            {"limit": MAX_KEY_CHARS},
        )
    return key


Key = Annotated[SecretStr, AfterValidator(_sendable)]


class ServerConfig(Section):
    """The HTTP server."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        pattern=NO_SPACES,
        description="Address to listen on; `0.0.0.0` is every interface.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port to listen on; 0 takes any free one.")
    api_key: Key | None = Field(default=None, description="Secret that every client must send; null lets everybody in.")
    admin_key: Key | None = Field(
        default=None, description="Secret for the administrative requests; null switches those requests off."
    )
    max_body_bytes: int = Field(
        default=16 * 1024**2,
        ge=1024,
        le=1024**3,
        description="Largest request body, in bytes; pictures are in it as base64, which takes a third more.",
    )
    max_response_bytes: int | None = Field(
        default=None,
        ge=1024,
        description="Largest text of one answer, of all its choices together, in bytes; a longer one ends with an "
        "error. Null leaves it to `max_tokens`.",
    )
    keepalive_s: float | None = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="A streamed answer that is silent for so long gets a comment, in seconds, but only while the "
        "worker makes progress; null sends none.",
    )
    drain_timeout_s: float = Field(
        default=30.0, ge=0, le=86_400, description="Time that running requests have to finish at shutdown, in seconds."
    )
    resume_file: str | None = Field(
        default=None,
        min_length=1,
        description="File for requests that are not finished at the end of a shutdown; the next start with the same "
        "file finishes them, and their clients get the rest from `/v1/resumed/ID`. It holds prompts; only its owner "
        "can read it. Null: such requests are cut off.",
    )
    resume_max_age_s: float = Field(
        default=3600.0,
        ge=1,
        le=2_592_000,
        description="Requests of `resume_file` are forgotten when nobody has fetched their answers for so long, in "
        "seconds.",
    )
    access_log: bool = Field(default=True, description="Whether every request is logged.")
    cors_origins: str | None = Field(
        default=None,
        pattern=r"^(\*|https?://[^/\s]+( +https?://[^/\s]+)*)$",
        description="Origins whose scripts may call this server from a browser, separated by spaces, as in "
        "`https://chat.example.org`; `*` is every origin, null none.",
    )
    tls_cert: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file with the certificate, and those up to its root; null serves unencrypted HTTP.",
    )
    tls_key: str | None = Field(default=None, min_length=1, description="PEM file with the key of `tls_cert`.")

    @model_validator(mode="after")
    def _certificate_has_a_key(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("tls_key", "tls_cert") if self.tls_cert is None else ("tls_cert", "tls_key")
            raise PydanticCustomError("tls", "needs {missing} as well", {"missing": missing, "at": [given]})
        return self


class KeysConfig(Section):
    """API keys with limits of their own, beside `server.api_key`, which has none."""

    file: str | None = Field(
        default=None,
        min_length=1,
        description="JSON file of API keys, which `mlx-serving keys` writes; it is read again when it changes.",
    )
    inline: SecretStr | None = Field(
        default=None, description="The content of such a file, for keys that come from the environment."
    )
    state_file: str | None = Field(
        default=None,
        min_length=1,
        description="File that remembers what each key has spent today; null forgets it at every start.",
    )
