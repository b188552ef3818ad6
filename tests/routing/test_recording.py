"""The file of a recording: one line a completion, whole whatever happens, safe to commit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.core.completion import Cost, Finish, Usage
from nbproviders.core.tokens import Token
from nbproviders.routing.recording import Recording, Take, portable, portable_text
from tests.scripted import joined

TAKE = Take(
    model="test:m",
    spec="test:m",
    date="2026-01-31",
    prompt="a\u2028b\nc",
    params={"temperature": 0.0, "stop": ("x",)},
    chat=None,
    logprobs=False,
    occurrence=1,
    chunks=((0.5, "да"), (1.0, "\ud800")),
    end_s=1.5,
    finish=Finish(
        "length",
        Usage(3, 2, 1),
        nbp.GenerationParams(seed=7),
        queue_s=0.25,
        ttft_s=0.5,
        chat=True,
        tokens=(Token("a", 1, -0.5),),
        cost=Cost(0.25, "estimated"),
        ignored=("seed", "top_p"),
    ),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "talk.jsonl"


def test_a_take_comes_back_as_it_was(path: Path) -> None:
    """Every field of it, in a line that a person can read; half characters and all line ends too."""
    messages = ({"role": "user", "content": "hi"},)
    failed = replace(
        TAKE, prompt=messages, chunks=(), finish=None, error=("InvalidRequestError", "no", "why")
    )
    recording = Recording(path)
    recording.append(TAKE)
    recording.append(failed)
    recording.append(replace(TAKE, occurrence=2, chunks=((0.5, "да"),)))
    read = Recording(path)
    assert read.takes[:2] == [TAKE, failed]
    assert "да" in path.read_text(encoding="utf-8")
    assert path.read_bytes().count(b"\n") == 3
    assert dict(read.of("test:m", TAKE.key)) == {1: TAKE, 2: read.takes[2]}


def test_the_last_of_equal_takes_counts(path: Path) -> None:
    """Recording again replaces, without losing what was there."""
    again = replace(TAKE, chunks=((0.1, "new"),))
    for take in (TAKE, again):
        Recording(path).append(take)
    assert Recording(path).of("test:m", TAKE.key)[1] == again


@pytest.mark.parametrize("cut", [1, 2, 40, -30])
def test_a_half_line_is_passed_over_and_mended(path: Path, cut: int) -> None:
    """A crash costs the line that was being written and no other."""
    Recording(path).append(TAKE)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:cut])
    assert Recording(path).takes == [TAKE]
    Recording(path).append(replace(TAKE, occurrence=2))
    assert [take.occurrence for take in Recording(path).takes] == [1, 2]
    assert path.read_bytes().startswith(whole)


def test_a_long_half_line_is_mended(path: Path) -> None:
    """Longer than what is looked at in one go."""
    Recording(path).append(TAKE)
    path.write_bytes(path.read_bytes() + b'{"x": "' + b"y" * 200_000)
    Recording(path).append(replace(TAKE, occurrence=2))
    assert [take.occurrence for take in Recording(path).takes] == [1, 2]


def test_a_whole_line_without_its_end_is_kept(path: Path) -> None:
    """As an editor may leave it."""
    Recording(path).append(TAKE)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    Recording(path).append(replace(TAKE, occurrence=2))
    assert [take.occurrence for take in Recording(path).takes] == [1, 2]


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from nbproviders.routing.recording import Recording
path, first = Path(sys.argv[1]), int(sys.argv[2])
recording = Recording(path)
take = recording.takes[0]
for number in range(first, first + 40):
    recording.append(replace(take, occurrence=number, chunks=((0.1, "x" * 20_000),)))
"""


def test_processes_and_threads_write_at_once(path: Path) -> None:
    """No line is lost, cut or mixed with another."""
    Recording(path).append(TAKE)
    places = ("1000", "2000")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), p]) for p in places]
    recordings = [Recording(path) for _ in range(2)]

    def write(recording: Recording, first: int) -> None:
        for number in range(first, first + 40):
            recording.append(replace(TAKE, occurrence=number))

    with joined(
        *(
            threading.Thread(target=write, args=(r, 3000 + 100 * (i // 2)))
            for i, r in enumerate(recordings * 2)
        )
    ):
        pass
    assert [writer.wait(60) for writer in writers] == [0, 0]
    numbers = {take.occurrence for take in Recording(path).takes}
    expected = {1} | {first + i for first in (1000, 2000, 3000, 3100) for i in range(40)}
    assert numbers == expected
    assert len(Recording(path).takes) == 1 + 2 * 40 + 4 * 40


@pytest.mark.skipif(os.name == "nt", reason="files are locked in another way there")
def test_whoever_writes_is_waited_for(path: Path) -> None:
    """Another process's half line is not taken for a crash's, and cut off, while it is being written."""
    import fcntl

    recording = Recording(path)
    recording.append(TAKE)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        writer = threading.Thread(target=recording.append, args=(replace(TAKE, occurrence=2),))
        writer.start()
        writer.join(0.1)
        assert writer.is_alive()
        assert len(Recording(path).takes) == 1
    writer.join(10)
    assert len(Recording(path).takes) == 2


def line(path: Path, **changes: Any) -> bytes:
    Recording(path).append(TAKE)
    return json.dumps({**json.loads(path.read_bytes()), **changes}).encode()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"nbproviders_recording": 2}, "Line 2 .* is of version 2"),
        ({"nbproviders_recording": None}, "Line 2 .* is no recorded completion"),
        ({"chunks": [1]}, "Line 2 .* is incomplete: TypeError"),
        ({"params": {"heat": 1}}, "Line 2 .* is incomplete: InvalidRequestError"),
        ({"finish": {"colour": "red"}}, "Line 2 .* is incomplete: KeyError"),
    ],
)
def test_a_wrong_line_is_told(path: Path, changes: dict[str, Any], told: str) -> None:
    """With its number and what is wrong, never skipped in silence."""
    wrong = line(path, **changes)
    path.write_bytes(path.read_bytes() + wrong + b"\n")
    with pytest.raises(nbp.ConfigurationError, match=told):
        Recording(path)


def test_a_line_that_is_no_json_is_told(path: Path) -> None:
    """Such as what a merge left behind."""
    path.write_bytes(b"<<<<<<< ours\n" + line(path) + b"\n")
    with pytest.raises(nbp.ConfigurationError, match="Line 1 .* is no JSON"):
        Recording(path)


def test_a_place_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """No folder; a folder in place of the file."""
    with pytest.raises(nbp.ConfigurationError, match="does not exist"):
        Recording(tmp_path / "nowhere" / "talk.jsonl")
    with pytest.raises(nbp.ConfigurationError, match="cannot be read"):
        Recording(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told(path: Path) -> None:
    """Not an answer that is recorded nowhere."""
    recording = Recording(path)
    path.symlink_to("/dev/full")
    with pytest.raises(nbp.ProviderError, match="cannot be written"):
        recording.append(TAKE)
    assert recording.takes == []


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("transformers:demo-m", "transformers:demo-m"),
        ("transformers:org/name?dtype=float32", "transformers:org/name?dtype=float32"),
        ("transformers:/home/u/my models/m?lora=/x/y", "transformers:m?lora=y"),
        (r"llama-cpp:C:\Users\u\m.gguf?n_ctx=512", "llama-cpp:m.gguf?n_ctx=512"),
        ("llama-cpp:~/m/x.gguf", "llama-cpp:x.gguf"),
        ("llama-cpp:../m/x.gguf", "llama-cpp:x.gguf"),
        ("openai:gpt?base_url=https://a.b/v1", "openai:gpt?base_url=https://a.b/v1"),
    ],
)
def test_a_reference_without_folders(spec: str, told: str) -> None:
    """Paths are cut to their last part; Hub ids and URLs are none."""
    assert portable(spec) == told


def test_a_message_without_folders_and_keys() -> None:
    """Whatever an error told of the machine it came from."""
    told = portable_text(
        r"No /home/u/x.txt, C:\Users\u\y or '~/z/w'; see https://a/b/c; api_key=abcdef"
    )
    assert told == "No x.txt, y or 'w'; see https://a/b/c; api_key=****"


@pytest.mark.skipif(os.name == "nt", reason="another system of permissions")
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_file_that_may_not_be_written_can_be_read(path: Path) -> None:
    """As where a committed recording is mounted."""
    Recording(path).append(TAKE)
    path.chmod(0o444)
    assert Recording(path).takes == [TAKE]
