"""llama.cpp's library: its log, how loads end, and how a process ends or forks with models in it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")

from nbproviders.errors import ClosedError, InsufficientMemoryError, ModelAccessError
from nbproviders.residency.progress import Progress
from nbproviders.runtimes.llamacpp import native
from nbproviders.runtimes.llamacpp.native import (
    Abort,
    complaint,
    library,
    load_weights,
    new_context,
    recorded,
)
from tests.gguf_files import write_llama_gguf


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that loads; it writes as long as it may."""
    return write_llama_gguf(tmp_path_factory.mktemp("native") / "m.gguf", context=4096, seed=1)


@pytest.fixture
def model(path: Path) -> Iterator[Any]:
    """Its weights."""
    pointer, _ = load(path)
    yield pointer
    library().llama_model_free(pointer)


def load(path: Path, progress: Progress | None = None) -> tuple[Any, list[str]]:
    return load_weights(path, gpu_layers=0, total_bytes=1000, progress=progress or Progress())


# Loading


def test_a_load_tells_how_far_it_is_and_what_was_logged(path: Path) -> None:
    """From little to all, in bytes; sizes of buffers are in the log."""

    class Noting(Progress):
        seen: list[tuple[int, int, str]] = []

        def report(self, done_bytes: int, total_bytes: int = 0, phase: str = "") -> None:
            self.seen.append((done_bytes, total_bytes, phase))

    progress = Noting()
    pointer, lines = load(path, progress)
    library().llama_model_free(pointer)
    done = [count for count, _, _ in progress.seen]
    assert done == sorted(done)
    assert progress.seen[-1] == (1000, 1000, "loading weights")
    assert "model buffer size" in "".join(lines)


def test_a_cancelled_load_ends_where_it_is(path: Path) -> None:
    """Nothing is loaded, and the next load is not disturbed."""
    progress = Progress()
    progress.cancel()
    with pytest.raises(ClosedError, match="cancelled"):
        load(path, progress)
    library().llama_model_free(load(path)[0])


@pytest.mark.parametrize("error", [ZeroDivisionError("in the widget"), KeyboardInterrupt()])
def test_what_a_listener_raises_comes_out_of_the_load(path: Path, error: BaseException) -> None:
    """It cannot pass through native code, and is not taken for damage in the file."""

    class Failing(Progress):
        def report(self, *_: object, **__: object) -> None:
            raise error

    with pytest.raises(type(error)):
        load(path, Failing())


def test_a_refusal_tells_llama_cpps_reason(tmp_path: Path) -> None:
    """What it logged is in the message."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ModelAccessError, match=r"cannot load '.*broken.gguf': .*(rror|ail)"):
        load(broken)


def test_a_context_that_cannot_be_made_tells_why(model: Any) -> None:
    """With what to choose instead."""
    params = library().llama_context_default_params()
    params.n_ctx, params.n_seq_max = 512, 100_000
    with pytest.raises(InsufficientMemoryError, match="512 tokens.*n_seq_max"):
        new_context(model, params)


def test_reasons_are_the_last_that_sound_like_one() -> None:
    """Each once; without any that is said."""
    lines = ["ok\n", "llama: error one\n", "fail", "ed two\n", "llama: error one\n", "\n"]
    assert complaint(lines) == "llama: error one; failed two"
    assert complaint(["fine\n"]) == "it gave no reason"


# Its log


def test_its_log_is_ours_and_no_warning(
    path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing goes to stderr by itself, whatever llama.cpp thinks of it."""
    with caplog.at_level(logging.DEBUG, logger="nbproviders.llamacpp"):
        library().llama_model_free(load(path)[0])
    assert any("llama_model_loader" in record.message for record in caplog.records)
    assert all(record.levelno <= logging.INFO for record in caplog.records)
    assert capfd.readouterr() == ("", "")


def test_a_handler_that_fails_does_not_end_the_load(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's filter raises inside the callback: Python tells it, and the load goes on."""
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    def fail(_: logging.LogRecord) -> bool:
        raise ZeroDivisionError

    logger = logging.getLogger("nbproviders.llamacpp")
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    logger.manager._clear_cache()  # type: ignore[attr-defined]  # of what isEnabledFor found before
    logger.addFilter(fail)
    try:
        pointer, lines = load(path)
    finally:
        logger.removeFilter(fail)
    library().llama_model_free(pointer)
    assert "model buffer size" in "".join(lines)
    assert told


def test_what_is_recorded_belongs_to_its_thread_and_block() -> None:
    """An inner block does not end the outer one, nor another thread's."""

    def say(text: str) -> None:
        native._log(native._INFO, text.encode(), None)

    with recorded() as outer:
        say("one\n")
        with recorded() as inner:
            say("two\n")
            other = threading.Thread(target=say, args=("elsewhere\n",))
            other.start()
            other.join()
        say("three\n")
    say("behind\n")
    assert (outer, inner) == (["one\n", "three\n"], ["two\n"])


def test_bytes_that_are_no_text_are_logged_all_the_same() -> None:
    """A model's metadata may be anything."""
    with recorded() as lines:
        native._log(native._INFO, b"\xff\xfe name\n", None)
    assert lines == ["\ufffd\ufffd name\n"]


# Stopping


def test_the_flag_is_what_native_code_reads(model: Any) -> None:
    """Set it is 1 for it, cleared 0; as often as one likes, by as many contexts."""
    import ctypes

    flag = Abort()
    read = ctypes.CDLL(None).strlen
    seen = []
    for change in (lambda: None, flag.set, flag.set, flag.clear, flag.set, flag.clear):
        change()
        seen.append(read(flag._flag))
    assert seen == [0, 1, 1, 0, 1, 0]


# Ends of processes


def run(script: str, *arguments: str) -> str:
    """Run a script in a process of its own; it must end well, soon and without a word of complaint."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


OPEN = """
import sys, threading
import nbproviders as nbp
path = sys.argv[1]
m = nbp.load_sync(f"llama-cpp:{path}")
"""


@pytest.mark.parametrize(
    "then",
    [
        "m.generate('the dog', max_tokens=3)",
        "m.generate('the dog', max_tokens=3); m.close()",
        "next(m.stream('the dog'))",
        "stream = m.stream('the dog'); next(stream); sys.exit(0)",
        "[next(m.stream(f'the dog {n}')) for n in range(5)]; del m",
    ],
    ids=["loaded", "closed", "dropped", "held", "many"],
)
def test_the_interpreter_ends_with_a_model_in_it(path: Path, then: str) -> None:
    """Loaded, or in the middle of a text that nobody waits for."""
    run(OPEN + then, str(path))


def test_the_interpreter_ends_while_others_generate(path: Path) -> None:
    """Daemon threads that block in calls do not keep it, nor end it badly."""
    script = """
def endless(n):
    while True:
        try:
            m.generate(f"the dog {n}", max_tokens=2000)
        except nbp.ProviderError:
            return
for n in range(4):
    threading.Thread(target=endless, args=(n,), daemon=True).start()
next(m.stream("the girl"))
print("going")
"""
    assert run(OPEN + script, str(path)) == "going\n"


def test_the_interpreter_ends_while_a_model_loads(path: Path) -> None:
    """The load is given up."""
    script = """
import sys, threading
import nbproviders as nbp
from nbproviders.residency.progress import Progress
begun, report = threading.Event(), Progress.report
def slow(self, *arguments):
    begun.set()
    report(self, *arguments)
Progress.report = slow
def load():
    try:
        nbp.load_sync(f"llama-cpp:{sys.argv[1]}")
    except nbp.ProviderError:
        pass
threading.Thread(target=load, daemon=True).start()
assert begun.wait(30)
"""
    run(script, str(path))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_models_of_its_own(path: Path) -> None:
    """It never touches its parent's, though that generates; what it loads itself writes the same."""
    script = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is what is tried
want = m.generate("the dog", max_tokens=9)
stream = m.stream("the girl", max_tokens=3000)
next(stream)
child = os.fork()
if not child:
    try:
        try:
            m.generate("the dog")
        except nbp.ProviderError as error:
            assert "fork" in str(error), error
        else:
            raise AssertionError("a child used its parent's model")
        own = nbp.load_sync(f"llama-cpp:{path}")
        assert own.generate("the dog", max_tokens=9) == want
        del m, stream
        nbp.unload_all()
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    sys.exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert m.generate("the dog", max_tokens=9) == want
stream.close()
print("parent")
"""
    assert run(OPEN + script, str(path)) == "parent\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_does_not_inherit_a_lock(path: Path) -> None:
    """That another thread held in the parent, who is not there in the child."""
    script = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from nbproviders.runtimes.llamacpp import native
held, go_on = threading.Event(), threading.Event()
def hold():
    with native._lock:
        held.set()
        go_on.wait(30)
threading.Thread(target=hold, daemon=True).start()
assert held.wait(30)
child = os.fork()
if not child:
    own = nbp.load_sync(f"llama-cpp:{path}")
    print(own.generate("the dog", max_tokens=1).usage.completion_tokens, flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
go_on.set()
assert status == 0, status
"""
    assert run(OPEN + script, str(path)) == "1\n"
