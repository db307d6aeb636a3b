"""A small hub on 127.0.0.1: the part of the hub's protocol that downloads use, with faults to order.

Weights (*.safetensors, *.bin) are served as the hub serves LFS files, by a redirect to another address that
answers ranges; the rest directly.
"""

import hashlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS = (".safetensors", ".bin")


@dataclass(frozen=True)
class Request:
    """One request: `file` is empty for the API, `start` the first byte of a Range header, None without one."""

    method: str
    path: str
    file: str = ""
    start: int | None = None


@dataclass
class Fault:
    """What goes wrong with a file or API path, `times` times.

    kind: "status" answers `value`; "cut" and "reset" close the connection after `value` bytes, in order (FIN) or
    not (RST); "stall" sends `value` bytes, then nothing.
    """

    name: str
    kind: str
    value: int
    method: str = "GET"
    times: int = 1


@dataclass
class Repo:
    """Files by commit, commits by branch or tag. token: who may read; gated: reading needs consent, too."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    token: str | None = None
    gated: bool = False
    listed: dict[str, int] = field(default_factory=dict)  # sizes claimed in place of the true ones

    def commit(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.stalled = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def gets(self, file: str | None = None) -> list[Request]:
        """Downloads begun, of one file or of all."""
        return [r for r in self.log if r.method == "GET" and r.file and file in (None, r.file)]

    def fault(self, method: str, name: str) -> Fault | None:
        with self.lock:
            for f in self.faults:
                if f.times and f.method == method and name.endswith(f.name):
                    f.times -= 1
                    return f
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients are killed on purpose here; the default prints their broken pipes."""


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo_id, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
        start = self.headers.get("Range", "").removeprefix("bytes=").split("-")[0]
        file = "" if api else "/".join(rest[2:])
        self.server.log.append(Request(self.command, path, file, int(start) if start else None))
        fault = self.server.fault(self.command, file or path)
        if fault and fault.kind == "status":
            return self.refuse(fault.value, "")
        repo = self.server.repos.get(repo_id)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo is None or (repo.token and token != repo.token and not (repo.gated and token)):
            return self.refuse(404 if token else 401, "RepoNotFound")
        if repo.gated and token != repo.token:
            return self.refuse(403, "GatedRepo")
        if api and rest == ["refs"]:
            listed = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.refs.items()]
            return self.send(json.dumps({"branches": listed, "tags": [], "converts": []}).encode())
        commit = repo.commit(rest[1] if rest else "main")
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        if api:
            return self.send(json.dumps(listing(repo, commit, tree=rest[:1] == ["tree"])).encode())
        if file not in repo.commits[commit]:
            return self.refuse(404, "EntryNotFound")
        self.file(repo.commits[commit][file], file, commit, fault, linked=rest[0] == "linked")

    def refuse(self, status: int, code: str) -> None:
        self.send(b"{}", status, **({"X-Error-Code": code} if code else {}))

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for k, v in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(k, v)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def file(self, data: bytes, name: str, commit: str, fault: Fault | None, *, linked: bool) -> None:
        headers = {"ETag": f'"{oid(data, name)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if name.endswith(LFS) and not linked:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
            return self.send(b"", 302, Location=self.server.url + self.path.replace("/resolve/", "/linked/"), **headers)
        start = self.server.log[-1].start if self.command == "GET" else None
        start = None
        if "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start or 0 :]
        if fault is None:
            return self.send(body, 200 if start is None else 206, **headers)
        self.send(body[: fault.value], 200 if start is None else 206, **headers | {"Content-Length": str(len(body))})
        self.wfile.flush()
        if fault.kind == "stall":
            self.server.stalled.set()
            self.rfile.read(1)  # until the client is gone
        if fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()  # the socket's other holder
            self.connection.close()
        self.close_connection = True


def oid(data: bytes, name: str) -> str:
    """What the hub calls a file's content: SHA-256 for LFS, git's blob hash otherwise."""
    if name.endswith(LFS):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def listing(repo: Repo, commit: str, *, tree: bool) -> Any:
    """A commit's files, as the API's tree or as a model's siblings."""
    files = []
    for name, data in repo.commits[commit].items():
        n, hashed = repo.listed.get(name, len(data)), oid(data, name)
        one: dict[str, Any] = {"size": n}
        one |= (
            {"type": "file", "path": name, "oid": hashed[:40]} if tree else {"rfilename": name, "blobId": hashed[:40]}
        )
        if name.endswith(LFS):
            one["lfs"] = {"size": n, "pointerSize": 134, "oid" if tree else "sha256": hashed}
        files.append(one)
    return files if tree else {"id": "some/model", "sha": commit, "siblings": files}
