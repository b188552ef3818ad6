"""Stand-in servers, as small programs, and a look at what processes are left of them."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nbproviders.runtimes.process import state
from nbproviders.runtimes.process.keeping import answers
from nbproviders.runtimes.process.starting import Command

BOUND_S = 10.0

# Answers /health, /echo (the body back) and /events (a line each 50 ms), and asks for a key if told to.
PROGRAM = textwrap.dedent(
    """
    import http.server, os, signal, socket, subprocess, sys, time

    PORT, KEY = int(sys.argv[1]), os.environ.get("KEY", "")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if KEY and self.headers.get("Authorization") != "Bearer " + KEY:
                return self.say(401, b"no key")
            if self.path != "/events":
                told = " ".join(sorted(name.lower() for name in self.headers))
                return self.say(200, f"{os.getpid()} {told}".encode())
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for n in range(1000):
                self.wfile.write(b"8\\r\\ndata: %d\\n\\r\\n" % (n % 10))
                self.wfile.flush()
                time.sleep(0.05)

        def do_POST(self):
            self.say(200, self.rfile.read(int(self.headers["Content-Length"])))

        def say(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    def grandchild(**how):
        return subprocess.Popen(["sleep", "100"], **how).pid

    def ignore():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def serve():
        http.server.ThreadingHTTPServer.request_queue_size = 128
        http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
    """
)


def program(
    body: str = "serve()", *, key: bool = True, gate: bool = False, more: tuple[str, ...] = ()
) -> Callable[..., Command]:
    """Return a command whose server runs a body after the definitions above."""

    def command(port: int, secret: str) -> Command:
        text = PROGRAM + textwrap.dedent(body)
        env = {"KEY": secret} if key and not gate else {}
        return Command([sys.executable, "-I", "-S", "-c", text, str(port), *more], env, gate)

    return command


async def healthy(base_url: str, key: str) -> bool:
    """Whether a stand-in answers with its key."""
    return await answers(base_url, key)


def left(folder: Path) -> list[int]:
    """Return the processes that came of this test, by their environment, and zombies of ours."""
    found = []
    mine = str(os.getpid())
    for entry in Path("/proc").glob("[0-9]*"):
        values = state.proc_stat(entry.name)
        try:
            told = (entry / "environ").read_bytes()
        except OSError:
            told = b""
        ours = f"{state.STATE_VARIABLE}={folder}".encode() in told.split(b"\0")
        if entry.name != mine and (ours or values[:2] == ["Z", mine]):
            found.append(int(entry.name))
    return found


def files(folder: Path) -> list[str]:
    """Return what is on disk of servers; the file of locks is no trace of any of them."""
    return sorted(
        path.name for path in folder.rglob("*") if path.is_file() and path.name != "locks"
    )


def soon(true: Callable[[], object], bound_s: float = BOUND_S) -> float:
    """Wait until something is true and return the seconds that took."""
    began_s = time.monotonic()
    while not true():
        assert time.monotonic() - began_s < bound_s, "it never happened"
        time.sleep(0.005)
    return time.monotonic() - began_s


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """Check at the end that no process and no file of the servers is left."""
    yield
    soon(lambda: not left(folder))
    assert files(folder) == []
