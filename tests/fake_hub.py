"""A Hugging Face hub on this machine, with a second server as its CDN, that can misbehave.

It serves folders as model repositories at the endpoints that huggingface_hub uses, counts the
bytes of every file that leave it, takes uploads, and takes orders for faults.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclasses.dataclass
class Fault:
    """What happens to the next request that fits. `times` counts down."""

    pattern: str  # searched for in "METHOD /path"
    status: int | None = None  # answer so, with `headers`
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    drop_after: int | None = None  # send that many bytes of the body, then cut the connection
    delay: float = 0.0  # seconds before the answer
    ignore_range: bool = False
    times: int = 1


class Hub:
    """repositories: "owner/name" → {revision: (commit, folder)}."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, tuple[str, Path]]] = {}
        self.faults: list[Fault] = []
        self.sent: dict[str, list[tuple[int, int]]] = {}  # file → ranges whose bytes left
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.bytes_per_second: float | None = None
        self.lock = threading.Lock()
        self.accounts: dict[str, tuple[str, str]] = {}  # token → (user, role)
        self.uploads: Path | None = None  # where repositories that are made here lie
        self.private: set[str] = set()
        self._signature = 0
        self.signatures: set[str] = set()
        self.signed_once = False  # whether a signed address serves one request alone

    def add(self, name: str, folder: Path, revision: str = "main") -> str:
        """Serve a folder as a revision; returns its commit."""
        digest = hashlib.sha1(f"{name}{revision}{folder}".encode()).hexdigest()
        self.repositories.setdefault(name, {})[revision] = (digest, folder)
        self.repositories[name][digest] = (digest, folder)
        return digest

    def bytes_of(self, file: str) -> int:
        return sum(end - start for start, end in self.sent.get(file, []))

    def forget(self) -> None:
        self.sent.clear()
        self.requests.clear()

    def sign(self) -> str:
        with self.lock:
            self._signature += 1
            signature = f"signed-{self._signature}"
            self.signatures.add(signature)
        return signature

    def fault(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    cdn: str

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append((f"POST {path}", dict(self.headers)))
        fault = self.hub.fault(f"POST {path}")
        if fault and fault.status:
            return self._status(fault.status, fault.headers)
        account = self._account()
        if account is None:
            return self._status(401)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(account, json.loads(body))
        if found := re.fullmatch(r"/api/models/(.+?)/preupload/main", path):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return self._json({"files": [{"path": name, **modes} for name in files]})
        if found := re.fullmatch(r"/api/models/(.+?)/commit/main", path):
            return self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        return self._status(404)

    def _account(self) -> str | None:
        """The user whose token came along."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.hub.accounts.get(token, (None, ""))[0]

    def _whoami(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.hub.accounts:
            return self._status(401)
        name, role = self.hub.accounts[token]
        return self._json({"name": name, "auth": {"accessToken": {"role": role}}})

    def _create(self, account: str, about: dict[str, object]) -> None:
        owner = about.get("organization") or account
        name = f"{owner}/{about['name']}"
        if owner != account:
            return self._status(403)
        url = {"url": f"http://{self.headers['Host']}/{name}"}
        if name in self.hub.repositories:
            return self._json(url | {"error": "You already created this model repo"}, 409)
        assert self.hub.uploads is not None
        (self.hub.uploads / name).mkdir(parents=True)
        self.hub.add(name, self.hub.uploads / name)
        if about.get("private") or about.get("visibility") == "private":
            self.hub.private.add(name)
        return self._json(url)

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        _, folder = self.hub.repositories[name]["main"]
        for line in lines:
            path = folder / line["value"].get("path", "")
            if line["key"] == "file":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(line["value"]["content"]))
            elif line["key"] == "deletedFile":
                path.unlink()
        url = f"http://{self.headers['Host']}/{name}/commit/{'0' * 40}"
        return self._json({"commitUrl": url, "commitOid": "0" * 40, "success": True})

    def _tree(self, name: str) -> None:
        if name not in self.hub.repositories:
            return self._status(404, {"X-Error-Code": "RepoNotFound"})
        _, folder = self.hub.repositories[name]["main"]
        files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
        return self._json(
            [
                {
                    "type": "file",
                    "path": p.relative_to(folder).as_posix(),
                    "size": p.stat().st_size,
                    "oid": hashlib.sha1(p.read_bytes()).hexdigest(),
                }
                for p in files
            ]
        )

    def _json(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        with self.hub.lock:
            self.hub.requests.append((request, dict(self.headers)))
        fault = self.hub.fault(request)
        if fault and fault.delay:
            time.sleep(fault.delay)
        if fault and fault.status:
            return self._status(fault.status, fault.headers)
        if path == "/api/whoami-v2":
            return self._whoami()
        if found := re.fullmatch(r"/api/models/(.+?)/tree/main", path):
            return self._tree(found[1])
        if found := re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", path):
            return self._model_info(found[1], found[2] or "main")
        if found := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            return self._resolve(found[1], found[2], found[3], fault)
        if found := re.fullmatch(r"/cdn/(.+?)@([0-9a-f]{40})/(.+)", path):
            if urlsplit(self.path).query not in self.hub.signatures:
                return self._status(403)
            if self.hub.signed_once:
                self.hub.signatures.discard(urlsplit(self.path).query)
            return self._file(self.hub.repositories[found[1]][found[2]][1] / found[3], fault)
        return self._status(404)

    def _status(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _model_info(self, name: str, revision: str) -> None:
        if name not in self.hub.repositories:
            return self._status(401, {"X-Error-Code": "RepoNotFound"})
        if revision not in self.hub.repositories[name]:
            return self._status(404, {"X-Error-Code": "RevisionNotFound"})
        commit, folder = self.hub.repositories[name][revision]
        files = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
        siblings = [{"rfilename": file} for file in files]
        about = {"id": name, "sha": commit, "siblings": siblings}
        return self._json(about | {"private": name in self.hub.private})

    def _resolve(self, name: str, revision: str, file: str, fault: Fault | None) -> None:
        if name not in self.hub.repositories or revision not in self.hub.repositories[name]:
            return self._status(404, {"X-Error-Code": "RepoNotFound"})
        commit, folder = self.hub.repositories[name][revision]
        path = folder / file
        if not path.is_file():
            return self._status(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        etag = f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"'
        if not file.endswith(".safetensors"):
            return self._file(path, fault, {"X-Repo-Commit": commit, "ETag": etag})
        self.send_response(302)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Linked-ETag", etag)
        self.send_header("X-Linked-Size", str(path.stat().st_size))
        self.send_header("Location", f"{self.cdn}/cdn/{name}@{commit}/{file}?{self.hub.sign()}")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _file(self, path: Path, fault: Fault | None, headers: dict[str, str] | None = None) -> None:
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = 0, size
        if asked and not (fault and fault.ignore_range):
            start, end = int(asked[1]), min(int(asked[2]) + 1, size)
            if start >= size:
                return self._status(416, {"Content-Range": f"bytes */{size}"})
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        else:
            self.send_response(200)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "GET":
            self._body(path, start, end, fault)
        return None

    def _body(self, path: Path, start: int, end: int, fault: Fault | None) -> None:
        stop = end
        if fault and fault.drop_after is not None:
            stop = min(end, start + fault.drop_after)
        position = start
        with path.open("rb") as file, contextlib.suppress(ConnectionError):
            file.seek(start)
            while position < stop:
                data = file.read(min(1 << 14, stop - position))
                self.wfile.write(data)
                position += len(data)
                if self.hub.bytes_per_second:
                    time.sleep(len(data) / self.hub.bytes_per_second)
        with self.hub.lock:
            self.hub.sent.setdefault(path.name, []).append((start, position))
        if stop < end:
            self.close_connection = True


class Running:
    """A hub that answers at `endpoint`, and the environment of a client of it."""

    def __init__(self, hub: Hub, endpoint: str):
        self.hub, self.endpoint = hub, endpoint

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """For a subprocess: this hub, a cache of its own, no proxies."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
        kept = {k: v for k, v in kept.items() if not k.lower().endswith("_proxy")}
        return kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **more,
        }


@contextlib.contextmanager
def running_hub() -> Iterator[Running]:
    """Start hub and CDN on free ports of this machine."""
    hub = Hub()
    cdn_handler = type("CdnHandler", (Handler,), {"hub": hub, "cdn": ""})
    cdn = ThreadingHTTPServer(("127.0.0.1", 0), cdn_handler)
    handler = type(
        "HubHandler", (Handler,), {"hub": hub, "cdn": f"http://127.0.0.1:{cdn.server_port}"}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threads = [threading.Thread(target=s.serve_forever, daemon=True) for s in (server, cdn)]
    for thread in threads:
        thread.start()
    try:
        yield Running(hub, f"http://127.0.0.1:{server.server_port}")
    finally:
        for each in (server, cdn):
            each.shutdown()
            each.server_close()
