"""Nothing is left behind in a real kernel, whatever a notebook does to its models."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.kernel.driver import Kernel, kernel
from tests.kernel.leaks import (
    HELPERS,
    NOTHING,
    WARM,
    answered,
    author,
    bad,
    good,
    run_cell,
    stopped,
    value,
)
from tests.tiny import llama_bytes, write_llama

pytest.importorskip("torch")

HIDDEN, LAYERS = 1024, 8
BYTES = llama_bytes(HIDDEN, LAYERS)  # 437 MB in float32
NOISE = 0.02 * BYTES
CYCLES, RERUNS, PROVIDERS = 50, 20, 200


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose memory cannot be mistaken for anything else's; it never ends by itself."""
    folder = tmp_path_factory.mktemp("large")
    return write_llama(folder, hidden=HIDDEN, layers=LAYERS, context=32_768, ends=False)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one that goes on for minutes."""
    return write_llama(tmp_path_factory.mktemp("endless"), context=32_768, ends=False)


@pytest.fixture
def running(large: Path) -> Iterator[Kernel]:
    """A kernel that has loaded, used and unloaded another model already."""
    with kernel() as started:
        good(started, HELPERS)
        good(started, WARM.format(path=large))
        yield started


# One cycle. What is shown or raised here stays in IPython: for good, or until the next error.
SHOWN = """
m = await nbp.load(spec)
m
"""
RAISED = """
def fail(client, module):
    also = client.raw
    raise ValueError("in the middle of a cell")
async with nbp.model(spec) as inside:
    fail(inside, inside.raw)
"""
STREAMED = """
print("begun", flush=True)
async for chunk in m.stream("x", raw=True):
    pass
"""
GENERATED = """
print("begun", flush=True)
await m.generate("x", raw=True)
"""
# Stop comes once a given share of the load is done; one that was faster is stopped right after it.
LOADING = """
async def begun(share):
    loading = asyncio.ensure_future(nbp.load(spec))
    while not loading.done() and all((one.progress or 0) < share for one in nbp.residents()):
        await asyncio.sleep(0.001)
    print("begun", flush=True)
    kept = await loading
    await asyncio.sleep(3600)
"""
HALFWAY = "[one for one in nbp.residents() if one.state == 'hot'] == []"
FULL = "used(), nbp.unload(spec)"
LEFT = "nbp.unload(spec) * 0, await settled(residents=0, threads=1, tasks=0), used()"


@pytest.mark.slow
def test_fifty_rounds_of_every_incident_leave_no_byte(running: Kernel) -> None:
    """Show, raise, stop a generation and a load, unload: after 50 rounds the same memory as after 2."""
    good(running, LOADING)
    full, after, halves = [], [], 0
    for cycle in range(CYCLES):
        assert running.run(SHOWN).outputs
        bad(running, RAISED, "ValueError: in the middle")
        assert stopped(running, STREAMED if cycle % 2 else GENERATED).status == "error"
        there, freed = value(running, FULL)
        assert freed >= BYTES
        assert stopped(running, f"await begun({cycle / CYCLES})").status == "error"
        halves += value(running, HALFWAY)
        _, left, bytes_left = value(running, LEFT)
        assert left | {"handles": 0} == NOTHING
        full.append(there)
        after.append(bytes_left)
    print(
        f"MB, of a model of {BYTES / 1e6:.0f}: with it {min(full) / 1e6:.0f} to {max(full) / 1e6:.0f}; "
        f"without it after 1 {after[0] / 1e6:.1f}, 2 {after[1] / 1e6:.1f}, {CYCLES} {after[-1] / 1e6:.1f}, "
        f"least {min(after) / 1e6:.1f}, most {max(after) / 1e6:.1f}; {halves} loads stopped halfway"
    )
    assert min(full) > max(after) + 0.9 * BYTES, "the weights were not in memory: nothing measured"
    assert halves > CYCLES / 5, "too few loads were stopped halfway"
    assert abs(after[-1] - after[1]) < NOISE
    good(running, "m = inside = None\n%reset -f out")
    bad(running, "1/0", "ZeroDivisionError")  # whose frames IPython keeps instead
    # user_ns_hidden keeps what was shown last, under three names and for good: light clients, no weights.
    assert value(running, "await settled(handles=3)") == NOTHING | {"handles": 3}


KEPT = """
kept = await nbp.load(spec)
await kept.generate("x", raw=True, max_tokens=1)
def fail(module):
    also = module
    raise ValueError("with the module in a frame")
fail(kept.raw)
"""


@pytest.mark.parametrize("debugger", ["%debug", "import pdb; pdb.pm()"])
def test_a_debugger_keeps_no_memory(running: Kernel, debugger: str) -> None:
    """Unload frees the weights while a debugger stands in their frame, and nothing is kept after it."""
    base = value(running, "used()")
    bad(running, KEPT, "ValueError")
    looked = answered(
        running,
        debugger,
        "p type(also).__name__, also is module",
        "p used()",
        "p nbp.unload(spec)",
        "p used()",
        "up",
        "p kept",
        "q",
    )
    assert "('LlamaForCausalLM', True)" in looked.text
    full, freed, left = (int(line) for line in looked.text.splitlines() if line.isdigit())
    print(f"MB, base {base / 1e6:.0f}: with it {full / 1e6:.0f}, then {left / 1e6:.0f}")
    assert freed >= BYTES
    assert full > base + 0.9 * BYTES
    assert left < base + 3 * NOISE
    bad(running, KEPT, "ValueError")
    answered(running, debugger, "p also", "u", "d", "q")
    assert value(running, "nbp.unload(spec)") >= BYTES
    assert value(running, "used()") < base + 3 * NOISE


def write_module(folder: Path, code: str, version: int) -> None:
    """Write a user's module; autoreload goes by the time of its change."""
    path = folder / "mine_on_disk.py"
    path.write_text(code)
    changed_s = time.time() + 2 * version
    os.utime(path, (changed_s, changed_s))


OPENED = """
import mine_on_disk
provider = mine_on_disk.Mine()
m = await provider.model(path).open()
await m.generate("x", raw=True, max_tokens=1)
print(provider.version())
"""


def test_autoreload_shares_the_weights(running: Kernel, large: Path, tmp_path: Path) -> None:
    """A provider's module that changes on disk between runs of its cell leaves one model, one thread."""
    good(running, f"sys.path.insert(0, {str(tmp_path)!r})\npath = {str(large)!r}")
    write_module(tmp_path, author(0), 0)
    good(running, "%load_ext autoreload\n%autoreload 2")
    assert good(running, OPENED).endswith("0")
    one, first = value(running, "held(), used()")
    for version in (1, 2, 3):
        write_module(tmp_path, author(version), version)
        assert good(running, OPENED).endswith(str(version))
        again, bytes_again = value(running, "held(), used()")
        assert again == one == NOTHING | {"residents": 1, "handles": 1, "threads": 2}
        assert bytes_again < first + NOISE
    good(running, "nbp.unload_all()")
    write_module(tmp_path, author(4, "raise RuntimeError('broken')"), 4)
    bad(running, OPENED, "ProviderError: Failed to setup resource")
    write_module(tmp_path, author(5), 5)
    assert good(running, OPENED).endswith("5")
    good(running, "m.close(), nbp.unload_all()")
    assert value(running, "held()") == NOTHING
    assert value(running, "used()") < first - 0.9 * BYTES


WAYS = {
    "a class of ours": (author(), "provider = Mine()\nm = await provider.model(path).open()"),
    "any class, registered": (
        author(base="object"),
        "nbp.register_provider('mine', Mine)\nm = await nbp.load('mine:' + path)",
    ),
    "an object, registered": (
        author(base="object"),
        "nbp.register_provider('mine', Mine())\nm = await nbp.load('mine:' + path)",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_class_defined_anew_frees_what_the_old_one_loaded(
    running: Kernel, large: Path, way: str
) -> None:
    """The cell that defines a provider and loads with it may run again and again: one model stays."""
    good(running, f"path = {str(large)!r}")
    code, opened = WAYS[way]
    taken = []
    for _ in range(3):
        good(running, f"{code}\n{opened}\nawait m.generate('x', raw=True, max_tokens=1)")
        left, bytes_left = value(running, "held(), used()")
        assert left == NOTHING | {"residents": 1, "handles": 1, "threads": 2}
        taken.append(bytes_left)
    assert max(taken) < taken[0] + NOISE


MANY = """
from nbproviders.providers.transformers import TransformersProvider
async def many(count):
    for number in range(count):
        provider = TransformersProvider()
        other = nbp.create_provider("transformers")
        async with provider.model(path) as one, other.model(path) as two:
            raw = one.raw
            assert two.raw is raw
        with TransformersProvider().model(path) as three:
            assert three.raw is raw
        del provider
    await settled(handles=0, tasks=0)
    files = await least(lambda: {"files": psutil.Process().num_fds()})
    return held(), used(), files["files"]
"""


def test_providers_that_come_and_go_share_the_weights(running: Kernel, large: Path) -> None:
    """Hundreds of providers built alike and dropped: one model, and no thread, file or task more."""
    good(running, f"path = {str(large)!r}")
    good(running, MANY)
    good(
        running,
        "m = await nbp.load(spec)\nawait m.generate('x', raw=True, max_tokens=1)\nm.close()",
    )
    left, bytes_left, files = value(running, "await many(2)")
    assert left == NOTHING | {"residents": 1, "threads": 2}
    after, bytes_after, files_after = value(running, f"await many({PROVIDERS})")
    print(f"MB after 2: {bytes_left / 1e6:.1f}, after {PROVIDERS}: {bytes_after / 1e6:.1f}")
    assert after == left
    assert files_after <= files
    assert abs(bytes_after - bytes_left) < NOISE


# Cells of a notebook, each by its name. A picker is made and shown, loads, and is unnamed in the last.
CELLS = {
    "make": "provider = nbp.create_provider('transformers')",
    "block": "async with provider.model(path) as inside:\n"
    "    first = await inside.generate('x', raw=True, max_tokens=1)\nfirst",
    "keep": "m = await nbp.load(spec)\nawait m.generate('x', raw=True, max_tokens=1)",
    "read": "async for chunk in m.stream('x', raw=True):\n    break",
    "compare": "result = await nbp.compare([spec, 'echo:a'], ['x'], {'max_tokens': 1})\nresult",
    "fail": "with nbp.model(spec) as blocking:\n    raise ValueError(blocking)",
    "pick": "picker = nbp.ModelPicker(spec)\npicker.load()\npicker",
    "picked": "while picker.model is None:\n    await asyncio.sleep(0.01)\npicker.model.spec",
    "show": "nbp.ModelPicker('echo:echo')",
    # What was shown is some 100 kB each time, and stays in Out as long as a person wants it.
    "forget": "%reset -f out",
}
COUNTED = """
from ipywidgets.widgets.widget import _instances
def counted():
    process = psutil.Process()
    # Asyncio's own pool starts a further worker when two files are asked at once: it has a bound of its own.
    pooled = sum(one.name.startswith("asyncio_") for one in threading.enumerate())
    threads = process.num_threads() - pooled
    return {"files": process.num_fds(), "all threads": threads, "widgets": len(_instances)}
"""


@pytest.mark.slow
def test_a_notebook_run_again_and_again_does_not_grow(running: Kernel, large: Path) -> None:
    """The cells of a notebook, widgets among them, run 20 times: nothing grows after the second run."""
    good(running, f"{COUNTED}\npath = {str(large)!r}")
    counts, taken, events = [], [], []
    for _ in range(RERUNS):
        for name, code in CELLS.items():
            cell = run_cell(running, code, name)
            assert cell.status == ("error" if name == "fail" else "ok"), cell.error
        wanted = "residents=2, running=0, tasks=0"
        left, counted, used, told = value(
            running, f"await settled({wanted}), await least(counted), used(), len(nbp.events())"
        )
        counts.append(left | counted)
        taken.append(used)
        events.append(told)
    print(
        counts[0], counts[-1], *(f"{one / 1e6:.0f}" for one in taken), "MB", events[:3], events[-1]
    )
    grown = {name: count for name, count in counts[-1].items() if count > counts[1][name]}
    assert grown == {}
    assert counts[-1]["handles"] == 2  # of m and of the picker
    assert abs(taken[-1] - taken[1]) < NOISE
    assert events[-1] - events[-2] == events[2] - events[1]


ENDED = """
import atexit, os, pathlib
mark = pathlib.Path({mark!r})
atexit.register(mark.touch)  # the first: it runs last
"""
BLOCKED = """
import threading
from nbproviders.abc import ResidentProvider
class Blocked(ResidentProvider):
    def load(self, key, progress):
        print("begun", flush=True)
        threading.Event().wait()
await Blocked().model("x").open()
"""
BUSY = {
    "loads": LOADING + "await begun(0.3)",
    "is stuck in a load": BLOCKED,
    "generates and blocks": "m = nbp.load_sync(spec)\n"
    "print('begun', flush=True)\nm.generate('x', raw=True)",
    "streams to a task": "m = await nbp.load(spec)\n"
    "task = asyncio.create_task(m.generate('x', raw=True))\nprint('begun', flush=True)",
}


@pytest.mark.parametrize("busy", BUSY)
def test_a_kernel_that_is_restarted_ends(large: Path, tmp_path: Path, busy: str) -> None:
    """A kernel that loads or generates ends by itself when it is restarted; the next one works."""
    mark = tmp_path / "ended"
    with kernel() as running:
        good(running, ENDED.format(mark=str(mark)))
        good(running, f"{HELPERS}\nspec = 'transformers:{large}'")
        first = psutil.Process(running.manager.provisioner.pid)
        message = running.start(BUSY[busy])
        running.wait_for_text(message, "begun")
        children = first.children(recursive=True)
        running.manager.shutdown_wait_time = 60  # then it is killed, and leaves no mark
        began_s = time.monotonic()
        running.manager.restart_kernel()
        print(f"{busy}: restarted within {time.monotonic() - began_s:.1f} s")
        assert mark.exists(), "it had to be killed"
        assert not first.is_running() or first.status() == psutil.STATUS_ZOMBIE
        assert not [one for one in children if one.is_running()]
        running.client.wait_for_ready(timeout=60)
        good(running, f"{HELPERS}\nm = await nbp.load('echo:echo')")
        assert value(running, "str(await m.generate('again')), len(nbp.residents())") == (
            "again",
            1,
        )


LEFT_BY = {
    "an exception": """
async with nbp.model(spec) as one, provider.model(path) as two:
    await one.generate("x", raw=True, max_tokens=1)
    raise ValueError
""",
    "return": """
async def asked():
    async with provider.model(path) as one:
        return await one.generate("x", raw=True, max_tokens=1)
await asked()
""",
    "a generator that is closed": """
async def texts():
    async with provider.model(path) as one:
        while True:
            yield await one.generate("x", raw=True, max_tokens=1)
asked = texts()
await anext(asked)
await asked.aclose()
""",
    "a generator that is dropped": """
def texts():
    with provider.model(path) as one:
        while True:
            yield one.generate("x", raw=True, max_tokens=1)
asked = texts()
next(asked)
del asked
""",
    "a stream broken out of": """
m = await nbp.load(spec)
async for chunk in m.stream("x", raw=True):
    break
m.close()
""",
    "a blocking stream broken out of": """
m = nbp.load_sync(spec)
for chunk in m.stream("x", raw=True):
    break
m.close()
""",
    "a stream that was never read": """
m = await nbp.load(spec)
m.stream("x", raw=True)
m = None
""",
    "an exception in a stream": """
async with nbp.model(spec) as one:
    async for chunk in one.stream("x", raw=True):
        raise ValueError
""",
    "a client that is dropped": """
m = await nbp.load(spec)
m = nbp.load_sync(spec)
m = None
""",
    "a task that is cancelled": """
async def asked():
    async with provider.model(path) as one:
        await one.generate("x", raw=True)
task = asyncio.create_task(asked())
await asyncio.sleep(0.2)
task.cancel()
try:
    await task
except asyncio.CancelledError:
    pass
del task
""",
    "a timeout": """
async with asyncio.timeout(0.2):
    async with provider.model(path) as one:
        await one.generate("x", raw=True)
""",
    "a group of tasks of which one fails": """
async def asked(one):
    await one.generate("x", raw=True)
async def fails():
    await asyncio.sleep(0.2)
    raise ValueError
async with provider.model(path) as one, asyncio.TaskGroup() as group:
    group.create_task(asked(one))
    group.create_task(fails())
""",
    "openings that are cancelled": """
nbp.unload(spec)
tasks = [asyncio.create_task(nbp.load(spec)) for _ in range(20)]
for task in tasks:
    await asyncio.sleep(0)
    task.cancel()
print(len([one for one in await asyncio.gather(*tasks, return_exceptions=True)]))
del tasks, task
""",
}


def test_no_way_out_keeps_a_lease(endless: Path) -> None:
    """However a block, a stream or a task ends: no handle, no operation and no task is left."""
    with kernel() as running:
        good(running, HELPERS)
        good(running, WARM.format(path=endless))
        good(running, f"path = {str(endless)!r}\nprovider = nbp.create_provider('transformers')")
        for way, code in LEFT_BY.items():
            running.run(code)
            bad(
                running, "one = m = None\n1/0", "ZeroDivisionError"
            )  # IPython keeps these frames instead
            left = value(running, "await settled(handles=0, running=0, tasks=0)")
            assert left | {"residents": 0, "threads": 1} == NOTHING, way
