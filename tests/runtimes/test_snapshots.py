"""Checkpoints of the Hub are brought whole before they are measured; a local server stands in for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtimes.hub import Child, Hub, blobs, random_bytes, running_hub
from tests.tiny import write_llama

pytest.importorskip("huggingface_hub")
CONFIG = b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'
PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = json.dumps({"weight_map": {"a": PARTS[0], "b": PARTS[1], "c": PARTS[0]}}).encode()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        yield server


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a model of 14 MB."""
    pytest.importorskip("torch")
    folder = write_llama(tmp_path_factory.mktemp("llama"), hidden=256, layers=4)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


BRING = """
from nbproviders.runtimes import snapshots
try:
    snapshots.bring("org/name", None, Progress(), allow_pickle="pickle" in sys.argv)
    tell(done=True)
except nbp.ProviderError as error:
    tell(error=type(error).__name__, text=str(error))
"""


def brought(home: Path) -> set[str]:
    return {path.name for path in home.glob("hub/models--*/snapshots/*/*")}


@pytest.mark.parametrize(
    ("wanted", "how"),
    [
        ({"model.safetensors"}, ()),
        ({"model.safetensors"}, ("pickle",)),
        ({"model.safetensors.index.json", *PARTS}, ()),
        ({"pytorch_model.bin"}, ("pickle",)),
    ],
)
def test_what_is_loaded_is_brought_and_nothing_else(
    hub: Hub, tmp_path: Path, wanted: set[str], how: tuple[str, ...]
) -> None:
    """Not the same weights in other formats, which many repositories hold as well."""
    files = {name: random_bytes(60_000, seed) for seed, name in enumerate(sorted(wanted))}
    if "model.safetensors.index.json" in wanted:
        files["model.safetensors.index.json"] = INDEX
    others = ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx")
    hub.files["org/name"] = dict.fromkeys(others, b"not asked for") | files
    hub.files["org/name"]["config.json"] = CONFIG
    assert Child(tmp_path, hub.url).run(BRING, *how) == [{"done": True}]
    assert brought(tmp_path) == wanted | {"config.json"}


def test_a_part_that_is_missing_is_brought(hub: Hub, tmp_path: Path) -> None:
    """A checkpoint that is here but for one part gets that one."""
    hub.files["org/name"] = {
        "config.json": CONFIG,
        "model.safetensors.index.json": INDEX,
        PARTS[0]: random_bytes(60_000),
        PARTS[1]: random_bytes(60_000, 1),
    }
    child = Child(tmp_path, hub.url)
    hub.drops[PARTS[1]] = (100, 0)
    [told] = child.run(BRING)
    assert PARTS[1] in told["text"]
    assert "config.json" not in brought(tmp_path)  # which would make it look like a model
    hub.drops.clear()
    assert child.run(BRING) == [{"done": True}]
    assert len(hub.sent_from(PARTS[0])) == 1


def test_what_is_here_is_loaded_without_the_hub(
    hub: Hub, tmp_path: Path, llama: dict[str, bytes]
) -> None:
    """Nothing is asked of it but what transformers itself asks for small files."""
    hub.files["org/name"] = llama
    child = Child(tmp_path, hub.url)
    child.run(BRING)
    hub.asked.clear()
    child.run('nbp.load_sync("transformers:org/name")')
    asked = [path for _, path, _ in hub.asked]
    assert not [path for path in asked if path.startswith("/api/models/org/name?")]
    child.environment["HF_HUB_OFFLINE"] = "1"
    hub.asked.clear()
    child.run('nbp.load_sync("transformers:org/name")')
    assert hub.asked == []


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (INDEX, f"'org/name' lacks 1 of the 2 parts of that model: {PARTS[1]}"),
        (b'{"weight_map": 7}', "its weight_map names no files"),
        (b"nothing", "it is no JSON object"),
    ],
)
def test_an_incomplete_repository_is_told_before_its_bytes_come(
    hub: Hub, tmp_path: Path, index: bytes, said: str
) -> None:
    """No part is asked for of what could not be loaded."""
    files = {"config.json": CONFIG, "model.safetensors.index.json": index, PARTS[0]: b"a part"}
    hub.files["org/name"] = files
    [told] = Child(tmp_path, hub.url).run(BRING)
    assert told["error"] == "ModelAccessError"
    assert said in told["text"]
    assert hub.sent_from(PARTS[0]) == []


def test_a_model_is_downloaded_and_stays_one_model(
    hub: Hub, tmp_path: Path, llama: dict[str, bytes]
) -> None:
    """Opened again by another provider or reference it is the model in memory, not a second one."""
    hub.files["org/name"] = llama
    code = """
m = nbp.load_sync("transformers:org/name")
for other in ("?parallel=2", "?device=auto", "?trust_remote_code=false"):
    with nbp.model("transformers:org/name" + other) as again:
        assert again.raw is m.raw, other
again = nbp.create_provider("transformers", trust_remote_code=False).get_client("org/name")
assert again.raw is m.raw
tell(count=len(nbp.residents()), text=m.generate("the dog", max_tokens=3, raw=True))
"""
    [told] = Child(tmp_path, hub.url).run(code)
    assert told["count"] == 1
    assert told["text"]
    assert len(hub.sent_from("model.safetensors")) == 1


OF_ITS_OWN = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}


@pytest.mark.parametrize(
    ("option", "config", "said"),
    [
        ("device=cuda:7", {}, "cuda:7"),
        ("quantization=nf4&device=mps", {}, "mps"),
        (
            "quantization=nf4",
            {"quantization_config": {"quant_method": "gptq"}},
            "quantized already",
        ),
        ("", {"model_type": "future_llm", "architectures": ["FutureForCausalLM"]}, "future_llm"),
        ("", OF_ITS_OWN, "trust_remote_code"),
    ],
)
def test_what_cannot_be_loaded_here_is_not_downloaded(
    hub: Hub, tmp_path: Path, option: str, config: dict[str, object], said: str
) -> None:
    """The error comes before the bytes."""
    told_config = json.dumps({**json.loads(CONFIG), **config}).encode()
    hub.files["org/name"] = {"model.safetensors": random_bytes(60_000), "config.json": told_config}
    code = """
try:
    nbp.load_sync("transformers:org/name?" + sys.argv[1])
except nbp.ProviderError as error:
    tell(text=str(error))
"""
    [told] = Child(tmp_path, hub.url).run(code, option)
    assert said in told["text"]
    assert hub.sent_from("model.safetensors") == []


HERE = """
import os, pathlib, shutil
def enter(version, names, files):
    root = pathlib.Path(os.environ["HF_HOME"], "hub", "models--org--name")
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(version)
    there = root / "snapshots" / version
    there.mkdir(parents=True)
    for name in names or [path.name for path in files.iterdir()]:
        shutil.copyfile(files / name, there / name)
"""


def test_a_newer_version_is_another_model(
    hub: Hub, tmp_path: Path, llama: dict[str, bytes]
) -> None:
    """Somebody downloads it beside us: who asks anew gets it, also when another had it loaded before."""
    hub.files["org/name"] = llama
    code = (
        HERE
        + """
m = nbp.load_sync("transformers:org/name")
other = nbp.load_sync("transformers:org/name?dtype=bfloat16")
old = next(pathlib.Path(os.environ["HF_HOME"]).glob("hub/models--*/snapshots/*"))
enter("b" * 40, [], old)
from huggingface_hub import constants
constants.HF_HUB_OFFLINE = True  # which would say that the old one is the newest
nbp.unload(other)
other.generate("a", max_tokens=1, raw=True)
again = nbp.load_sync("transformers:org/name?device=auto")
tell(stale=again.raw is m.raw)
"""
    )
    assert Child(tmp_path, hub.url).run(code) == [{"stale": False}]


def test_a_part_of_another_version_makes_no_second_model(
    hub: Hub, tmp_path: Path, llama: dict[str, bytes]
) -> None:
    """The config of an older one is here, as of who read only that: what is downloaded is one model."""
    hub.files["org/name"] = llama
    files = tmp_path / "files"
    files.mkdir()
    for name, data in llama.items():
        (files / name).write_bytes(data)
    code = (
        HERE
        + """
enter("a" * 40, ["config.json", "tokenizer.json", "tokenizer_config.json"], pathlib.Path(sys.argv[1]))
m = nbp.load_sync("transformers:org/name")
again = nbp.load_sync("transformers:org/name?device=auto")
tell(same=again.raw is m.raw)
"""
    )
    assert Child(tmp_path / "home", hub.url).run(code, str(files)) == [{"same": True}]


def test_room_is_made_before_a_downloaded_model_is_loaded(
    hub: Hub, tmp_path: Path, llama: dict[str, bytes]
) -> None:
    """Though nobody could tell what it takes when it was asked for."""
    hub.files |= {"org/one": llama, "org/two": llama}
    code = """
nbp.load_sync("transformers:org/one").close()
fit = nbp.will_it_fit("transformers:org/one").fit
nbp.set_memory(f"cpu={int(1.5 * sum(fit.estimate.values()))}B")
assert nbp.will_it_fit("transformers:org/two").fit.verdict == "unknown"
nbp.load_sync("transformers:org/two").close()
kept = ("created", "slept")
tell(events=[[one.kind, one.spec[-3:]] for one in nbp.events() if one.kind in kept])
"""
    [told] = Child(tmp_path, hub.url).run(code)
    assert told["events"] == [["created", "one"], ["slept", "one"], ["created", "two"]]


def test_how_far_a_download_is_can_be_seen(
    hub: Hub, tmp_path: Path, llama: dict[str, bytes]
) -> None:
    """Half a megabyte has come, the Hub says no more, and another model is loaded meanwhile."""
    hub.files["org/name"], hub.stall = llama, "model.safetensors"
    code = """
import asyncio
async def main():
    task = asyncio.ensure_future(nbp.load("transformers:org/name"))
    while not (nbp.residents() and nbp.residents()[0].progress):
        await asyncio.sleep(0.01)
    m = await nbp.load("transformers:demo-xs")
    coming, other = nbp.residents()
    tell(spec=coming.spec, progress=coming.progress, bytes=coming.bytes, other=other.state)
    task.cancel()
asyncio.run(main())
"""
    [told] = Child(tmp_path, hub.url).run(code)
    assert (told["spec"], told["bytes"]) == ("transformers:org/name", {})
    assert 0 < told["progress"] < 0.1
    assert told["other"] == "hot"
    assert [name for name in blobs(tmp_path) if name.endswith(".incomplete")]
