"""Promises of the doctor: what is broken is named, with what to do, and nothing broken stops the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import namedtuple
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from nbproviders import doctor, registry
from nbproviders.catalog import local
from nbproviders.doctor import machine, notebook, packages, places, plugins
from nbproviders.doctor.finding import Finding
from nbproviders.doctor.report import tell
from nbproviders.residency.memory import Reading
from tests.services.keys import FAKE

BOUND_S = 120
CHILD = """
import json
from dataclasses import asdict
from nbproviders import doctor
print("@", json.dumps([asdict(one) for one in doctor.examine()]))
"""


def examined(folder: Path, **environment: str) -> dict[str, Finding]:
    """Return what a fresh process finds that sees a folder's packages first, by name."""
    given = {**os.environ, "PYTHONPATH": str(folder), **environment}
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        env=given,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=True,
    )
    assert FAKE not in child.stdout + child.stderr
    found = json.loads(child.stdout.rpartition("@ ")[2])
    return {one["name"]: Finding(**one) for one in found}


def plugin(folder: Path, name: str, points: dict[str, str]) -> None:
    """Lay down a package that is there but for its code."""
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = [f"{key} = {value}" for key, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[dotevals.model_providers]", *lines, ""]))


def test_what_is_broken_is_found_and_what_is_sound_is_told(tmp_path: Path) -> None:
    """A library, a plugin, a setting, a key, a budget and a cache, all broken at once: each is named."""
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text(
        "raise ImportError('half of it is gone')"
    )
    (tmp_path / "config.toml").write_text("[folders")
    (tmp_path / "file").touch()
    plugin(tmp_path, "brokenplug", {"mine": "brokenplug.nowhere:Provider", "Echo": "else:Echo"})
    found = examined(
        tmp_path,
        NBPROVIDERS_CONFIG=str(tmp_path / "config.toml"),
        NBPROVIDERS_BUDGET="lots",
        OPENAI_API_KEY=f"{FAKE}\nand a line",
        GROQ_API_KEY=FAKE,
        HF_HUB_CACHE=str(tmp_path / "file" / "hub"),
    )
    wrong = {name for name, one in found.items() if one.state == "problem"}
    assert wrong >= {"mine", "settings", "OpenAI", "NBPROVIDERS_BUDGET", "Hub cache"}
    assert wrong <= {
        "mine",
        "settings",
        "OpenAI",
        "NBPROVIDERS_BUDGET",
        "Hub cache",
        "transformers",
    }
    assert all(found[name].hint for name in wrong)
    assert "brokenplug 1.2, dotevals.model_providers" in found["mine"].said
    assert "No module named 'brokenplug'" in found["mine"].said
    assert "pip uninstall brokenplug" in found["mine"].hint
    assert "nbproviders brings the name 'echo' too" in found["Echo"].said
    assert "not valid TOML" in found["settings"].said
    assert "line break" in found["OpenAI"].said
    assert "GROQ_API_KEY, environment" in found["found"].said
    assert found["python"].state == "ok"
    if found["transformers"].state != "note":  # it is installed here
        assert "ImportError: half of it is gone" in found["transformers"].said
        assert "pip install" in found["transformers"].hint


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise OSError('no libcudart')", "OSError: no libcudart"),
        ("import os; os.abort()", "ended the process with status -6"),
        ("import os; os.write(2, b'at \\xff'); os.abort()", "status -6. at \ufffd"),
        ("print('@told ' + 'x' * 9)", None),
    ],
)
def test_a_library_that_cannot_be_imported_is_told_how(
    code: str, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error, or the end of the process that it brought about; what it prints confuses nobody."""
    (tmp_path / "shaky.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    told = packages.imported.__wrapped__("shaky")
    assert told == {} if words is None else words in told["error"]


def test_a_version_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed and does not fit here is a problem; what is missing is one if all else needs it."""
    wanted = [
        "pytest>=900",
        "no-such-package",
        "no-such-extra; extra == 'test'",
        "packaging>=900; extra == 'test' and python_version > '3'",
        "pluggy>=900; python_version < '3'",
        "iniconfig>=900; extra == 'test' and sys_platform == 'no such'",
        "nbproviders[local]",
    ]
    told = Message()
    told["Provides-Extra"] = "test"
    monkeypatch.setattr(packages.metadata, "metadata", lambda name: told)
    monkeypatch.setattr(packages.metadata, "requires", lambda name: wanted)
    found = dict(packages._too_old())
    assert found.keys() == {"pytest", "no-such-package", "packaging"}
    assert found["pytest"] == ">=900"


GPU = {"cuda_build": "12.8", "cuda": True, "devices": ["Card"], "mps": False}
BLIND = {**GPU, "cuda": False, "devices": []}
NO_BUILD = {**BLIND, "cuda_build": None}


@pytest.mark.parametrize(
    ("count", "torch", "state", "words"),
    [
        (0, NO_BUILD, "note", "none"),
        (1, GPU, "ok", "Card, seen by torch"),
        (2, NO_BUILD, "problem", "2 NVIDIA GPUs, but torch is the CPU build"),
        (1, BLIND, "problem", "1 NVIDIA GPU, but torch, built for CUDA 12.8, does not see it"),
        (1, {"error": "gone"}, "note", "torch cannot be imported"),
        (0, {**NO_BUILD, "mps": True}, "ok", "Apple GPU"),
    ],
)
def test_a_gpu_that_torch_does_not_use_is_told(
    count: int, torch: dict[str, Any], state: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card beside a CPU build or an old driver is a problem; a machine without one is none."""
    monkeypatch.setattr(machine, "imported", lambda name: torch)
    monkeypatch.setattr(machine, "cuda_count", lambda: count)
    found = machine._accelerator()
    assert found.state == state
    assert words in found.said
    assert bool(found.hint) == (state == "problem")


def test_little_memory_and_a_full_disk_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What will fail at the next load or download is told before."""
    monkeypatch.setattr(machine, "probe_cpu", lambda: Reading(2**33, 2**30))
    monkeypatch.setattr(machine, "_accelerator", lambda: Finding("machine", "accelerator", "none"))
    (memory,) = [one for one in machine.examine() if one.name == "memory"]
    assert (memory.state, memory.said) == ("note", "1.0 GiB of 8.0 GiB free")
    usage = namedtuple("Usage", "total used free")(10**10, 9 * 10**9, 10**9)
    monkeypatch.setattr(places.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(local, "hub_cache", lambda: tmp_path / "hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = {one.name: one for one in places._cache()}
    assert found["disk"].state == "problem"
    assert "HF_HUB_CACHE" in found["disk"].hint
    assert "`hf cache rm " in found["disk"].hint  # prune leaves whole models where they are
    assert "offline" in found["Hub"].said


def test_the_kernel_that_notebooks_run_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel of another Python, or of one that is gone, is not taken for this one."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)

    def with_kernel(program: str) -> Finding:
        spec = {"argv": [program, "-m", "ipykernel"], "display_name": "P", "language": "python"}
        (folder / "kernel.json").write_text(json.dumps(spec))
        return notebook._started_as()

    assert with_kernel(sys.executable).state == "ok"
    assert with_kernel("python").state == "ok"
    other = tmp_path / "bin" / "python"
    assert "which is gone" in with_kernel(str(other)).said
    other.parent.mkdir()
    other.touch()
    assert "nbproviders may be missing" in with_kernel(str(other)).said
    monkeypatch.setattr(notebook.metadata, "version", lambda name: "6.31.0")
    assert notebook._kernel().state == "note"


def test_a_part_that_fails_costs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in one part is a finding of its own, and the others are told."""

    def broken() -> Any:
        raise LookupError("unheard of")
        yield

    broken.__module__ = "nbproviders.doctor.machine"
    monkeypatch.setattr(doctor, "_PARTS", (broken, plugins.examine))
    first, *rest = doctor.examine()
    assert (first.area, first.state) == ("machine", "problem")
    assert "unheard of" in first.said
    assert any(one.name == "ready" for one in rest)


@pytest.mark.parametrize("leave", [sys.exit, pytest.skip])
def test_a_part_that_leaves_costs_itself(leave: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that exits or skips while it is examined ends nothing but its part."""

    def leaving() -> Any:
        leave("need a licence")
        yield

    leaving.__module__ = "nbproviders.doctor.machine"
    sound = Finding("places", "disk", "sound")
    monkeypatch.setattr(doctor, "_PARTS", (leaving, lambda: iter([sound])))
    try:
        first, second = doctor.examine()
    except pytest.skip.Exception:  # it would skip this test
        pytest.fail("the skip got out")
    assert (first.area, first.name, first.state) == ("machine", "examination", "problem")
    assert "need a licence" in first.said
    assert second is sound


def test_an_examination_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is obeyed, and who wants no more findings gets none."""

    def interrupted() -> Any:
        yield Finding("places", "disk", "sound")
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "_PARTS", (interrupted, plugins.examine))
    found = doctor.examine()
    next(found)
    with pytest.raises(KeyboardInterrupt):
        next(found)
    found = doctor.examine()
    next(found)
    found.close()  # type: ignore[attr-defined]  # a generator
    assert list(found) == []


def test_the_report_is_read_line_by_line() -> None:
    """Findings stand under their area, no line is too long, and the end says how many are wrong."""
    lines: list[str] = []
    told = [
        Finding("packages", "python", "3.11"),
        Finding("packages", "a name longer than its column", "word " * 60, "problem", "hint " * 40),
        Finding("places", "disk", "full\nto the brim", "problem", "Make room."),
    ]
    assert tell(told, lines.append) == 2
    text = "\n".join(lines)
    assert "Packages\n  ok    python" in text
    assert "\n\nPlaces\n  WRONG disk" in text
    assert "full to the brim" in text
    assert "> Make room." in text
    assert lines[-1] == "\n2 things are wrong."
    assert max(len(line) for line in text.splitlines()) <= 100
    assert tell([], lines.append) == 0
    assert lines[-1] == "\nNothing is wrong."


def test_our_own_providers_are_told_with_their_reasons() -> None:
    """Each of ours is ready, or tells why it is not."""
    found = {one.name: one for one in plugins.examine()}
    listed = registry.list_available()
    assert "echo" in found["ready"].said.split(", ")
    for name in ("transformers", "llama-cpp", "unsloth", "vllm"):
        if listed[name].available:
            assert name in found["ready"].said.split(", ")
        else:
            assert found[name].said == listed[name].reason
