"""A stand-in of the hub on this machine, for as much of it as `huggingface_hub` asks here."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest
from huggingface_hub.utils import close_session

Files = dict[str, bytes]
REPO_URL = b'{"url": "http://127.0.0.1/some/repo"}'


@dataclass
class Repo:
    """Branches and commits; every commit holds all of its files."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    private: bool = False

    def commit(self, files: Files, branch: str = "main") -> str:
        content = f"{len(self.commits)}{sorted(files)}".encode()
        oid = hashlib.sha1(content).hexdigest()
        self.commits[oid], self.branches[branch] = dict(files), oid
        return oid

    def files(self, revision: str = "main") -> Files | None:
        return self.commits.get(self.branches.get(revision, revision))

    def oid(self, revision: str = "main") -> str:
        return self.branches.get(revision, revision)


class StandIn:
    """Repositories by name, and what was asked of them."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[str] = []
        self.closed = {"somebody"}
        """Owners whose repositories cannot be written."""

    def repo(self, name: str, files: Files) -> Repo:
        """Makes a repository with one commit."""
        self.repos[name] = Repo()
        self.repos[name].commit(files)
        return self.repos[name]

    def sent(self) -> list[str]:
        """The files that were handed out since the last call."""
        sent = [ask.split("/resolve/")[1] for ask in self.asked if ask.startswith("GET /resolve/")]
        self.asked.clear()
        return sent


class Refused(Exception):
    """An answer with a status and the hub's code for the reason."""


@contextmanager
def serving(hub: StandIn) -> Iterator[str]:
    """The address at which the stand-in answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet: in two, the second waits for 40 ms

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path.strip("/")
            recursive = "recursive=true" in self.path.lower()
            hub.asked.append(f"{self.command} {path}")
            try:
                content, headers = answer(hub, self.command, path.split("/"), body, recursive)
                status = 200
            except Refused as refused:
                status, code = refused.args
                content, headers = REPO_URL, {"X-Error-Code": code}
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = _answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        close_session()
        server.shutdown()
        server.server_close()
        thread.join()


def answer(
    hub: StandIn, method: str, parts: list[str], body: bytes, recursive: bool
) -> tuple[bytes, dict[str, str]]:
    """Content and headers of an answer."""
    match method, parts:
        case "POST", ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] in hub.closed:
                raise Refused(403, "")
            if name in hub.repos:
                raise Refused(409, "")
            hub.repo(name, {}).private = asked.get("visibility") == "private"
            return as_json({"url": f"http://127.0.0.1/{name}"})
        case "POST", ["api", "validate-yaml"]:
            return as_json({"errors": [], "warnings": []})
        case _, ["api", "models", owner, name, *rest]:
            full = f"{owner}/{name}"
            return as_json(of_repo(known(hub, full), full, rest, body, recursive))
        case "HEAD" | "GET", [owner, name, "resolve", revision, *path]:
            repo, file = known(hub, f"{owner}/{name}"), unquote("/".join(path))
            content = present(repo, revision).get(file)
            if content is None:
                raise Refused(404, "EntryNotFound")
            hub.asked.append(f"{method} /resolve/{file}")
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            return content, {"ETag": etag, "X-Repo-Commit": repo.oid(unquote(revision))}
    raise Refused(404, "")


def of_repo(repo: Repo, name: str, rest: list[str], body: bytes, recursive: bool) -> Any:
    match rest:
        case [] | ["revision", _]:
            revision = unquote(rest[1]) if rest else "main"
            present(repo, revision)
            return {"id": name, "sha": repo.oid(revision)}
        case ["branch", branch]:
            if unquote(branch) in repo.branches:
                raise Refused(409, "")
            repo.branches[unquote(branch)] = repo.oid()
            return {}
        case ["tree", revision, *path]:
            return tree(present(repo, revision), unquote("/".join(path)), recursive)
        case ["preupload", revision]:
            present(repo, revision)
            return {
                "files": [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
            }
        case ["commit", revision]:
            files = dict(present(repo, revision))
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "deletedFile":
                    del files[value["path"]]
            oid = repo.commit(files, unquote(revision))
            url = f"http://127.0.0.1/{name}/commit/{oid}"
            return {"commitUrl": url, "commitOid": oid}
    raise Refused(404, "")


def tree(files: Files, folder: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    below = [path for path in files if path.startswith(prefix)]
    if folder and not below:
        raise Refused(404, "EntryNotFound")
    entries = {}
    for path in below:
        first, slash, _ = path.removeprefix(prefix).partition("/")
        shown = path if recursive else prefix + first
        kind = "file" if recursive or not slash else "directory"
        entries[shown] = {"path": shown, "type": kind, "oid": "0" * 40, "size": len(files[path])}
    return list(entries.values())


def known(hub: StandIn, name: str) -> Repo:
    if name not in hub.repos:
        raise Refused(401, "RepoNotFound")
    return hub.repos[name]


def present(repo: Repo, revision: str) -> Files:
    files = repo.files(unquote(revision))
    if files is None:
        raise Refused(404, "RevisionNotFound")
    return files


def as_json(value: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(value).encode(), {"Content-Type": "application/json"}


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    """Lets `huggingface_hub` ask `endpoint`, without a token, and keep its files in `cache`."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
