"""A stand-in for the Hugging Face hub on loopback: enough of its HTTP for the real client to push and fetch models.

Repositories are kept in memory, commit by commit. Files of tensors come as LFS objects, others inside the commit, as
the hub asks for them; who writes needs a token; a card that the hub would refuse is refused.

    with hub() as server:
        subprocess.run(..., env=os.environ | server.environment(folder))
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

__all__ = ["TOKEN", "StandIn", "hub"]

TOKEN = "hf_standin"
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
LFS = (".safetensors",)


@dataclass
class StandIn:
    """What was pushed, and what was asked: "METHOD /path" in the order of the requests.

    `repos` has for each repository its commits, the oldest first: pairs of an id and all files by path.
    """

    url: str = ""
    repos: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def files(self, repo: str) -> dict[str, bytes]:
        """What a repository holds now."""
        return self.repos[repo][-1][1]

    def environment(self, home: Path) -> dict[str, str]:
        """Variables under which huggingface_hub asks this hub and keeps all of its own in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # a protocol of its own, beside the hub's HTTP
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def hub() -> Iterator[StandIn]:
    """A stand-in that answers until the block ends."""
    state = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"state": state}))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refused(Exception):
    def __init__(self, status: int, code: str, told: dict[str, str] | None = None) -> None:
        self.status, self.code, self.told = status, code, told or {"error": code}


class _Handler(BaseHTTPRequestHandler):
    state: StandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(
            (rf"/api/models/{REPO}(/revision/(?P<revision>[^/]+))?", self._info),
            (rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)", self._tree),
            (rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self._resolve),
        )

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate),
            (rf"/api/models/{REPO}/preupload/[^/]+", self._preupload),
            (rf"/{REPO}\.git/info/lfs/objects/batch", self._batch),
            (rf"/api/models/{REPO}/commit/[^/]+", self._commit),
            body=self.rfile.read(int(self.headers.get("Content-Length", 0))),
        )

    def do_PUT(self) -> None:
        self._answer((r"/lfs/(?P<oid>\w+)", self._store), body=self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, *routes: tuple[str, Any], body: bytes | None = None) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(f"{self.command} {path}")
        try:
            for pattern, action in routes:
                if found := re.fullmatch(pattern, path):
                    parts = {
                        name: value for name, value in found.groupdict().items() if name in ("repo", "path", "oid")
                    }
                    if "revision" in found.groupdict():
                        parts["commit"] = self._commit_of(found["repo"], found["revision"] or "main")
                    self._send(200, *action(**parts) if body is None else action(body, **parts))
                    return
            raise _Refused(404, "NotFound")
        except _Refused as refused:
            self._send(
                refused.status, _json(refused.told), {"X-Error-Code": refused.code, "X-Error-Message": refused.code}
            )

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def _commit_of(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        if repo not in self.state.repos:
            raise _Refused(404, "RepoNotFound")
        commits = self.state.repos[repo]
        if revision == "main":
            return commits[-1]
        for commit in commits:
            if commit[0] == revision:
                return commit
        raise _Refused(404, "RevisionNotFound")

    def _info(self, repo: str, commit: tuple[str, dict[str, bytes]]) -> tuple[bytes]:
        siblings = [{"rfilename": path} for path in commit[1]]
        return (_json({"id": repo, "modelId": repo, "sha": commit[0], "private": False, "siblings": siblings}),)

    def _tree(self, repo: str, commit: tuple[str, dict[str, bytes]]) -> tuple[bytes]:
        entries = []
        for path, content in commit[1].items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": _etag(path, content)}
            if path.endswith(LFS):
                entry["lfs"] = {"oid": _etag(path, content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return (_json(entries),)

    def _resolve(self, repo: str, commit: tuple[str, dict[str, bytes]], path: str) -> tuple[bytes, dict[str, str]]:
        if path not in commit[1]:
            raise _Refused(404, "EntryNotFound")
        content = commit[1][path]
        headers = {"ETag": f'"{_etag(path, content)}"', "X-Repo-Commit": commit[0]}
        if path.endswith(LFS):
            headers |= {"X-Linked-Etag": f'"{_etag(path, content)}"', "X-Linked-Size": str(len(content))}
        return content, headers | {"Content-Type": "application/octet-stream"}

    # ---- writing ----------------------------------------------------------------------------------------------------

    def _check_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refused(401, "Unauthorized")

    def _create(self, body: bytes) -> tuple[bytes]:
        self._check_token()
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        told = {"url": f"{self.state.url}/{repo}", "name": repo, "id": repo}
        if repo in self.state.repos:
            raise _Refused(409, "Exists", told)
        first = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}  # the hub's own first commit
        self.state.repos[repo] = [(hashlib.sha1(repo.encode()).hexdigest(), first)]
        return (_json(told),)

    def _validate(self, body: bytes) -> tuple[bytes]:
        """The rules of the hub that a card of ours could break."""
        found = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        data = yaml.safe_load(found[1]) if found else None
        bases = data.get("base_model", []) if isinstance(data, dict) else None
        named = [bases] if isinstance(bases, str) else bases
        good = named is not None and all(re.fullmatch(r"[\w.-]+/[\w.-]+", base) for base in named)
        for model in (data or {}).get("model-index", []):
            good &= bool(model["name"]) and all({"task", "metrics"} <= result.keys() for result in model["results"])
        if not good:
            raise _Refused(400, "InvalidMetadata")
        return (_json({"errors": [], "warnings": []}),)

    def _preupload(self, body: bytes, repo: str) -> tuple[bytes]:
        self._check_token()
        if repo not in self.state.repos:
            raise _Refused(404, "RepoNotFound")
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return (_json({"files": modes}),)

    def _batch(self, body: bytes, repo: str) -> tuple[bytes]:
        self._check_token()
        objects = [
            {"oid": one["oid"], "size": one["size"]}
            | {"actions": {"upload": {"href": f"{self.state.url}/lfs/{one['oid']}", "header": {}}}}
            for one in json.loads(body)["objects"]
        ]
        return (_json({"transfer": "basic", "objects": objects}),)

    def _store(self, body: bytes, oid: str) -> tuple[bytes]:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400, "BadDigest")
        self.state.objects[oid] = body
        return (b"",)

    def _commit(self, body: bytes, repo: str) -> tuple[bytes]:
        self._check_token()
        lines = [json.loads(line) for line in body.splitlines()]
        commits = self.state.repos[repo]
        files = dict(commits[-1][1])
        for value in (line["value"] for line in lines if line["key"] == "file"):
            files[value["path"]] = base64.b64decode(value["content"])
        for value in (line["value"] for line in lines if line["key"] == "lfsFile"):
            files[value["path"]] = self.state.objects[value["oid"]]
        commit = hashlib.sha1(body + str(len(commits)).encode()).hexdigest()
        commits.append((commit, files))
        url = f"{self.state.url}/{repo}/commit/{commit}"
        return (_json({"success": True, "commitUrl": url, "commitOid": commit, "pullRequestUrl": None}),)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _etag(path: str, content: bytes) -> str:
    """The digest that the hub names a file by: git's of a blob, or that of an LFS object."""
    if path.endswith(LFS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
