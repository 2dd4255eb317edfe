"""llama.cpp's own tokenization of a GGUF file's texts, for the scripts that make reference data."""

from __future__ import annotations

import importlib
import json
import urllib.request
from pathlib import Path
from typing import Any, Self


class LlamaCpp:
    """A llama.cpp server in this process. Its own log goes to stderr."""

    def __init__(self, gguf: Path) -> None:
        xllamacpp: Any = importlib.import_module("xllamacpp")
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(gguf)
        parameters.n_ctx = 256
        parameters.warmup = False
        parameters.port = 0
        self._server = xllamacpp.Server(parameters)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        del self._server

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens in it recognised, with those that belong before and after it."""
        body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        request = urllib.request.Request(
            f"{self._server.listening_address}/tokenize", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return [int(token) for token in json.load(response)["tokens"]]
