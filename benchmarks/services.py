"""What a chat call costs: ours against aiohttp by hand, OpenAI's package, litellm and langchain-openai.

One server in a process of its own answers at once with the same bytes, so what is measured is the client:
whole answers, 64 and 512 at once, and streams, 64 at once and alone. All sides write a body and read text and
usage out of the answer. They take turns; the median of the turns is told. Packages that are not installed are
left out; litellm asks for an older openai than the tests, so give this an environment of its own:

    pip install -e . openai litellm langchain-openai

Run: python benchmarks/services.py
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from multiprocessing.connection import Connection

PROMPT = "What is the capital of France? " * 8
KEY = "none"
MODEL = "gpt-local"
TURNS = [{"role": "user", "content": PROMPT}]
ASKED = {"temperature": 0, "max_tokens": 256}
HEADERS = {"Authorization": f"Bearer {KEY}"}
STREAM_TOKENS = 200

Ask = Callable[[], Awaitable[object]]
# Opened with the server's URL and the number of calls at once.
Side = Callable[[str, int], AbstractAsyncContextManager[Ask]]
Pieces = Callable[[], AsyncIterator[str]]
StreamSide = Callable[[str], AbstractAsyncContextManager[Pieces]]


# The server


def answer() -> bytes:
    """Return the JSON of a whole answer."""
    usage = {"prompt_tokens": 64, "completion_tokens": 64, "total_tokens": 128}
    message = {"role": "assistant", "content": "Paris. " * 32}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": MODEL}
    return json.dumps({**head, "choices": [choice], "usage": usage}).encode()


def events() -> list[bytes]:
    """Return the events of a streamed answer."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": MODEL}

    def event(delta: dict[str, str], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n".encode()

    usage = {"prompt_tokens": 64, "completion_tokens": STREAM_TOKENS, "total_tokens": 264}
    told = [event({"role": "assistant", "content": ""})]
    told += [event({"content": " word"}) for _ in range(STREAM_TOKENS)]
    told += [event({}, "stop")]
    told += [f"data: {json.dumps({**head, 'choices': [], 'usage': usage})}\n\n".encode()]
    return [*told, b"data: [DONE]\n\n"]


def serve(told: Connection) -> None:
    """Answer chat calls until the process is ended."""
    from aiohttp import web

    whole, pieces = answer(), events()

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if not body.get("stream"):
            return web.Response(body=whole, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0)  # the other streams have their turn
        return response

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        told.send(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        await asyncio.Event().wait()

    asyncio.run(run())


# Whole answers


@asynccontextmanager
async def by_hand(url: str, at_once: int) -> AsyncIterator[Ask]:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=HEADERS, connector=connector) as session:

        async def ask() -> object:
            body = {"model": MODEL, "messages": TURNS, **ASKED}
            async with session.post(f"{url}/chat/completions", json=body) as found:
                found.raise_for_status()
                value = await found.json()
                return value["choices"][0]["message"]["content"], value["usage"]

        yield ask


@asynccontextmanager
async def ours(url: str, at_once: int) -> AsyncIterator[Ask]:
    """One call after another of a client, from this loop."""
    import nbproviders as nbp

    provider = nbp.create_provider("openai", base_url=url, api_key=KEY, parallel=at_once)
    async with provider.model(MODEL) as m:
        yield lambda: m.generate(PROMPT, **ASKED)
    nbp.unload_all()


@asynccontextmanager
async def openai(url: str, at_once: int) -> AsyncIterator[Ask]:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:

        async def ask() -> object:
            found = await client.chat.completions.create(model=MODEL, messages=TURNS, **ASKED)
            return found.choices[0].message.content, found.usage

        yield ask


@asynccontextmanager
async def litellm(url: str, at_once: int) -> AsyncIterator[Ask]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import asks the network
    import litellm as package

    package.suppress_debug_info = True

    async def ask() -> object:
        found = await package.acompletion(
            model=f"openai/{MODEL}", messages=TURNS, api_base=url, api_key=KEY, **ASKED
        )
        return found.choices[0].message.content, found.usage

    yield ask


@asynccontextmanager
async def langchain(url: str, at_once: int) -> AsyncIterator[Ask]:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=MODEL, base_url=url, api_key=KEY, max_retries=0, **ASKED)

    async def ask() -> object:
        found = await model.ainvoke(PROMPT)
        return found.content, found.usage_metadata

    yield ask


SIDES: dict[str, tuple[str, Side]] = {
    "aiohttp": ("aiohttp", by_hand),
    "m.generate": ("nbproviders", ours),
    "openai": ("openai", openai),
    "litellm": ("litellm", litellm),
    "langchain-openai": ("langchain_openai", langchain),
}


async def rate(ask: Ask, calls: int, at_once: int) -> float:
    """Return calls a second, with so many under way."""
    left = iter(range(calls))

    async def work() -> None:
        for _ in left:
            assert await ask()

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
    return calls / (time.perf_counter() - began_s)


async def compare_rate(url: str, calls: int, at_once: int) -> float:
    """Return cells a second of a comparison."""
    import nbproviders as nbp

    provider = nbp.create_provider("openai", base_url=url, api_key=KEY, parallel=at_once)
    async with provider.model(MODEL) as m:
        await nbp.compare([m], [PROMPT] * at_once, progress=False)  # connections are made
        began_s = time.perf_counter()
        result = await nbp.compare([m], [PROMPT] * calls, progress=False)
        took_s = time.perf_counter() - began_s
    assert result.frame["error"].isna().all()
    nbp.unload_all()
    return calls / took_s


async def side_rate(name: str, url: str, calls: int, at_once: int) -> float:
    if name == "compare":
        return await compare_rate(url, calls, at_once)
    async with SIDES[name][1](url, at_once) as ask:
        await rate(ask, at_once, at_once)  # connections are made
        return await rate(ask, calls, at_once)


async def whole(url: str, options: argparse.Namespace) -> None:
    """Print requests a second of all sides."""
    names = [name for name, (package, _) in SIDES.items() if importlib.util.find_spec(package)]
    names.insert(1, "compare")
    for at_once in (64, 512):
        rates: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(options.turns + 1):
            for name in names[:: 1 if turn % 2 else -1]:
                quick = name in ("aiohttp", "compare", "m.generate")
                calls = options.calls if quick else max(options.calls // 8, at_once)
                reached = await side_rate(name, url, calls, at_once)
                if turn:  # the first turn warms up
                    rates[name].append(reached)
        middle = {name: statistics.median(told) for name, told in rates.items()}
        print(
            f"\n{at_once} at once                requests/s   of aiohttp   compare is   m.generate is"
        )
        for name, per_s in middle.items():
            print(
                f"  {name:18} {per_s:12.0f} {per_s / middle['aiohttp']:12.2f}"
                f" {middle['compare'] / per_s:10.1f} x {middle['m.generate'] / per_s:13.1f} x"
            )


# Streams


@asynccontextmanager
async def stream_by_hand(url: str) -> AsyncIterator[Pieces]:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=HEADERS, connector=connector) as session:

        async def pieces() -> AsyncIterator[str]:
            body = {"model": MODEL, "messages": TURNS, "stream": True, **ASKED}
            async with session.post(f"{url}/chat/completions", json=body) as found:
                async for line in found.content:
                    if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                        continue
                    choices = json.loads(line[6:])["choices"]
                    if choices and (text := choices[0]["delta"].get("content")):
                        yield text

        yield pieces


@asynccontextmanager
async def our_stream(url: str) -> AsyncIterator[Pieces]:
    import nbproviders as nbp

    provider = nbp.create_provider("openai", base_url=url, api_key=KEY, parallel=512)
    async with provider.model(MODEL) as m:
        yield lambda: m.stream(PROMPT, **ASKED)
    nbp.unload_all()


@asynccontextmanager
async def openai_stream(url: str) -> AsyncIterator[Pieces]:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:

        async def pieces() -> AsyncIterator[str]:
            found = await client.chat.completions.create(
                model=MODEL, messages=TURNS, stream=True, **ASKED
            )
            async for one in found:
                if one.choices and (text := one.choices[0].delta.content):
                    yield text

        yield pieces


STREAMS: dict[str, tuple[str, StreamSide]] = {
    "aiohttp": ("aiohttp", stream_by_hand),
    "m.stream": ("nbproviders", our_stream),
    "openai": ("openai", openai_stream),
}


async def drained(pieces: Pieces) -> int:
    count = 0
    async with aclosing(pieces()) as found:  # type: ignore[type-var]
        async for _ in found:
            count += 1
    assert count == STREAM_TOKENS, count
    return count


async def first_s(pieces: Pieces) -> float:
    """Return how long the first piece takes."""
    began_s = time.perf_counter()
    took_s = None
    async with aclosing(pieces()) as found:  # type: ignore[type-var]
        async for _ in found:
            took_s = took_s or time.perf_counter() - began_s
    assert took_s is not None
    return took_s


async def streams(url: str, options: argparse.Namespace) -> None:
    """Print tokens a second, 64 at once, and the time to the first token of one alone."""
    names = [name for name, (package, _) in STREAMS.items() if importlib.util.find_spec(package)]
    speeds: dict[str, list[float]] = {name: [] for name in names}
    firsts: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.turns + 1):
        for name in names[:: 1 if turn % 2 else -1]:
            async with STREAMS[name][1](url) as pieces:
                await drained(pieces)
                began_s = time.perf_counter()
                tokens = sum(await asyncio.gather(*(drained(pieces) for _ in range(64))))
                speed = tokens / (time.perf_counter() - began_s)
                alone = [await first_s(pieces) for _ in range(30)]
                if turn:
                    speeds[name].append(speed)
                    firsts[name] += alone
    base = {name: statistics.median(told) for name, told in firsts.items()}
    print(
        f"\nstreams of {STREAM_TOKENS}    tokens/s, 64 at once   of aiohttp   first token alone   added"
    )
    for name, told in speeds.items():
        per_s, raw = statistics.median(told), statistics.median(speeds["aiohttp"])
        added_ms = (base[name] - base["aiohttp"]) * 1e3
        print(
            f"  {name:16} {per_s:20.0f} {per_s / raw:12.2f} {base[name] * 1e3:16.2f} ms {added_ms:6.2f} ms"
        )


async def warm(url: str) -> None:
    """Import what every side needs, and let nobody pay for the objects that others brought.

    The garbage collector would walk through them at each of its full turns: litellm alone brings hundreds of
    thousands.
    """
    for package, side in SIDES.values():
        if importlib.util.find_spec(package):
            async with side(url, 1) as ask:
                await ask()
    await compare_rate(url, 1, 1)
    gc.collect()
    gc.freeze()


async def measure(url: str, options: argparse.Namespace) -> None:
    await warm(url)
    await whole(url, options)
    await streams(url, options)


def main() -> None:
    """Start the server and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=8192)
    parser.add_argument("--turns", type=int, default=3)
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
