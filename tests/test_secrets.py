"""Keys in a whole notebook session, and the search for them that follows every run of the tests."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests import leaks
from tests.kernel.driver import Kernel, kernel
from tests.services.keys import FAKE, fake
from tests.services.openai import OpenAIServer

HERE = Path(__file__).parents[1]


# One session in a real kernel

PICKED = """
import asyncio
picker.load()
for _ in range(200):
    await asyncio.sleep(0.05)
    if picker.model is not None or picker.error:
        break
print("picked", picker.model, picker.error)
"""
COMPARED = "result = await nbp.compare(lab, ['one', 'two'])\nresult"
FAILURES = [
    f"%xmode {mode}\nasync with wrong.model('words') as client:\n    await client.generate('hi')"
    for mode in ("Plain", "Context", "Verbose")
]
CELLS = [
    "import os\nimport nbproviders as nbp",
    # The right key, from the environment
    "provider = nbp.create_provider('openai', model='words')\nprovider",
    "provider.config, vars(provider), provider.config.model_dump(), str(provider.config)",
    "m = await nbp.load('openai:words')\nm",
    "answer = await m.generate('one two')\nanswer, vars(answer) if hasattr(answer, '__dict__') else ''",
    "print(m.info, vars(m.raw), m.raw.wire, nbp.residents(), nbp.events())",
    # A wrong one, which the service repeats in full
    "wrong = nbp.create_provider('openai', api_key=os.environ['NBP_WRONG_KEY'], model='words')\nwrong",
    "wrong.config, vars(wrong)",
    "lab = ['openai:words', wrong.model('words?timeout=9')]",
    # Widgets, comparisons and their files
    "picker = nbp.ModelPicker('openai:words')\npicker",
    PICKED,
    "import ipywidgets\nprint(ipywidgets.Widget.get_manager_state())",
    COMPARED,
    "print(result.to_csv('result.csv'), result.to_html('result.html'))",
    "print(result.frame.to_dict())",
    # Failures, as each mode of traceback shows them
    *FAILURES,
    "%tb",
    "%history -o -n",
    "%history -g -o -l 50",
    "%whos",
    "Out, In, _, __",
]


def run(running: Kernel, code: str) -> tuple[str, list[Any]]:
    """Run a cell; return all that the kernel tells a front end of it, and what a notebook keeps of that."""
    message, told, outputs = running.start(code), "", []
    while True:
        got = running.client.get_iopub_msg(timeout=120)
        told += repr(got)
        if got["parent_header"].get("msg_id") != message:
            continue
        if got["msg_type"] in ("stream", "display_data", "execute_result", "error"):
            outputs.append(nbformat.v4.output_from_msg(got))
        if got["msg_type"] == "status" and got["content"]["execution_state"] == "idle":
            break
    while True:
        reply = running.client.get_shell_msg(timeout=120)
        if reply["parent_header"].get("msg_id") == message:
            return told + repr(reply), outputs


def text_of(outputs: list[Any]) -> str:
    return "".join(str(output) for output in outputs)


def test_a_session_shows_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Providers, clients, widgets, comparisons, tracebacks, history and the saved notebook have no key."""
    wrong, right = fake("wrong"), fake("right")
    notebook = nbformat.v4.new_notebook()
    told = ""
    with OpenAIServer(key=right, models=["words"], tells_key=True) as server:
        for name, value in {
            "OPENAI_API_KEY": right,
            "NBP_WRONG_KEY": wrong,
            "OPENAI_BASE_URL": server.base_url,
            # The history that IPython keeps is one more file to search.
            "IPYTHONDIR": str(tmp_path / "ipython"),
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        with kernel() as running:
            for code in CELLS:
                shown, outputs = run(running, code)
                told += shown
                notebook.cells.append(nbformat.v4.new_code_cell(code, outputs=outputs))
        used = {seen.headers["Authorization"] for seen in server.requests}
    nbformat.write(notebook, tmp_path / "session.ipynb")
    _was_real(notebook, len(used))
    assert not leaks.holds_key(told)
    assert leaks.files(tmp_path) == []
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written >= {"session.ipynb", "result.csv", "result.html", "history.sqlite"}


def _was_real(notebook: Any, keys: int) -> None:
    """Both keys were sent, the wrong one was refused, and each cell gave what it is about."""
    assert keys == 2
    texts = {cell.source: text_of(cell.outputs) for cell in notebook.cells}
    failed = [code for code in texts if "'output_type': 'error'" in texts[code]]
    assert failed == [*FAILURES, "%tb"]
    refused = [code for code in texts if "Incorrect API key provided: ****." in texts[code]]
    assert set(refused) >= {COMPARED, *failed}
    assert "picked <Client openai:words" in texts[PICKED]
    assert "exception=AuthenticationError(" in texts[FAILURES[-1]]  # a variable and its value


# The search for keys

LEAKS = {
    "a file": ("(tmp_path / 'out.csv').write_text(f'a,{FAKE}')", r"the file .*out\.csv"),
    "a file's name": ("(tmp_path / FAKE).touch()", r"the name of a file or folder: .*\*{4}"),
    "a large file": (
        "(tmp_path / 'out.bin').write_bytes(b'x' * 5_000_000 + FAKE.encode() + b'x' * 99)",
        r"the file .*out\.bin",
    ),
    "a file in Base64": (
        "(tmp_path / 'out').write_bytes(base64.b64encode(f'user:{FAKE}'.encode()))",
        r"the file .*out",
    ),
    "a key cut off": ("print(FAKE[:20])", "Captured stdout call"),
    "a debug log": (
        "logging.getLogger('far.away').debug('with %s', FAKE)",
        r"the log of far\.away",
    ),
    "an exception in a log": (
        "try:\n        raise ValueError(FAKE)\n"
        "    except ValueError:\n        logging.getLogger('b').exception('it broke')",
        "the log of b",
    ),
    "a record's extra": (
        "logging.getLogger('c').info('sent', extra={'headers': {'x': FAKE}})",
        "the log of c",
    ),
    "printed": ("print(FAKE)", "Captured stdout call"),
    "printed by a child": ("os.system(f'echo {FAKE} >&2')", "Captured stderr call"),
    "printed and read": ("print(FAKE); capsys.readouterr()", "the output that a test read"),
    "a failure": ("assert [FAKE] == []", "what a failure shows"),
}
TEST = """
import base64, logging, os
import pytest
from tests.services.keys import FAKE

@pytest.mark.parametrize("name", ["x"])
def test_leak(tmp_path, capsys, name):
    {code}
"""
CONFTEST = "from tests.conftest import no_key_gets_out, pytest_configure\n"


def pytest_run(folder: Path, test: str) -> tuple[int, str]:
    """Run a test file in a pytest of its own, whose temporary folder is of its own too."""
    (folder / "inner").mkdir()
    (folder / "inner" / "conftest.py").write_text(CONFTEST)
    (folder / "inner" / "test_inner.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--capture=fd"]
    command += [f"--basetemp={folder / 'basetemp'}", "--rootdir=.", "inner"]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    ran = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    shutil.rmtree(folder / "basetemp")  # before the search after this run finds what that one found
    return ran.returncode, ran.stdout + ran.stderr


def test_leaks_fail_the_session(tmp_path: Path) -> None:
    """A key in a file, log, output or failure is found, told by its place, and not shown again."""
    tests = "".join(
        TEST.format(code=code).replace("test_leak", f"test_leak_{number}")
        for number, (code, _) in enumerate(LEAKS.values())
    )
    status, told = pytest_run(tmp_path, tests)
    assert status == 1
    found = [line for line in told.splitlines() if line.startswith("LEAKED")]
    missed = [name for name, (_, place) in LEAKS.items() if not re.search(place, "\n".join(found))]
    assert missed == []
    assert not any(leaks.holds_key(line) for line in found)


def test_one_leak_is_enough(tmp_path: Path) -> None:
    """A session whose every test passed fails for one key, and names the test that leaked it."""
    status, told = pytest_run(tmp_path, TEST.format(code="print(FAKE)"))
    assert status == 1
    assert "1 passed" in told
    assert re.search(r"LEAKED: a key is in Captured stdout call \(.*::test_leak\[x\]\)", told)
    assert not leaks.holds_key(told)


def test_nothing_leaked(tmp_path: Path) -> None:
    """A session in which a key was used and not shown passes, and says nothing of it."""
    code = "assert len(FAKE) > 16; logging.getLogger('a').debug('sent'); print('done')"
    status, told = pytest_run(tmp_path, TEST.format(code=code))
    assert (status, "keys that got out" in told) == (0, False), told


@pytest.mark.parametrize("before", ["", "u", "us", "usr"])
def test_base64_is_seen_through(before: str) -> None:
    """A key is found in Base64 wherever it stands in it."""
    coded = base64.b64encode(f"{before}{FAKE}:more".encode())
    assert leaks.holds_key(coded)
    assert not leaks.holds_key(base64.b64encode(b"nothing of that kind, and long enough"))
