"""Promises of ports: free, and nobody else's."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nbproviders.runtimes.process import ports, state

CHOOSE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from nbproviders.runtimes.process import ports, state
root = state.root()
with ThreadPoolExecutor(5) as pool:
    held = list(pool.map(lambda _: ports.reserve(root), range(50)))
print(*(one.port for one in held), flush=True)
sys.stdin.read()
"""


def test_no_port_is_given_twice() -> None:
    """Of 200 ports chosen by five threads in each of four processes, all held at once, none is double."""
    choosers = [
        subprocess.Popen(
            [sys.executable, "-c", CHOOSE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    found: list[str] = []
    for one in choosers:
        assert one.stdout is not None
        found += one.stdout.readline().split()
    for one in choosers:
        one.communicate()
    assert len(found) == 200
    assert len(set(found)) == 200


def test_no_port_of_those_that_systems_give_out(folder: Path) -> None:
    """Until a server binds its port, nobody who asks the system for any port is given it."""
    with socket.socket() as given:
        given.bind((ports.LOOPBACK, 0))
        lowest = 32_768 if sys.platform == "linux" else 49_152
        assert given.getsockname()[1] >= lowest  # else this machine is set up otherwise
    held = [ports.reserve(state.root()) for _ in range(50)]
    assert all(1024 < one.port < lowest for one in held)
    assert len({one.port // 1000 for one in held}) > 3  # two users' kernels do not try the same
    for one in held:
        one.release()


def test_a_reserved_port_is_free_and_refused_to_others(folder: Path) -> None:
    """Whoever asks gets another one until it is released, also in another process."""
    root = state.root()
    with ThreadPoolExecutor(4) as pool:
        held = list(pool.map(lambda _: ports.reserve(root), range(20)))
    assert len({one.port for one in held}) == 20
    with socket.socket() as server:
        server.bind((ports.LOOPBACK, held[0].port))
        server.listen()
        assert ports.taken(held[0].port)
    assert not ports.taken(held[1].port)
    lock = (
        "import sys; from nbproviders.runtimes.process import locks, state;"
        f"print(locks.try_lock(state.root(), {held[1].port}))"
    )
    asked = [sys.executable, "-c", lock]
    assert subprocess.check_output(asked, text=True).strip() == "False"
    for one in held:
        one.release()
        one.release()
    assert subprocess.check_output(asked, text=True).strip() == "True"
