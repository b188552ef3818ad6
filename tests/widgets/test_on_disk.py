"""The picker's list of models on this machine, with real folders and without a browser."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from nbproviders import demo, registry
from nbproviders.catalog import ollama
from nbproviders.widgets import models, on_disk
from nbproviders.widgets.picker import ModelPicker

BOUND_S = 60.0
GGUF = "llama-cpp:demo-m?quant=Q8_0"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of this test alone, with a model of LM Studio's, and an empty Hub cache."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv(ollama.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(ollama, "_SERVICE_FOLDER", tmp_path / "service")
    folder = tmp_path / ".lmstudio" / "models" / "org" / "<b>small"
    folder.mkdir(parents=True)
    (folder / "small-Q4_0.gguf").write_bytes(b"GGUF" + bytes(2044))
    return tmp_path


@pytest.fixture
def picker(home: Path) -> Iterator[Callable[..., ModelPicker]]:
    """Make pickers that have looked; close them in the end."""
    made: list[ModelPicker] = []

    def make(spec: str = "echo:echo") -> ModelPicker:
        made.append(ModelPicker(spec))
        assert made[-1]._found.wait(BOUND_S)
        return made[-1]

    yield make
    for one in made:
        one.close()


def without(monkeypatch: pytest.MonkeyPatch, *, known: bool) -> None:
    """Have llama-cpp not run here: its packages are missing, or it is no provider at all."""
    points = {
        name: point for name, point in registry._entry_points().items() if name != "llama-cpp"
    }
    if known:
        target = "nbproviders.providers.absent:AbsentProvider"
        points["llama-cpp"] = EntryPoint("llama-cpp", target, registry.GROUPS[0])
        monkeypatch.setitem(registry._NEEDS, "llama-cpp", (("absent_module",), "llama-cpp"))
    monkeypatch.setattr(registry, "_points", points)


def labels(picker: ModelPicker) -> list[str]:
    return [label for label, _ in picker._found.options]


def test_models_are_listed_with_source_and_size(
    picker: Callable[..., ModelPicker], home: Path
) -> None:
    """Each model tells where it is from, how large it is and how it is opened, but not whose home it is."""
    told = labels(picker())
    size = demo.path("demo-xs").joinpath("model.safetensors").stat().st_size
    assert told[1] == f"demo · {size / 1024:.1f} KiB · transformers:demo-xs"
    assert told[-1].startswith("lm studio · 2.0 KiB · ")
    assert told[-1].endswith(str(Path("llama-cpp:~/.lmstudio/models/org/<b>small/small-Q4_0.gguf")))
    assert len(told) == 1 + len(demo.MODELS) + len(demo.GGUF) * len(demo.QUANTS) + 1


def test_a_long_path_is_shown_by_its_ends(picker: Callable[..., ModelPicker], home: Path) -> None:
    """Of a path that is too long to show the file's name is seen, and the choice is the whole."""
    folder = home / ".lmstudio" / "models" / ("a-long-name-" * 8)
    folder.mkdir()
    (folder / "small-Q4_K_M.gguf").write_bytes(b"GGUF")
    one = picker()
    label, spec = next(option for option in one._found.options if "Q4_K_M" in option[0])
    shown = label.rpartition(" · ")[2]
    assert len(shown) == 72
    assert shown.startswith("llama-cpp:~")
    assert shown.endswith("small-Q4_K_M.gguf")
    assert spec == f"llama-cpp:{folder / 'small-Q4_K_M.gguf'}"


def test_choosing_one_fills_the_fields(picker: Callable[..., ModelPicker]) -> None:
    """A choice becomes the reference and fills all fields; another one by the fields is shown here too."""
    one = picker()
    one._found.value = "transformers:demo-s"
    assert one.spec == "transformers:demo-s"
    assert (one._provider.value, one._model.value) == ("transformers", "demo-s")
    one._model.value = "demo-xs"
    assert one._found.value == "transformers:demo-xs"
    one._model.value = "org/elsewhere"
    assert one._found.value == ""
    assert one.spec == "transformers:org/elsewhere"


def test_options_of_a_choice(
    picker: Callable[..., ModelPicker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference with options fills the field of options, and comes back whole."""
    without(monkeypatch, known=True)
    one = picker()
    one._found.value = GGUF
    assert one.spec == GGUF
    fields = one._provider.value, one._model.value, one._options.value
    assert fields == ("llama-cpp", "demo-m", "quant=Q8_0")
    assert one._found.value == GGUF


def test_what_cannot_run_is_listed_with_its_reason(
    picker: Callable[..., ModelPicker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the packages the files are there all the same; a choice tells what to install."""
    without(monkeypatch, known=True)
    one = picker()
    assert any("not available · llama-cpp:demo-m?quant=Q8_0" in label for label in labels(one))
    one._found.value = GGUF
    assert 'absent_module not installed: pip install "nbproviders[llama-cpp]"' in one.error
    assert "nbproviders[llama-cpp]" in one._status.value
    assert all(button.disabled for button in one._buttons)
    one._found.value = "transformers:demo-xs"
    assert one.error == ""
    assert not one._buttons[0].disabled


def test_an_unknown_provider_is_told(
    picker: Callable[..., ModelPicker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the provider is not even known, a choice says what to install and changes nothing."""
    without(monkeypatch, known=False)
    one = picker()
    one._found.value = GGUF
    assert 'pip install "nbproviders[llama-cpp]"' in one.error
    assert one.spec == "echo:echo"
    assert one._found.value == ""


def test_the_first_of_a_provider_is_its_first_choice(
    picker: Callable[..., ModelPicker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that was not chosen before starts with a model that is here, and suggests the others."""
    without(monkeypatch, known=True)
    monkeypatch.setattr(models, "PREFERRED", (("echo", "echo"),))
    one = picker()
    one._provider.value = "llama-cpp"
    assert one.spec == f"llama-cpp:{demo.GGUF[0]}?quant={demo.QUANTS[0]}"
    assert "demo-m?quant=Q4_0" in one._model.options
    assert any(name.endswith("small-Q4_0.gguf") for name in one._model.options)


def test_nothing_of_it_is_in_the_static_form(
    picker: Callable[..., ModelPicker], home: Path
) -> None:
    """What else is on the disk is not saved in the notebook's static form."""
    one = picker()
    assert "small-Q4_0" not in str(one._repr_mimebundle_())


def test_a_broken_settings_file_is_told(
    picker: Callable[..., ModelPicker], own_settings: Path
) -> None:
    """Settings that cannot be read are told in the list, and the fields still work."""
    own_settings.write_text("[folders", encoding="utf-8")
    one = picker()
    assert len(labels(one)) == 1
    assert "not valid TOML" in labels(one)[0]
    one._model.value = "other"
    assert one.spec == "echo:other"


def test_a_search_that_ends_meanwhile_takes_no_choice_back(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code chooses while the search is about to end: what stood there before does not come back."""
    go_on, find = threading.Event(), on_disk._found

    def late() -> list[on_disk.Found]:
        assert go_on.wait(BOUND_S)
        return find()

    monkeypatch.setattr(on_disk, "_found", late)
    one = ModelPicker("transformers:demo-m")
    with one.hold_trait_notifications():  # chosen, and the fields do not know it yet
        one.spec = "echo:special"
        go_on.set()
        assert one._found.wait(BOUND_S)
    assert one.spec == "echo:special"
    assert (one._provider.value, one._model.value, one._found.value) == ("echo", "special", "")
    one.close()


async def test_looking_does_not_block(home: Path) -> None:
    """In a running loop the picker is there at once, and the list is filled on that loop."""
    one = ModelPicker("echo:echo")
    assert labels(one) == ["looking …"]
    threads: set[int] = set()
    listed = asyncio.Event()

    def saw(change: Any) -> None:
        threads.add(threading.get_ident())
        listed.set()

    one._found.observe(saw, "_options_labels")
    async with asyncio.timeout(BOUND_S):
        await listed.wait()
    assert len(labels(one)) > 1
    assert threads == {threading.get_ident()}
    one.close()


async def test_a_picker_closed_meanwhile_takes_nothing(home: Path) -> None:
    """What is found after the picker was closed is dropped."""
    one = ModelPicker("echo:echo")
    one.close()
    assert await asyncio.to_thread(one._found.wait, BOUND_S)
    assert one._found.found == ()
