"""A stand-in for the Hugging Face hub on the loopback: model repositories that its client makes, fills and reads."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants

TOKEN = "hf_" + "stand" + "in"


class Hub(ThreadingHTTPServer):
    """Repositories by name: whether private, and of each branch its commits, each the bytes of its files.

    `refuse`: the status that every request to the API gets, for tests; `requests`: (method, path) of all.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.private: dict[str, bool] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {"0" * 40: {}}
        self.messages: list[str] = []
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.refuse: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Of a branch or a commit."""
        return self.commits[self.branches[repo].get(revision, revision)]


def use_hub(url: str, cache: str) -> None:
    """Have this process's client, which looks at its variables only once, talk to the hub at `url`."""
    for name, value in client_settings(url, cache).items():
        setattr(huggingface_hub.constants, name, value)


def client_settings(url: str, cache: str) -> dict[str, Any]:
    """By the names of `huggingface_hub.constants`. Large files go the plain way, which the stand-in knows."""
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    settings = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": cache}
    return {**settings, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False, "HF_TOKEN_PATH": f"{cache}/no-token"}


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """One with nothing in it, for as long as the block lasts."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, path))
        writes = self.command in ("POST", "PUT") and path != "api/validate-yaml" and not path.startswith("large/")
        if self.server.refuse is not None:
            self._answer(self.server.refuse, {"error": "refused by the stand-in"})
        elif writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
        else:
            self._dispatch(path.split("/"), path, body)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - as the server calls them

    def _dispatch(self, parts: list[str], path: str, body: bytes) -> None:
        match parts:
            case ["api", "validate-yaml"]:
                bad = "license: none-such" in json.loads(body)["content"]
                self._answer(
                    400 if bad else 200, {"error": '"license" must be one of [...]'} if bad else {"errors": []}
                )
            case ["api", "repos", "create"]:
                self._create(json.loads(body))
            case ["large", oid]:
                self.server.large[oid] = body
                self._answer(200, {})
            case [owner, name, "info", "lfs", "objects", "batch"]:
                self._large_files(f"{owner}/{name}", json.loads(body))
            case ["api", "models", owner, name, *rest] if f"{owner}/{name}" in self.server.branches:
                self._of_repository(f"{owner}/{name}", rest, body)
            case [owner, name, "resolve", revision, *rest] if f"{owner}/{name}" in self.server.branches:
                self._file(f"{owner}/{name}", revision, "/".join(rest))
            case _:
                self._answer(404, {"error": f"no {path}"}, {"X-Error-Code": "RepoNotFound"})

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "others":
            self._answer(403, {"error": "You don't have the rights to create a model under the namespace others"})
            return
        status = 409 if repo in self.server.branches else 200
        if status == 200:
            self.server.private[repo] = asked.get("visibility") == "private" or asked.get("private") is True
            self.server.branches[repo] = {"main": "0" * 40}
        self._answer(status, {"url": f"{self.server.url}/{repo}", "name": repo, "id": repo})

    def _large_files(self, repo: str, asked: dict[str, Any]) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.server.url}/large/{each['oid']}"}}}
            for each in asked["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _of_repository(self, repo: str, rest: list[str], body: bytes) -> None:
        branches = self.server.branches[repo]
        match rest:
            case ["preupload", _]:
                modes = [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for each in json.loads(body)["files"]
                ]
                self._answer(200, {"files": modes})
            case ["branch", branch]:
                self._answer(409 if branch in branches else 200, {})
                branches.setdefault(branch, branches["main"])
            case ["commit", branch]:
                self._answer(200, self._commit(repo, branch, body))
            case [] | ["revision", _] | ["tree", *_]:
                self._show(repo, rest)
            case _:
                self._answer(404, {"error": "unknown"})

    def _show(self, repo: str, rest: list[str]) -> None:
        branches = self.server.branches[repo]
        revision = rest[1] if rest else "main"
        sha = branches.get(revision, revision)
        if sha not in self.server.commits:
            self._answer(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
            return
        files = self.server.commits[sha]
        if rest[:1] == ["tree"]:
            self._answer(200, [{"type": "file", "path": name, **_described(data)} for name, data in files.items()])
        else:
            siblings = [{"rfilename": name} for name in files]
            info = {"id": repo, "modelId": repo, "sha": sha, "private": self.server.private[repo], "siblings": siblings}
            self._answer(200, info)

    def _commit(self, repo: str, branch: str, body: bytes) -> dict[str, Any]:
        files = dict(self.server.files(repo, branch))
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    self.server.messages.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        sha = hashlib.sha1(body, usedforsecurity=False).hexdigest()
        self.server.commits[sha] = files
        self.server.branches[repo][branch] = sha
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{repo}/commit/{sha}"}

    def _file(self, repo: str, revision: str, name: str) -> None:
        sha = self.server.branches[repo].get(revision, revision)
        data = self.server.commits.get(sha, {}).get(name)
        if data is None:
            self._answer(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_described(data)["oid"]}"'}
        self._answer(200, data, headers)

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        if not isinstance(content, bytes):
            self.send_header("Content-Type", "application/json")
            if status >= 400 and isinstance(content, dict):
                self.send_header("X-Error-Message", str(content.get("error")))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _described(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "oid": hashlib.sha1(data, usedforsecurity=False).hexdigest()}
