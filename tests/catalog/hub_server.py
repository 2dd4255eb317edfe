"""A hub in this process: the part of the Hugging Face hub's HTTP interface that a download uses."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<revision>[^/?]+)")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass(slots=True)
class Repository:
    """One commit, which the branch `main` points to. `refusal` is (status, X-Error-Code) for every request.

    Weights are large files: their digest is a SHA-256, that of others what git makes of them. Transfers of `cut` files
    end once after so many bytes, and what is in `flipped` is sent with its last byte changed so many times.
    """

    files: Mapping[str, bytes]
    refusal: tuple[int, str] | None = None
    broken_files: set[str] = field(default_factory=set[str])
    cut: dict[str, int] = field(default_factory=dict[str, int])
    flipped: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def commit(self) -> str:
        content = b"".join(name.encode() + data for name, data in sorted(self.files.items()))
        return hashlib.sha1(content).hexdigest()


class HubServer(ThreadingHTTPServer):
    """Listens on a free port of the loopback interface. `requests` are methods and paths, in order."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.ranges: list[tuple[str, int]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubServer:
        return cast(HubServer, self.server)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _answer(self, *, with_body: bool) -> None:
        self.hub.requests.append((self.command, self.path))
        self.hub.tokens.add(self.headers.get("Authorization"))
        match = _API.match(self.path) or _FILE.match(self.path)
        repository = self.hub.repositories.get(match["repo"]) if match else None
        if match is None or repository is None:
            self._error(HTTPStatus.UNAUTHORIZED, "RepoNotFound")  # as the hub does for what one may not see
        elif repository.refusal is not None:
            self._error(*repository.refusal)
        elif match["revision"] not in ("main", repository.commit):
            self._error(HTTPStatus.NOT_FOUND, "RevisionNotFound")
        elif match.re is _FILE:
            self._file(repository, match["path"], with_body=with_body)
        elif match["what"] == "revision":
            self._json({"id": match["repo"], "sha": repository.commit, "siblings": []}, repository)
        else:
            self._json(
                [_described(path, data) for path, data in repository.files.items()],
                repository,
            )

    def _json(self, content: object, repository: Repository) -> None:
        self._send(json.dumps(content).encode(), {"X-Repo-Commit": repository.commit}, with_body=True)

    def _file(self, repository: Repository, path: str, *, with_body: bool) -> None:
        data = repository.files[path]
        headers = {"ETag": f'"{_git_digest(data)}"', "X-Repo-Commit": repository.commit}
        if _is_large(path):
            headers |= {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
        begin, status = 0, HTTPStatus.OK
        if with_body and (wanted := self.headers.get("Range")) is not None:
            begin, status = int(wanted.removeprefix("bytes=").rstrip("-")), HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            self.hub.ranges.append((path, begin))
        if with_body and path in repository.cut:
            self.close_connection = True
            self._send(data[begin:], headers, with_body=True, status=status, cut=repository.cut.pop(path))
            repository.broken_files.add(path)  # else the client would ask for the rest at once
        elif with_body and path in repository.broken_files:
            self._error(HTTPStatus.FORBIDDEN, "Broken")
        elif with_body and repository.flipped.get(path):
            repository.flipped[path] -= 1
            self._send(data[begin:-1] + bytes([data[-1] ^ 1]), headers, with_body=True, status=status)
        else:
            self._send(data[begin:], headers, with_body=with_body, status=status)

    def _send(
        self,
        body: bytes,
        headers: Mapping[str, str],
        *,
        with_body: bool,
        status: HTTPStatus = HTTPStatus.OK,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[:cut])

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def _git_digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _described(path: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": _git_digest(data)}
    if _is_large(path):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry
