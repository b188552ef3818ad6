"""Cells that leave something behind in careless hands, and the figures that would show it."""

from __future__ import annotations

import ast
from typing import Any

from tests.kernel.driver import Cell, Kernel

# Told as bytes and counts of the kernel itself. What malloc keeps for later use is no leak, so it gives that
# back first. Of threads and tasks those of ours are counted: a kernel has some of its own that come and go.
HELPERS = """
import asyncio, ctypes, gc, os, sys, threading, time
import psutil
import nbproviders as nbp
from nbproviders.core import engine
from nbproviders.residency import residency

def used():
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return psutil.Process().memory_info().rss

def held():
    gc.collect()
    table, tasks = residency.default()._table, asyncio.all_tasks(engine.default()._loop)
    return {
        "residents": len(nbp.residents()),
        "running": sum(one.running for one in nbp.residents()),
        "handles": sum(table.handles(key) for key in list(table._open)),
        "threads": sum(one.name.startswith("nbproviders") for one in threading.enumerate()),
        "tasks": sum(not task.done() for task in tasks),
    }

async def least(count, times=50):
    # What is open for a moment is no leak: the journal of IPython's history, which another thread writes.
    seen = []
    for _ in range(times):
        seen.append(count())
        await asyncio.sleep(0.01)
    return {name: min(one[name] for one in seen) for name in seen[0]}

async def settled(**wanted):
    # What was cancelled ends behind: a thread lets go at its next token.
    for _ in range(3000):
        if wanted.items() <= held().items():
            break
        await asyncio.sleep(0.02)
    return held()
"""
# Another model has come and gone, so that what a first load imports and allocates is there. What is there now
# need not be searched for garbage each time.
WARM = """
async with nbp.model("transformers:demo-s") as m:
    await m.generate("12+30=", max_tokens=2)
nbp.unload_all()
m = None
spec = "transformers:{path}"
gc.collect()
gc.freeze()
"""
NOTHING = {"residents": 0, "running": 0, "handles": 0, "threads": 1, "tasks": 0}  # but the engine
# A class as an author of weights writes it, in a module or in a cell.
AUTHOR = """
import transformers
import nbproviders as nbp
from nbproviders.abc import WeightsProvider

VERSION = {version}

class Mine({base}):
    name = "mine"

    def load_model(self, model_id, model_class, quantization_config=None, device_map="auto", **kw):
        {loading}
        return transformers.AutoModelForCausalLM.from_pretrained(model_id)

    def load_tokenizer(self, model_id, **kw):
        return transformers.AutoTokenizer.from_pretrained(model_id)

    def validate_model_access(self, model_id, model_class):
        return True

    def get_provider_name(self):
        return "mine"

    def version(self):
        return VERSION
"""


def author(version: int = 0, loading: str = "pass", base: str = "WeightsProvider") -> str:
    """Return the code of a provider `Mine`; two versions of it differ."""
    return AUTHOR.format(version=version, loading=loading, base=base)


def good(running: Kernel, code: str) -> str:
    """Run a cell that must succeed and return what it printed."""
    cell = running.run(code)
    assert cell.status == "ok", f"{cell.error}\nin the cell:\n{code}"
    return cell.text.strip()


def bad(running: Kernel, code: str, error: str) -> Cell:
    """Run a cell that must end with this error."""
    cell = running.run(code)
    assert cell.status == "error", code
    assert error in cell.error, cell.error
    return cell


def value(running: Kernel, expression: str) -> Any:
    """Return the value of an expression of the kernel: numbers, texts, dicts of them."""
    return ast.literal_eval(good(running, f"print(repr(({expression})))").splitlines()[-1])


def stopped(running: Kernel, code: str) -> Cell:
    """Run a cell that prints ``begun``, press stop then, and return the cell."""
    message = running.start(code)
    running.wait_for_text(message, "begun")
    running.interrupt()
    return running.finish(message)


def answered(running: Kernel, code: str, *answers: str) -> Cell:
    """Run a cell that asks for input, answer each question, and return the cell."""
    message = running.start(code)
    for answer in answers:
        asked = running.client.get_stdin_msg(timeout=60)
        assert asked["msg_type"] == "input_request"
        running.client.input(answer)
    return running.finish(message)


def run_cell(running: Kernel, code: str, cell: str) -> Cell:
    """Run a cell as a front end does that tells which one it is."""
    content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
    session = running.client.session
    message = session.msg("execute_request", content, metadata={"cellId": cell})
    running.client.shell_channel.send(message)
    return running.finish(message["header"]["msg_id"])
