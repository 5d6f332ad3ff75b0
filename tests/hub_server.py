"""A Hugging Face Hub on this machine: as much of its protocol as huggingface_hub speaks for models, kept in memory.

Weights (``LARGE``) are stored with git-lfs, everything else in git. It can be told to misbehave.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

LARGE = (".safetensors", ".bin", ".ckpt", ".pth")
TOKEN = "hf_reader"


@dataclass
class Repository:
    """One repository; ``commits`` in order, the last one of ``branches["main"]`` is what it holds now."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    damaged: set[str] = field(default_factory=set)  # names of files that arrive with another byte
    cut: dict[str, int] = field(default_factory=dict)  # name -> how many transfers break off in the middle

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        content = dict(files)
        listing = "".join(f"{name}{hashlib.sha1(data).hexdigest()}" for name, data in sorted(content.items()))
        sha = hashlib.sha1(f"{len(self.commits)}{listing}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = content, sha
        return sha

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.branches["main"]]


@dataclass
class Hub:
    """The server's repositories, and what it was asked for: ``method path[ range]``."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # by git-lfs
    asked: list[str] = field(default_factory=list)
    down: bool = False

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for."""
        return [
            line.split("/resolve/")[1].split("/", 1)[1].split(" ")[0]
            for line in self.asked
            if "GET" in line and "/resolve/" in line
        ]


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        span = self.headers.get("Range")
        self.hub.asked.append(f"{self.command} {path}{f' {span}' if span else ''}")
        try:
            if self.hub.down:
                raise Refused(503, message="maintenance")
            self.answer(path, body)
        except Refused as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self.send(error.status, b"", {name: value for name, value in headers.items() if value})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def answer(self, path: str, body: bytes) -> None:
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/lfs/(\w+)", path):
            assert hashlib.sha256(body).hexdigest() == found[1]
            self.hub.stored[found[1]] = body
            return self.send(200, b"")
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self.send_json({"objects": [self.place(each) for each in json.loads(body)["objects"]]}, lfs=True)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(self.repository(found[1], gate=True), found[2], found[3])
        if not (found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)(?:/(.+))?)?", path)):
            raise Refused(404)
        name, what, rest = found.groups()
        repository = self.repository(name)
        if what in (None, "revision"):
            sha = self.sha(repository, rest or "main")
            siblings = [{"rfilename": file} for file in repository.commits[sha]]
            return self.send_json(
                {"id": name, "sha": sha, "siblings": siblings, "private": repository.private, "tags": []}
            )
        if what == "tree":
            return self.send_json(self.tree(repository.commits[self.sha(repository, rest)]))
        self.require_token(write=True)
        if what == "branch":
            repository.branches.setdefault(rest, repository.branches["main"])
            return self.send_json({})
        if what == "preupload":
            files = json.loads(body)["files"]
            modes = {each["path"]: "lfs" if each["path"].endswith(LARGE) else "regular" for each in files}
            return self.send_json(
                {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
            )
        assert what == "commit"
        return self.take(name, repository, rest, [json.loads(line) for line in body.splitlines()])

    def repository(self, name: str, gate: bool = False) -> Repository:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self.known):
            raise Refused(404 if self.known else 401, "RepoNotFound", "Repository not found")
        if gate and repository.gated and not self.known:
            raise Refused(403, "GatedRepo", f"Access to model {name} is restricted")
        return repository

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def require_token(self, write: bool = False) -> None:
        if not self.known:
            raise Refused(401, message="Invalid username or password.")

    def sha(self, repository: Repository, revision: str) -> str:
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            raise Refused(404, "RevisionNotFound", "Invalid rev id")
        return sha

    def tree(self, files: Mapping[str, bytes]) -> list[dict[str, Any]]:
        listed = []
        for name, data in files.items():
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": git_sha(data)}
            if name.endswith(LARGE):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            listed.append(entry)
        return listed

    def resolve(self, repository: Repository, revision: str, name: str) -> None:
        sha = self.sha(repository, revision)
        if (data := repository.commits[sha].get(name)) is None:
            raise Refused(404, "EntryNotFound", "Entry not found") if sha else Refused(404)
        etag = hashlib.sha256(data).hexdigest() if name.endswith(LARGE) else git_sha(data)
        if name in repository.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        start, status = 0, 200
        if span := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, status = int(span[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.command == "GET" and repository.cut.get(name, 0) > 0:
            repository.cut[name] -= 1
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data) - start)}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data[start : start + (len(data) - start) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.send(status, data[start:], headers)

    def create(self, asked: Mapping[str, Any]) -> None:
        self.require_token(write=True)
        name = f"{asked.get('organization') or 'reader'}/{asked['name']}"
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        url = {"url": f"{self.hub.url}/{name}"}
        if name in self.hub.repositories:
            return self.send_json(url, status=409)
        self.hub.repositories[name] = Repository(private=private)
        self.hub.repositories[name].commit({".gitattributes": b""})
        self.send_json(url)

    def place(self, each: Mapping[str, Any]) -> dict[str, Any]:
        about: dict[str, Any] = {"oid": each["oid"], "size": each["size"]}
        if each["oid"] not in self.hub.stored:
            about["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}
        return about

    def take(self, name: str, repository: Repository, branch: str, lines: list[dict[str, Any]]) -> None:
        files = dict(repository.commits[self.sha(repository, branch)])
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        pull_request = "create_pr=1" in self.path
        sha = repository.commit(files, "refs/pr/1" if pull_request else branch)
        url = {"commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"}
        self.send_json({**url, "pullRequestUrl": f"{self.hub.url}/{name}/discussions/1"} if pull_request else url)

    def send_json(self, value: Any, status: int = 200, lfs: bool = False) -> None:
        kind = "application/vnd.git-lfs+json" if lfs else "application/json"
        self.send(status, json.dumps(value).encode(), {"Content-Type": kind})

    def send(self, status: int, data: bytes, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def git_sha(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A server on a free port of the loopback device."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def connect(monkeypatch: pytest.MonkeyPatch, hub: Hub, cache: Any) -> None:
    """Makes huggingface_hub, which reads its variables when it is imported, talk to ``hub`` alone."""
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
