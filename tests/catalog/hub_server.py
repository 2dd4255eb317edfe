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
    """One commit, which the branch `main` points to. `refusal` is (status, X-Error-Code) for every request."""

    files: Mapping[str, bytes]
    refusal: tuple[int, str] | None = None
    broken_files: set[str] = field(default_factory=set[str])

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
                [
                    {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for path, data in repository.files.items()
                ],
                repository,
            )

    def _json(self, content: object, repository: Repository) -> None:
        self._send(json.dumps(content).encode(), {"X-Repo-Commit": repository.commit}, with_body=True)

    def _file(self, repository: Repository, path: str, *, with_body: bool) -> None:
        data = repository.files[path]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": repository.commit}
        if with_body and path in repository.broken_files:
            self._error(HTTPStatus.FORBIDDEN, "Broken")
        else:
            self._send(data, headers, with_body=with_body)

    def _send(self, body: bytes, headers: Mapping[str, str], *, with_body: bool) -> None:
        self.send_response(HTTPStatus.OK)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
