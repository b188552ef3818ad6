"""What `Wire` costs over the HTTP library it stands on: chat calls to one local server, many at once.

The server runs in a process of its own and answers at once, so that what is measured is the client. Each side
keeps its connections; sides take turns, and the median of the turns is told.

Run: python benchmarks/wire.py
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any

Ask = Callable[[], Awaitable[str]]
Side = Callable[[str], AbstractAsyncContextManager[Ask]]

BODY = {
    "model": "local",
    "messages": [{"role": "user", "content": "What is the capital of France? " * 8}],
    "temperature": 0,
    "max_tokens": 64,
}
HEADERS = {"Authorization": "Bearer none"}
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 0,
    "model": "local",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Paris. " * 32},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 64, "completion_tokens": 64, "total_tokens": 128},
}


def serve(told: Connection) -> None:
    """Answer chat calls until the process is ended."""
    from aiohttp import web

    raw = json.dumps(ANSWER).encode()

    async def chat(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=raw, content_type="application/json")

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        told.send(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        await asyncio.Event().wait()

    asyncio.run(run())


@asynccontextmanager
async def raw_aiohttp(url: str) -> Any:
    """The library by hand, with what every client does: a session kept, JSON written and read."""
    import aiohttp

    async with aiohttp.ClientSession(
        headers=HEADERS, connector=aiohttp.TCPConnector(limit=0)
    ) as session:

        async def ask() -> str:
            async with session.post(f"{url}/chat/completions", json=BODY) as answer:
                answer.raise_for_status()
                return str((await answer.json())["choices"][0]["message"]["content"])

        yield ask


@asynccontextmanager
async def wire(url: str) -> Any:
    """Ours."""
    from nbproviders.runtimes.http import Wire

    opened = Wire(url, headers=HEADERS)

    async def ask() -> str:
        answer = await opened.json("POST", "chat/completions", BODY)
        return str(answer["choices"][0]["message"]["content"])

    yield ask
    await opened.aclose()


SIDES: dict[str, Side] = {"aiohttp": raw_aiohttp, "Wire": wire}


async def rate(ask: Ask, calls: int, at_once: int) -> tuple[float, float]:
    """Return calls a second, with so many under way, and the CPU time of this process for each, in µs."""
    left = iter(range(calls))

    async def work() -> None:
        for _ in left:
            assert await ask()

    began_s, cpu_began_s = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
    cpu_s = time.process_time() - cpu_began_s
    return calls / (time.perf_counter() - began_s), cpu_s / calls * 1e6


async def measure(url: str, options: argparse.Namespace) -> None:
    """Print the rates of all sides, 64 and 512 at once."""
    for at_once in (64, 512):
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
        for turn in range(options.turns + 1):
            for name in list(SIDES)[:: 1 if turn % 2 else -1]:
                async with SIDES[name](url) as ask:
                    await rate(ask, at_once, at_once)  # connections are made
                    reached = await rate(ask, options.calls, at_once)
                if turn:  # the first turn warms up
                    rates[name].append(reached)
        middle = {
            name: [statistics.median(column) for column in zip(*told, strict=True)]
            for name, told in rates.items()
        }
        for name, (per_s, cpu_us) in middle.items():
            ratio = per_s / middle["aiohttp"][0]
            print(
                f"{at_once:4} at once  {name:8} {per_s:6.0f} requests/s ({ratio:.2f} of aiohttp), "
                f"{cpu_us:.0f} µs of CPU each"
            )


def main() -> None:
    """Start the server and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    server = spawn.Process(target=serve, args=(there,), daemon=True)
    server.start()
    there.close()  # should the server end, waiting for it ends too
    try:
        asyncio.run(measure(here.recv(), options))
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
