"""Run as a program: a kernel that starts or finds a server, does something, and waits to be killed.

Arguments: what to do, the body of the server. Prints the server's pid and its address; ends with its input.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import time

from nbproviders.residency.progress import Progress
from nbproviders.runtimes.process import server
from tests.runtimes.process.servers import healthy, program


async def main(what: str, keep_s: str) -> None:
    one = await server.start(
        "lab",
        program("serve()" if "gate" not in what else "grandchild()\nserve()", gate="gate" in what),
        ready=healthy,
        timeout_s=30,
        progress=Progress(),
        keep=bool(float(keep_s)),
        keep_s=float(keep_s),
        identity="a",
    )
    if "fork" in what:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        print(child.pid, flush=True)
    if "exec" in what:
        heir = subprocess.Popen(["sleep", "60"], close_fds=False)  # noqa: ASYNC220
        print(heir.pid, flush=True)
    print(one.pid, flush=True)
    sys.stdin.read()
    if "release" in what:
        await one.release()
        print("released", flush=True)
        await asyncio.sleep(60)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
