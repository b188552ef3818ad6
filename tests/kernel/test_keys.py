"""A key that is asked for in a real kernel: who is asked and when, and that nothing shows the key."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kernel.driver import Cell, Kernel, kernel
from tests.services.keys import FAKE, fake

VARIABLE = "NBP_LAB_API_KEY"
SETUP = f"""
import asyncio, os, sys, threading
from nbproviders.catalog import keys
names = ["{VARIABLE}"]
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Kernel]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
        patch.delenv(VARIABLE, raising=False)
        with kernel() as started:
            cell = started.run(SETUP)
            assert cell.status == "ok", cell.error
            yield started


@pytest.fixture(autouse=True)
def forgotten(running: Kernel) -> None:
    running.run("keys.forget(names)")


def question(running: Kernel) -> dict[str, Any]:
    """Return what a front end is told when a cell asks."""
    try:
        got = running.client.get_stdin_msg(timeout=20)
    except queue.Empty:
        raise AssertionError(f"no question; kernel alive: {running.manager.is_alive()}") from None
    assert got["msg_type"] == "input_request"
    return dict(got["content"])


def asked(running: Kernel, code: str, answer: str) -> Cell:
    """Run a cell that asks, answer it as a person does, and return what the cell gave."""
    message = running.start(code)
    assert question(running)["password"] is True
    running.client.input(answer)
    return running.finish(message)


def everything(running: Kernel, code: str, answer: str = "") -> str:
    """Run a cell and return all that the kernel tells any front end of it, word by word."""
    message = running.start(code)
    told: list[Any] = []
    if answer:
        told.append(question(running))
        running.client.input(answer)
    while True:
        got = running.client.get_iopub_msg(timeout=20)
        told.append(got)
        done = got["msg_type"] == "status" and got["content"]["execution_state"] == "idle"
        if done and got["parent_header"].get("msg_id") == message:
            break
    while (
        told[-1]["parent_header"].get("msg_id") != message
        or "execution_state" in told[-1]["content"]
    ):
        told.append(running.client.get_shell_msg(timeout=20))  # those of cells before it too
    return json.dumps(told, default=str)


def test_the_question(running: Kernel) -> None:
    """It is masked, says what for, and where the key can be stored for good."""
    message = running.start("keys.ask('Lab', names) is keys.find(names)")
    told = question(running)
    assert told["password"] is True
    assert str(told["prompt"]).startswith("Lab needs an API key")
    assert f"set {VARIABLE} in the environment" in str(told["prompt"])
    running.client.input(fake())
    assert running.finish(message).outputs == [{"text/plain": "True"}]


# The first is asked and answered. IPython shows a name's value as its text in %whos: none is given to it.
SHOWN = [
    "keys.ask('Lab', names)",
    "_",
    "Out, In, _, [_], {'key': _}, keys._known",
    "%history -o -n",
    "%history -g -o -l 20",
    "%whos",
    "print(os.environ, globals(), vars(keys))",
    "%xmode Verbose",
    "def failing(key):\n    secret = key\n    raise ValueError(key is secret)\n"
    "failing(keys.find(names))",
    "%tb",
]


def test_the_key_is_nowhere(running: Kernel) -> None:
    """Outputs, In and Out, history, and tracebacks that show values do not have what was entered."""
    first, *more = SHOWN
    told = everything(running, first, fake())
    assert "'****'" in told
    told += "".join(everything(running, code) for code in more)
    assert "(key='****')" in told  # the tracebacks do show values
    assert "Variable " in told  # and %whos was there
    assert FAKE not in told
    assert running.run("print(len(keys.find(names)))").text == f"{len(fake())}\n"


@pytest.mark.parametrize("mode", ["Plain", "Context", "Verbose"])
def test_a_spoiled_answer_is_not_shown(mode: str, running: Kernel) -> None:
    """An answer that cannot be a key is an error that does not have it, in any form of traceback."""
    running.run(f"%xmode {mode}")
    told = everything(running, "keys.ask('Lab', names)", FAKE + "\u00e9" + FAKE)
    told += everything(running, "%tb")
    assert "ConfigurationError" in told
    assert "a character that is not ASCII" in told
    assert FAKE not in told
    assert running.run("keys.find(names)").outputs == []


@pytest.mark.parametrize("answer", ["", "  ", "\x04"])
def test_no_answer_is_no_key(answer: str, running: Kernel) -> None:
    """Enter alone and Ctrl-D are no key, and the next call asks again."""
    for _ in range(2):
        assert asked(running, "print(keys.ask('Lab', names))", answer).text == "None\n"


def test_stop_ends_the_question(running: Kernel) -> None:
    """An interrupt is an interrupt, and the kernel goes on."""
    message = running.start("keys.ask('Lab', names)")
    question(running)
    running.interrupt()
    assert running.finish(message).error.startswith("KeyboardInterrupt")
    assert asked(running, "print(len(keys.ask('Lab', names)))", fake()).text == f"{len(fake())}\n"


def test_nobody_is_asked_where_input_is_refused(running: Kernel) -> None:
    """A front end without input, as nbclient and nbconvert are, is not asked, and not held up."""
    message = str(running.client.execute("print(keys.ask('Lab', names))", allow_stdin=False))
    assert running.finish(message).text == "None\n"


def test_nbclient_is_not_asked() -> None:
    """A notebook that is run by a program has no key at once."""
    import nbclient
    import nbformat

    cells = [SETUP, "print(keys.ask('Lab', names))"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in cells])
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    assert notebook.cells[1].outputs[0]["text"] == "None\n"


@pytest.mark.parametrize(
    "where",
    [
        "await asyncio.to_thread(keys.ask, 'Lab', names)",
        "await engine.default().call(on_engine)",
        "engine.default().wait(on_engine)",
    ],
)
def test_other_threads_do_not_ask(where: str, running: Kernel) -> None:
    """Only the cell's own thread asks: not a pool's, and not the engine's."""
    code = """
from nbproviders.core import engine
async def on_engine():
    return keys.ask('Lab', names)
"""
    assert running.run(f"{code}\nprint({where})").text == "None\n"


WIDGET = """
told = []
def on_message(message):
    told.append(keys.ask('Lab', names))
def opened(comm, message):
    comm.on_msg(on_message)
get_ipython().kernel.comm_manager.register_target("lab", opened)
"""
AWAITING = """
print("begun", flush=True)
for _ in range(100):  # some kernels handle clicks only after the cell
    await asyncio.sleep(0.01)
    if len(told) > 1:
        break
"""


def click(running: Kernel) -> None:
    """Send what a click on a widget sends."""
    content = {"comm_id": "c", "data": {}}
    session = running.client.session
    running.client.shell_channel.send(session.msg("comm_msg", content))


def test_widgets_do_not_ask(running: Kernel) -> None:
    """A click's callback asks nobody, neither between cells nor while one is awaiting."""
    assert running.run(WIDGET).status == "ok"
    opened = {"comm_id": "c", "target_name": "lab", "data": {}}
    running.client.shell_channel.send(running.client.session.msg("comm_open", opened))
    click(running)
    assert running.run("print(told)").text == "[None]\n"
    message = running.start(AWAITING)
    running.wait_for_text(message, "begun")
    click(running)
    running.finish(message)
    assert running.run("print(told)").text == "[None, None]\n"
