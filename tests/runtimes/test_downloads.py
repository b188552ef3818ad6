"""Files of the Hub: found in its cache, and fetched from a local server that answers as the Hub does."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gguf_files import write_llama_gguf
from tests.runtimes.hub import COMMIT, PIECE, Child, Hub, blobs, random_bytes, running_hub
from tests.timing import at_best

pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        yield server


CONFIG = b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'
FETCH = """
names = json.loads(sys.argv[1])
progress, seen = Progress(), []
class Seen(Progress):
    def report(self, done, total=0, phase=""):
        seen.append([done, total])
        super().report(done, total, phase)
try:
    paths = downloads.fetch("org/name", names, None, Seen())
    tell(sizes=[path.stat().st_size for path in paths], names=[path.name for path in paths], seen=seen)
except nbp.ProviderError as error:
    tell(error=type(error).__name__, text=str(error), seen=seen)
"""


def test_bytes_are_told_as_they_come(hub: Hub, tmp_path: Path) -> None:
    """The progress moves in small steps from nothing to the whole, over all files, and never back."""
    data = {"a.gguf": random_bytes(3_000_000), "b.gguf": random_bytes(2_000_000, 1)}
    hub.files["org/name"] = data
    sizes = {name: len(part) for name, part in data.items()}
    [told] = Child(tmp_path, hub.url).run(FETCH, json.dumps(sizes))
    assert told["sizes"] == [3_000_000, 2_000_000]
    assert told["names"] == ["a.gguf", "b.gguf"]
    done = [step[0] for step in told["seen"]]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == 5_000_000
    assert max(b - a for a, b in itertools.pairwise(done)) <= 300_000
    assert {step[1] for step in told["seen"]} == {5_000_000}


def test_xet_is_not_asked(hub: Hub, tmp_path: Path) -> None:
    """Through it a download could not be stopped: the files come by HTTP, though the Hub offers both."""
    hub.files["org/name"] = {"a.gguf": random_bytes(100_000)}
    [told] = Child(tmp_path, hub.url).run(FETCH, json.dumps({"a.gguf": 100_000}))
    assert told["sizes"] == [100_000]
    assert not [path for _, path, _ in hub.asked if "xet" in path]


def test_what_is_here_is_not_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    """A second fetch asks whether the file is the same, and takes it from the cache."""
    hub.files["org/name"] = {"a.gguf": random_bytes(100_000)}
    child = Child(tmp_path, hub.url)
    for _ in range(2):
        [told] = child.run(FETCH, json.dumps({"a.gguf": 100_000}))
        assert told["sizes"] == [100_000]
    assert hub.sent_from("a.gguf") == [""]


def test_a_dropped_connection_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    """A server that hangs up twice costs two more requests, and no byte twice."""
    hub.files["org/name"] = {"a.gguf": random_bytes(1_000_000)}
    hub.drops["a.gguf"] = (2, 6 * PIECE)
    [told] = Child(tmp_path, hub.url).run(FETCH, json.dumps({"a.gguf": 1_000_000}))
    assert told["sizes"] == [1_000_000]
    first, *others = hub.sent_from("a.gguf")
    assert first == ""
    begins = [int(span.removeprefix("bytes=").rstrip("-")) for span in others]
    assert begins == sorted(begins)
    assert len(begins) == 2
    assert begins[0] > 0


def test_a_server_without_ranges_is_asked_for_the_whole(hub: Hub, tmp_path: Path) -> None:
    """What a mirror sends from the beginning again is not put behind what is there."""
    data = random_bytes(1_000_000)
    hub.files["org/name"], hub.ranges = {"a.gguf": data}, False
    hub.drops["a.gguf"] = (1, 6 * PIECE)
    [told] = Child(tmp_path, hub.url).run(FETCH, json.dumps({"a.gguf": 1_000_000}))
    assert told["sizes"] == [1_000_000]
    [blob] = tmp_path.glob("hub/models--org--name/blobs/*")
    assert blob.read_bytes() == data


def test_a_server_that_always_hangs_up_is_given_up(hub: Hub, tmp_path: Path) -> None:
    """With an error of ours that names the file, after a few tries; nothing half is taken for whole."""
    hub.files["org/name"] = {"a.gguf": random_bytes(1_000_000)}
    hub.drops["a.gguf"] = (1000, 0)
    [told] = Child(tmp_path, hub.url).run(FETCH, json.dumps({"a.gguf": 1_000_000}))
    assert told["error"] == "ModelAccessError"
    assert "org/name/a.gguf" in told["text"]
    assert len(hub.sent_from("a.gguf")) < 8
    assert all(name.endswith(".incomplete") for name in blobs(tmp_path))


def test_what_was_damaged_on_its_way_is_refused_and_removed(hub: Hub, tmp_path: Path) -> None:
    """Its digest is not the one that the Hub told; the next try begins anew and is right."""
    hub.files["org/name"] = {"a.gguf": random_bytes(500_000)}
    hub.damaged.add("a.gguf")
    child = Child(tmp_path, hub.url)
    [told] = child.run(FETCH, json.dumps({"a.gguf": 500_000}))
    assert told["error"] == "ModelAccessError"
    assert "not the file that the Hub promised" in told["text"]
    assert blobs(tmp_path) == {}
    hub.damaged.clear()
    [told] = child.run(FETCH, json.dumps({"a.gguf": 500_000}))
    assert told["sizes"] == [500_000]


def test_a_longer_rest_of_another_file_does_not_stay(hub: Hub, tmp_path: Path) -> None:
    """Whatever lies at the place of a stopped download, what comes out is the Hub's file."""
    data = random_bytes(300_000)
    hub.files["org/name"] = {"a.gguf": data}
    folder = tmp_path / "hub" / "models--org--name" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{hashlib.sha256(data).hexdigest()}.incomplete").write_bytes(bytes(400_000))
    [told] = Child(tmp_path, hub.url).run(FETCH, json.dumps({"a.gguf": 300_000}))
    assert told["sizes"] == [300_000]


def test_a_full_disk_is_told_before_the_download(hub: Hub, tmp_path: Path) -> None:
    """With what is needed and what is left."""
    names = {f"{name}.gguf": 300_000 for name in "abc"}
    hub.files["org/name"] = {name: random_bytes(size) for name, size in names.items()}
    full = "import shutil, collections\n" + (
        "shutil.disk_usage = lambda _: collections.namedtuple('U', 'free')(700_000)\n"
    )
    [told] = Child(tmp_path, hub.url).run(full + FETCH, json.dumps(names))
    assert told["error"] == "ModelAccessError"
    assert "878.9 KiB" in told["text"]
    assert "683.6 KiB" in told["text"]
    assert hub.sent_from("a.gguf") == []  # nor of what would have had room alone


CANCEL = """
progress = Progress()
ended = []
def download():
    try:
        downloads.fetch("org/name", {"a.gguf": int(sys.argv[1])}, None, progress)
    except nbp.ClosedError:
        ended.append(time.perf_counter())
worker = threading.Thread(target=download)
worker.start()
while progress.done_bytes < 400_000:
    time.sleep(0.001)
began_s = time.perf_counter()
progress.cancel()
tell(done=progress.done_bytes)
worker.join(60)
tell(seconds=ended[0] - began_s, done=progress.done_bytes)
"""


def test_a_cancelled_download_ends_soon_and_is_gone_on_with(hub: Hub, tmp_path: Path) -> None:
    """It ends within a piece, is no file yet, and the next try asks for the rest only."""
    size = 64_000_000
    hub.files["org/name"] = {"a.gguf": random_bytes(size)}
    child = Child(tmp_path, hub.url)
    _, told = child.run(CANCEL, str(size))
    assert told["seconds"] < 1
    assert told["done"] < size
    [(name, kept)] = blobs(tmp_path).items()
    assert name.endswith(".incomplete")
    assert kept >= 400_000
    assert not list(tmp_path.glob("hub/models--*/snapshots/*/*"))
    [told] = child.run(FETCH, json.dumps({"a.gguf": size}))
    assert told["sizes"] == [size]
    assert hub.sent_from("a.gguf") == ["", f"bytes={kept}-"]
    assert told["seen"][1][0] == kept


def test_a_server_that_falls_silent_is_asked_again(hub: Hub, tmp_path: Path) -> None:
    """A connection on which nothing comes is left, and the rest asked for on another."""
    hub.files["org/name"] = {"a.gguf": random_bytes(1_000_000)}
    hub.stall = "a.gguf"
    *_, told = Child(tmp_path, hub.url).run(
        "import huggingface_hub.constants as c\nc.HF_HUB_DOWNLOAD_TIMEOUT = 0.3\n" + FETCH,
        json.dumps({"a.gguf": 1_000_000}),
    )
    assert told["sizes"] == [1_000_000]
    assert len(hub.sent_from("a.gguf")) > 1


TWICE = """
names = {"a.gguf": int(sys.argv[1])}
def download():
    [path] = downloads.fetch("org/name", names, None, Progress())
    tell(size=path.stat().st_size)
workers = [threading.Thread(target=download) for _ in range(3)]
for worker in workers: worker.start()
for worker in workers: worker.join()
"""


def test_the_same_file_fetched_at_once_comes_once(hub: Hub, tmp_path: Path) -> None:
    """The others wait for the first, and take what it brought."""
    hub.files["org/name"] = {"a.gguf": random_bytes(3_000_000)}
    told = Child(tmp_path, hub.url).run(TWICE, "3000000")
    assert told == [{"size": 3_000_000}] * 3
    assert hub.sent_from("a.gguf") == [""]


# What the provider makes of it

LOAD = """
import logging
for reference in json.loads(sys.argv[1]):
    try:
        with nbp.model(reference) as m:
            text = m.generate("the dog", max_tokens=3, raw=True)
            tell(text=text, keys=[one.key for one in nbp.residents()], notes=nbp.residents()[0].notes)
    except nbp.ProviderError as error:
        tell(error=type(error).__name__, text=str(error))
"""

llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is absent"
)


def gguf(path: Path, **how: Any) -> dict[str, bytes]:
    """The contents of a small model's files, by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_llama_gguf(path, **how)
    return {one.name: one.read_bytes() for one in sorted(path.parent.glob("*.gguf"))}


def enter_cache(home: Path, files: dict[str, bytes], commit: str = COMMIT) -> None:
    """Lay files in a cache as the Hub's library does: blobs by digest, links by name."""
    folder = home / "hub" / "models--org--name"
    for name, data in files.items():
        blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
        link = folder / "snapshots" / commit / name
        for place in (blob, link):
            place.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model in several files."""
    return gguf(tmp_path_factory.mktemp("split") / "m-Q8_0.gguf", dtype="Q8_0", split_tensors=12)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model in two quantizations."""
    folder = tmp_path_factory.mktemp("two")
    gguf(folder / "m-Q4_0.gguf", dtype="Q4_0")
    return gguf(folder / "m-Q8_0.gguf", dtype="Q8_0")


@llama_cpp
def test_a_cached_model_needs_no_network(tmp_path: Path, two: dict[str, bytes]) -> None:
    """By its quantization, or the best there is; another than what is here is told with what is here."""
    enter_cache(tmp_path, two)
    references = [
        "org/name:Q8_0",
        "org/name",
        "org/name?revision=main",
        "org/name:Q4_K_M",
        "org/no",
    ]
    told = Child(tmp_path, HF_HUB_OFFLINE="1").run(
        LOAD, json.dumps([f"llama-cpp:{one}" for one in references])
    )
    assert told[0]["text"]
    assert told[1]["text"]
    assert told[2]["text"]
    assert told[3]["error"] == "ModelAccessError"
    assert "HF_HUB_OFFLINE" in told[3]["text"]
    assert "m-Q4_0.gguf, m-Q8_0.gguf" in told[3]["text"]
    assert told[4]["error"] == "ModelAccessError"


@llama_cpp
def test_a_split_model_in_the_cache_is_loaded_whole(
    tmp_path: Path, split: dict[str, bytes]
) -> None:
    """Though the cache names its parts by digests, behind links."""
    assert len(split) > 1
    enter_cache(tmp_path, split)
    [told] = Child(tmp_path, HF_HUB_OFFLINE="1").run(LOAD, json.dumps(["llama-cpp:org/name:Q8_0"]))
    assert "error" not in told, told


@llama_cpp
def test_a_model_is_downloaded_and_stays_one_model(
    hub: Hub, tmp_path: Path, two: dict[str, bytes]
) -> None:
    """Opened again by another provider or reference it is the model in memory, not a second one."""
    hub.files["org/name"] = two
    code = """
provider = nbp.create_provider("llama-cpp")
kept = provider.get_client("org/name:Q4_0")
again = nbp.create_provider("llama-cpp").get_client("org/name?quant=Q4_0")
plain = nbp.load_sync("llama-cpp:org/name:Q4_0?chat=false")
tell(count=len(nbp.residents()), notes=[event.kind for event in nbp.events()])
nbp.unload_all()
tell(freed=len(nbp.residents()))
tell(text=kept.generate("the dog", max_tokens=3, raw=True))
"""
    told = Child(tmp_path, hub.url).run(code)
    assert told[0]["count"] == 1
    assert told[0]["notes"].count("created") == 1
    assert told[1]["freed"] == 0
    assert told[2]["text"]
    assert len(hub.sent_from("m-Q4_0.gguf")) == 1
    assert hub.sent_from("m-Q8_0.gguf") == []


@llama_cpp
def test_a_freed_model_comes_back_without_the_network(
    hub: Hub, tmp_path: Path, two: dict[str, bytes]
) -> None:
    """What was downloaded is loaded from the cache, though the Hub is not there any more."""
    hub.files["org/name"] = two
    code = """
kept = nbp.load_sync("llama-cpp:org/name:Q4_0")
nbp.unload_all()
from huggingface_hub import constants
constants.ENDPOINT = "http://127.0.0.1:9"
tell(text=kept.generate("the dog", max_tokens=3, raw=True))
"""
    [told] = Child(tmp_path, hub.url).run(code)
    assert told["text"]


@llama_cpp
def test_a_split_model_is_downloaded_in_all_its_parts(
    hub: Hub, tmp_path: Path, split: dict[str, bytes]
) -> None:
    """And one whose first part alone is here is not taken for whole."""
    hub.files["org/name"] = {**split, "m-Q4_0.gguf": b"not asked for"}
    first = dict(sorted(split.items())[:1])
    enter_cache(tmp_path, first)
    [told] = Child(tmp_path, hub.url).run(LOAD, json.dumps(["llama-cpp:org/name:Q8_0"]))
    assert "error" not in told, told
    assert len([name for name in blobs(tmp_path) if len(name) == 64]) == len(split)
    assert hub.sent_from("m-Q4_0.gguf") == []


@llama_cpp
def test_what_the_hub_cannot_give_is_an_error_that_says_why(
    hub: Hub, tmp_path: Path, two: dict[str, bytes], split: dict[str, bytes]
) -> None:
    """No such quantization, a missing part, gated, missing, no GGUF, no such revision, a wrong option."""
    incomplete = dict(sorted(split.items())[:1])
    hub.files |= {
        "org/two": two,
        "org/gated": two,
        "org/half": incomplete,
        "org/none": {"a.txt": b""},
    }
    hub.gated.add("org/gated")
    cases = {
        "org/two:Q4_K_M": "Q4_0, Q8_0",
        "org/half": "lacks",
        "org/gated": "gated",
        "org/missing": "has no model 'org/missing'",
        "org/none": "no GGUF model among the 1 files: a.txt",
        "org/two:Q4_0?revision=v9": "no revision 'v9'",
        "org/two:Q4_0?chat_format=nonsense": "chatml",
        "org/two:Q4_0?type_k=int3": "type_k='int3' is not one of f32",
    }
    told = Child(tmp_path, hub.url).run(LOAD, json.dumps([f"llama-cpp:{one}" for one in cases]))
    for one, words in zip(told, cases.values(), strict=True):
        assert words in one["text"]
        assert one["error"] in ("ModelAccessError", "ConfigurationError")
    assert not [path for method, path, _ in hub.asked if method == "GET" and "/resolve/" in path]


@llama_cpp
def test_access_is_checked_by_name_alone(hub: Hub, tmp_path: Path, two: dict[str, bytes]) -> None:
    """`validate_model_access` asks the Hub and downloads nothing."""
    hub.files["org/name"] = two
    code = """
provider = nbp.create_provider("llama-cpp")
for name in ("org/name:Q8_0", "org/name", "org/name:Q2_K", "org/missing"):
    try:
        tell(told=provider.validate_model_access(name))
    except nbp.ModelAccessError as error:
        tell(told=str(error))
"""
    told = [one["told"] for one in Child(tmp_path, hub.url).run(code)]
    assert told[:2] == [True, True]
    assert "Q4_0, Q8_0" in told[2]
    assert "org/missing" in told[3]
    assert not [path for _, path, _ in hub.asked if "/resolve/" in path]


@pytest.mark.parametrize(
    ("provider", "file"),
    [
        pytest.param("llama-cpp", "m-Q4_0.gguf", marks=llama_cpp),
        ("transformers", "model.safetensors"),
    ],
)
def test_a_stopped_load_ends_its_download(
    hub: Hub, tmp_path: Path, provider: str, file: str
) -> None:
    """Whoever gives up waiting stops the bytes; the next opening goes on where it ended."""
    size = 48_000_000
    hub.files["org/name"] = {file: random_bytes(size), "config.json": CONFIG}
    code = """
import asyncio
async def give_up():
    task = asyncio.ensure_future(nbp.load(sys.argv[1] + ":org/name"))
    while not (nbp.residents() and (nbp.residents()[0].progress or 0) > 0.01):
        await asyncio.sleep(0.001)
    task.cancel()
    began_s = time.perf_counter()
    try:
        await task
    except asyncio.CancelledError:
        pass
    tell(seconds=time.perf_counter() - began_s)
    while [one for one in threading.enumerate() if "name" in one.name]:
        await asyncio.sleep(0.01)
    tell(ended_s=time.perf_counter() - began_s, left=len(nbp.residents()))
    try:
        await nbp.load(sys.argv[1] + ":org/name")  # it comes whole, and is no model
    except nbp.ProviderError as error:
        tell(error=str(error))
asyncio.run(give_up())
"""
    homes = iter(tmp_path / str(number) for number in itertools.count())

    def waited() -> float:
        home = next(homes)
        waited, ended, again = Child(home, hub.url).run(code, provider)
        assert ended["ended_s"] < 2
        assert ended["left"] == 0
        assert "cancelled" not in again["error"]
        assert size in blobs(home).values()
        [_, rest] = hub.sent_from(file)
        hub.asked.clear()
        assert 0 < int(rest.removeprefix("bytes=").removesuffix("-")) < size
        return float(waited["seconds"])

    assert at_best(waited, 0.2) < 0.2
