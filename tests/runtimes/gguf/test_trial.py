"""A file that kills llama.cpp kills a child; what came of it is told and remembered."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nbproviders.errors import ModelAccessError
from nbproviders.runtimes.gguf import child, trial, verdicts
from nbproviders.runtimes.gguf.header import Header, read_files
from nbproviders.runtimes.gguf.trial import ensure_loadable
from tests.gguf_files import spm_tokens, write_llama_gguf
from tests.scripted import BOUND_S

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(verdicts.CACHE_VARIABLE, str(folder))
    return folder


def model(tmp_path: Path, **own: Any) -> tuple[Header, ...]:
    return read_files(write_llama_gguf(tmp_path / "m.gguf", metadata=own))


def no_more_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a child could not even be started."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")


def test_an_ordinary_file_starts_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs nothing."""
    no_more_children(monkeypatch)
    ensure_loadable(model(tmp_path))


def test_an_unusual_file_is_tried_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that loads is accepted, and the next time no child is needed; a changed file is new."""
    files = model(tmp_path, **{"llama.unheard_of": 1})
    ensure_loadable(files)
    assert (cache / "gguf-trials.json").exists()
    executable = sys.executable
    no_more_children(monkeypatch)
    ensure_loadable(files)
    os.utime(files[0].path, ns=(1, 1))
    with pytest.raises(FileNotFoundError):
        ensure_loadable(files)
    monkeypatch.setattr(sys, "executable", executable)
    ensure_loadable(files)


BROKEN_TOKENS = [text if text != "<0x41>" else "oops" for text, _, _ in spm_tokens()]


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (
            {"tokenizer.ggml.tokens": BROKEN_TOKENS},
            ["using the vocabulary", "SIGABRT", "out_of_range"],
        ),
        ({"llama.rope.scaling.type": "bent"}, ["loading the tensors", "SIGABRT", "GGML_ASSERT"]),
        ({"llama.attention.head_count": 3}, ["refused it", "n_rot", "do not divide"]),
        ({"llama.feed_forward_length": 96}, ["refused it", "wrong shape", "Shapes do not fit"]),
    ],
)
def test_a_file_that_kills_is_an_error(
    own: dict[str, Any],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It says what was unusual, during what the child ended and how, and so it does from memory."""
    files = model(tmp_path, **own)
    messages = []
    for _ in range(2):
        with pytest.raises(ModelAccessError) as caught:
            ensure_loadable(files)
        messages.append(str(caught.value))
        no_more_children(monkeypatch)
    assert messages[0] == messages[1]
    assert all(word in messages[0] for word in [*words, "m.gguf", "Download it again"])


def test_an_unsupported_architecture_is_an_error(tmp_path: Path) -> None:
    """llama.cpp's own words name it."""
    path = write_llama_gguf(tmp_path / "m.gguf")
    size = (5).to_bytes(8, "little")
    path.write_bytes(path.read_bytes().replace(size + b"llama", size + b"lamas", 1))
    with pytest.raises(ModelAccessError, match="unknown model architecture: 'lamas'"):
        ensure_loadable(read_files(path))


def test_an_architecture_that_is_not_checked_is_tried(tmp_path: Path) -> None:
    """What is not on the list may still be sound: a child finds out."""
    ensure_loadable(read_files(write_llama_gguf(tmp_path / "m.gguf", arch="mamba")))


def test_a_split_model_is_tried_whole(tmp_path: Path) -> None:
    """The child is given the first part and finds the others."""
    own = {"llama.unheard_of": 1}
    path = write_llama_gguf(tmp_path / "m.gguf", split_tensors=8, metadata=own)
    ensure_loadable(read_files(path))


def test_stopping_ends_the_child(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `stop` raises passes through, soon, also from a thread; no verdict is kept."""
    files = model(tmp_path, **{"llama.unheard_of": 1})
    endless = tmp_path / "endless.py"  # the real one may be done before it can be stopped
    endless.write_text(f"import time; time.sleep({3 * BOUND_S})")
    monkeypatch.setattr(trial, "_CHILD", endless)
    asked, caught = threading.Event(), []

    def stop() -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    def ensure() -> None:
        try:
            ensure_loadable(files, stop)
        except KeyboardInterrupt as error:
            caught.append(error)

    thread = threading.Thread(target=ensure)
    thread.start()
    thread.join(BOUND_S)
    assert len(caught) == 1
    assert not cache.exists()
    assert not alive(str(endless))


def alive(script: str) -> list[str]:
    """The processes of ours that run a script."""
    found = []
    for task in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = task.read_bytes()
            parent = (task.parent / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:  # it has ended meanwhile
            continue
        if script.encode() in words and parent == str(os.getpid()):
            found.append(words.decode())
    return found


def test_a_child_that_takes_too_long_is_ended(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error tells the limit, and nothing is remembered: the disk may have been slow."""
    monkeypatch.setattr("nbproviders.runtimes.gguf.trial._LIMIT_S", 0.0)
    files = model(tmp_path, **{"llama.unheard_of": 1})
    with pytest.raises(ModelAccessError, match="took longer than 0 s"):
        ensure_loadable(files)
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 3}', "\x00"])
def test_a_damaged_memory_is_ignored(content: str, tmp_path: Path, cache: Path) -> None:
    """It is as good as none, and is written anew."""
    cache.mkdir()
    (cache / "gguf-trials.json").write_text(content)
    ensure_loadable(model(tmp_path, **{"llama.unheard_of": 1}))
    kept = json.loads((cache / "gguf-trials.json").read_text())
    assert [entry["good"] for entry in kept.values() if isinstance(entry, dict)] == [True]


def test_a_memory_that_cannot_be_written_is_no_error(tmp_path: Path, cache: Path) -> None:
    """The trial is made all the same."""
    cache.write_text("a file where the folder should be")
    ensure_loadable(model(tmp_path, **{"llama.unheard_of": 1}))


def test_the_oldest_verdicts_go(cache: Path) -> None:
    """The file stays small."""
    cache.mkdir()
    many = {str(index): {} for index in range(2000)}
    (cache / "gguf-trials.json").write_text(json.dumps(many))
    verdict = verdicts.Verdict(True, "", "", "")
    verdicts.remember("new", verdict)
    kept = json.loads((cache / "gguf-trials.json").read_text())
    assert len(kept) == 500
    assert verdicts.recall("new") == verdict
    assert "0" not in kept
    assert [path.name for path in cache.iterdir()] == ["gguf-trials.json"]


def test_the_trial_text_has_every_byte_of_utf8() -> None:
    """A vocabulary that lacks one is found out: llama.cpp dies of it only when a text needs it."""
    text = child.trial_text()
    text.decode()
    assert set(range(256)) - set(text) == {0xC0, 0xC1, *range(0xF5, 0x100)}


def test_a_child_imports_no_more_than_the_bindings(tmp_path: Path) -> None:
    """Neither torch nor numpy nor this package: it starts at once."""
    import subprocess

    code = (
        "import runpy, sys\n"
        f"found = runpy.run_path({child.__file__!r})\n"
        "found['_bindings']()\n"
        "print(*sorted({'torch', 'numpy', 'nbproviders'} & set(sys.modules)))\n"
    )
    began_s = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == []
    assert time.monotonic() - began_s < 10
