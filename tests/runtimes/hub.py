"""A stand-in for the Hub, and a process of its own that uses it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE = 1 << 16
SMALL = 50_000
WAIT_S = 30


class Hub(ThreadingHTTPServer):
    """A server with some repositories.

    Attributes
    ----------
    files
        Contents by ``org/name`` and file name.
    gated
        Repositories that may be read about, but not downloaded.
    drops
        How often a download of a file breaks off after so many bytes: name → (times, bytes).
    ranges
        Whether a part of a file can be had.
    stall
        Name of a file of which nothing more comes after the first pieces, until the event is set.
    asked
        Method, path and range of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.drops: dict[str, tuple[int, int]] = {}
        self.ranges = True
        self.stall = ""
        self.go_on = threading.Event()
        self.damaged: set[str] = set()
        self.asked: list[tuple[str, str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sent_from(self, name: str) -> list[str]:
        """The ranges that were asked of a file, one for each download of it."""
        return [span for method, path, span in self.asked if method == "GET" and name in path]


class Answer(BaseHTTPRequestHandler):
    """Answers as https://huggingface.co does."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._note()
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+|/auth-check)?", path):
            self._about(found[1], found[2] or "")
        elif "/xet-" in path or path.startswith("/v"):
            self._tell(500, {"error": "this is for Xet"})
        else:
            self._file(send=True)

    def do_HEAD(self) -> None:
        self._note()
        self._file(send=False)

    def _note(self) -> None:
        self.server.asked.append((self.command, self.path, self.headers.get("Range", "")))

    def _about(self, repo: str, rest: str) -> None:
        files = self.server.files.get(repo)
        if files is None:
            self._tell(404, {"error": "no"}, code="RepoNotFound")
        elif rest == "/auth-check":
            refused = repo in self.server.gated
            self._tell(403 if refused else 200, {}, code="GatedRepo" if refused else "")
        elif rest not in ("", "/revision/main", f"/revision/{COMMIT}"):
            self._tell(404, {"error": "no"}, code="RevisionNotFound")
        else:
            siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            gated = "manual" if repo in self.server.gated else False
            told = {"id": repo, "sha": COMMIT, "siblings": siblings, "gated": gated, "tags": []}
            self._tell(200, told)

    def _file(self, send: bool) -> None:
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path.split("?")[0])
        data = found and self.server.files.get(found[1], {}).get(found[2])
        if not found or data is None:
            self._tell(404, {"error": "no"}, code="EntryNotFound")
            return
        name, begin = found[2], 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and send and self.server.ranges:
            begin = int(asked[1])
        self.send_response(206 if begin else 200)
        digest = hashlib.sha256(data).hexdigest()
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if (
            len(data) > SMALL
        ):  # what the Hub says of every large file: it could be had by Xet as well
            self.send_header("X-Xet-Hash", digest)
            route = f"{self.server.url}/api/models/{found[1]}/xet-read"
            self.send_header("X-Xet-Refresh-Route", route)
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        if send:
            self._send(name, data, begin)

    def _send(self, name: str, data: bytes, begin: int) -> None:
        times, most = self.server.drops.get(name, (0, 0))
        if times:
            self.server.drops[name] = (times - 1, most)
        if name in self.server.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        try:
            for place in range(begin, len(data), PIECE):
                if times and place - begin >= most:
                    self.close_connection = True
                    return
                if name == self.server.stall and place - begin >= 8 * PIECE:
                    self.server.go_on.wait(WAIT_S)
                self.wfile.write(data[place : place + PIECE])
        except OSError:  # nobody listens any more
            self.close_connection = True

    def _tell(self, status: int, told: object, code: str = "") -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A running server."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


HEAD = """
import json, sys, threading, time
import nbproviders as nbp
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import downloads
downloads._PAUSE_S = 0.01
one_at_a_time = threading.Lock()
def tell(**told):
    with one_at_a_time:
        print("told:" + json.dumps(told), flush=True)
"""


class Child:
    """A process of its own with a fresh Hub cache; the Hub's library reads its settings once."""

    def __init__(self, home: Path, url: str = "", **variables: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        self.environment = {
            **kept,
            "HF_HOME": str(home),
            "NBPROVIDERS_CONFIG": str(home / "none.toml"),
            **({"HF_ENDPOINT": url} if url else {}),
            **variables,
        }

    def run(self, code: str, *arguments: str) -> list[dict[str, Any]]:
        """Run code to its end and return what it told."""
        ran = subprocess.run(
            [sys.executable, "-c", HEAD + code, *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=120,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        return [json.loads(line[5:]) for line in ran.stdout.splitlines() if line[:5] == "told:"]


def random_bytes(count: int, seed: int = 0) -> bytes:
    """Bytes that no compression makes smaller."""
    import random

    return random.Random(seed).randbytes(count)


def blobs(home: Path) -> dict[str, int]:
    """Names and sizes of what the cache holds."""
    return {p.name: p.stat().st_size for p in home.glob("hub/models--*/blobs/*")}
