"""Models found on this machine: real folders in the Hub cache's layout, and whatever may be broken there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import nbproviders as nbp
from nbproviders import demo
from nbproviders.catalog import gguf_files, local, ollama
from nbproviders.catalog.settings import CONFIG_VARIABLE

SHIPPED = [f"transformers:{name}" for name in demo.MODELS] + [
    f"llama-cpp:{name}?quant={quant}" for name in demo.GGUF for quant in demo.QUANTS
]
CAUSAL = {"config.json": '{"architectures": ["LlamaForCausalLM"]}', "model.safetensors": "x" * 64}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty Hub cache and home, and no settings file."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.delenv(ollama.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(ollama, "_SERVICE_FOLDER", tmp_path / "service")
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "config.toml"))
    return folder


def put(cache: Path, repo: str, files: dict[str, str], ref: str | None = "main") -> Path:
    """Write one version of a repository as the Hub's library lays it out: links to blobs."""
    folder = cache / ("models--" + repo.replace("/", "--"))
    snapshot = folder / "snapshots" / "c0ffee"
    (folder / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    if ref:
        (folder / "refs").mkdir()
        (folder / "refs" / ref).write_text("c0ffee")
    for number, (name, text) in enumerate(files.items()):
        blob = folder / "blobs" / f"b{number}"
        blob.write_text(text)
        (snapshot / name).parent.mkdir(exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot


def user_folders(monkeypatch, *folders: object) -> None:
    config = Path(os.environ[CONFIG_VARIABLE])
    config.write_text(f"[folders]\ngguf = {json.dumps([str(folder) for folder in folders])}\n")


def specs(source: str = "") -> list[str]:
    return [one.spec for one in local.find_models() if source in ("", one.source)]


def test_shipped_models_come_first(cache):
    """The demo models are found in a bare place, with their size, under references that open them."""
    found = local.find_models()
    assert [one.spec for one in found] == SHIPPED
    assert {one.source for one in found} == {"demo"}
    for one in found:
        weights = one.path / "model.safetensors" if one.path.is_dir() else one.path
        assert one.bytes == weights.stat().st_size


def test_cached_model(cache):
    """A model in the Hub cache is named by its id, with the bytes of its weights alone."""
    snapshot = put(cache, "org/small", {**CAUSAL, "README.md": "long" * 100})
    assert local.find_models()[-1] == local.LocalModel(
        "transformers:org/small", "hub", 64, snapshot
    )


def test_cached_revision(cache):
    """A model that is there only by its commit is opened by that commit."""
    put(cache, "org/small", CAUSAL, ref=None)
    assert specs("hub") == ["transformers:org/small?revision=c0ffee"]


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": "{}"},
        {"model.safetensors": "x"},
        {"config.json": "{}", "pytorch_model.bin": "x"},
        {"config.json": "{}", "adapter_model.safetensors": "x"},
        {**CAUSAL, "config.json": '{"architectures": ["BertModel"]}'},
        {**CAUSAL, "config.json": "{broken"},
        {**CAUSAL, "config.json": "[]"},
        {**CAUSAL, "model.safetensors.index.json": '{"weight_map": {"a": "gone.safetensors"}}'},
        {**CAUSAL, "model.safetensors.index.json": '{"weight_map": ["a"]}'},
    ],
    ids=[
        "no weights",
        "no config",
        "pickled",
        "adapter",
        "no text",
        "torn",
        "odd",
        "unfinished",
        "index",
    ],
)
def test_what_cannot_be_opened_is_left_out(cache, files):
    """A repository that would fail to load is not offered, and those beside it are."""
    put(cache, "org/bad", files)
    put(cache, "org/good", CAUSAL)
    assert specs("hub") == ["transformers:org/good"]


def test_damaged_entries_are_left_out(cache, caplog):
    """Links to nothing, empty folders and plain files cost themselves only, and are logged."""
    caplog.set_level("INFO", logger="nbproviders")
    lost = put(cache, "org/lost", CAUSAL)
    for blob in (lost.parents[1] / "blobs").iterdir():
        blob.unlink()
    (cache / "models--org--empty").mkdir()
    (cache / "models--org--file").write_text("")
    (cache / "datasets--org--data").mkdir()
    put(cache, "org/good", CAUSAL)
    assert specs("hub") == ["transformers:org/good"]
    assert "models--org--empty" in caplog.text
    assert "models--org--file" in caplog.text


def test_no_cache(cache, monkeypatch):
    """Where nothing was ever downloaded, only what is shipped is found."""
    monkeypatch.setenv("HF_HUB_CACHE", str(cache / "not" / "there"))
    assert specs() == SHIPPED


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"HF_HOME": "/a/home"},
        {"HF_HOME": "/a/home", "HF_HUB_CACHE": "/a/cache"},
        {"HUGGINGFACE_HUB_CACHE": "/old/cache"},
        {"XDG_CACHE_HOME": "/a/xdg"},
    ],
)
def test_cache_is_where_the_library_has_it(names, tmp_path, monkeypatch):
    """The cache is looked for where huggingface_hub itself keeps it, whatever the environment says."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    import subprocess
    import sys

    everything = "HF_HOME HF_HUB_CACHE HUGGINGFACE_HUB_CACHE XDG_CACHE_HOME".split()
    for name in everything:
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    code = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert str(local.hub_cache()) == ran.stdout.strip()


def test_layout_is_what_the_library_reads(cache):
    """huggingface_hub reads the same cache to the same id and version: the layout is its own."""
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    snapshot = put(cache, "org/small", CAUSAL)
    (repo,) = hub.scan_cache_dir(cache).repos
    (revision,) = repo.revisions
    assert (f"transformers:{repo.repo_id}", revision.snapshot_path) == (
        specs("hub")[0],
        snapshot,
    )


def test_gguf_folder(cache, tmp_path, monkeypatch):
    """GGUF files in the user's folders and below are found; a model in parts is one, with all its bytes."""
    below = tmp_path / "models" / "deep"
    below.mkdir(parents=True)
    (below / "a.gguf").write_bytes(b"GGUF1234")
    for part in (1, 2):
        (below / f"big-0000{part}-of-00002.gguf").write_bytes(b"GGUF" + bytes(part))
    (below / "mmproj-a.gguf").write_bytes(b"GGUF")
    (below / "page.gguf").write_bytes(b"<htm")
    (below / "gone.gguf").symlink_to(tmp_path / "nowhere")
    user_folders(monkeypatch, tmp_path / "models", below, tmp_path / "missing")
    found = [one for one in local.find_models() if one.source == "folder"]
    assert [(one.path.name, one.bytes) for one in found] == [
        ("a.gguf", 8),
        ("big-00001-of-00002.gguf", 11),
    ]
    assert found[0].spec == f"llama-cpp:{below / 'a.gguf'}"


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["small.Q4_K_M.gguf", "small.Q8_0.gguf"], ["Q4_K_M", "Q8_0"]),
        (["small.gguf"], ["small"]),
        (["a.Q8_0.gguf", "b.Q8_0.gguf"], ["a.Q8_0", "b.Q8_0"]),
        (["Q8_0/m-00001-of-00002.gguf", "Q8_0/m-00002-of-00002.gguf"], ["Q8_0"]),
        (["x/m.gguf", "y/m.gguf"], ["x/m.gguf", "y/m.gguf"]),
    ],
    ids=["quantization", "stem", "several", "parts", "folders"],
)
def test_gguf_in_cache(cache, files, names):
    """A GGUF file in the Hub cache goes by the repository and the least that tells it from the others."""
    put(cache, "org/small-GGUF", dict.fromkeys([*files, "mmproj-F16.gguf"], "GGUF"))
    assert specs("hub") == [f"llama-cpp:org/small-GGUF:{name}" for name in names]


def test_gguf_in_cache_without_a_name(cache):
    """What the repository's name would not find is named by its path: another version, an odd id."""
    old = put(cache, "org/old-GGUF", {"small.Q4_0.gguf": "GGUF"}, ref=None)
    bare = put(cache, "small", {"small.gguf": "GGUF"})
    put(cache, "small2", {"small.Q4_0.gguf": "GGUF"})
    assert specs("hub") == [
        f"llama-cpp:{old / 'small.Q4_0.gguf'}",
        f"llama-cpp:{bare / 'small.gguf'}",
        "llama-cpp:small2:Q4_0",
    ]


def test_models_of_other_programs(cache, tmp_path):
    """Files of LM Studio's and Ollama's folders are found, each with its source and how it is opened."""
    studio = tmp_path / "home" / ".lmstudio" / "models" / "org" / "small" / "small-Q4_0.gguf"
    studio.parent.mkdir(parents=True)
    studio.write_bytes(b"GGUF12")
    store = tmp_path / "home" / ".ollama" / "models"
    manifest = store / "manifests" / "registry.ollama.ai" / "library" / "llama3.2" / "3b"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "a" * 64}
    manifest.write_text(json.dumps({"layers": [layer]}))
    blob = store / "blobs" / ("sha256-" + "a" * 64)
    blob.parent.mkdir()
    blob.write_bytes(b"GGUF1234")
    assert [(one.source, one.spec, one.bytes) for one in local.find_models()[len(SHIPPED) :]] == [
        ("lm studio", f"llama-cpp:{studio}", 6),
        ("ollama", "llama-cpp:ollama://llama3.2:3b", 8),
    ]
    assert ollama.blob("llama3.2:3b") == blob


def test_a_file_in_several_places_is_one_model(cache, tmp_path, monkeypatch):
    """A cached file that is linked into other folders is listed once, by its shortest reference."""
    snapshot = put(cache, "org/small-GGUF", {"small.Q4_0.gguf": "GGUF"})
    for folder in (tmp_path / "mine", tmp_path / "home" / ".lmstudio" / "models" / "org"):
        folder.mkdir(parents=True)
        (folder / "linked.gguf").symlink_to(snapshot / "small.Q4_0.gguf")
    user_folders(monkeypatch, tmp_path / "mine")
    assert specs() == [*SHIPPED, "llama-cpp:org/small-GGUF:Q4_0"]


def test_what_writes_no_text_is_left_out(cache, tmp_path, monkeypatch, caplog):
    """A model for embeddings is not offered, and the log says why."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    caplog.set_level("INFO", logger="nbproviders")
    writer = gguf.GGUFWriter(tmp_path / "embeds.gguf", "nomic-bert")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    user_folders(monkeypatch, tmp_path)
    assert specs("folder") == []
    assert "embeds.gguf: it is for embeddings" in caplog.text


def test_half_a_model_in_parts_is_left_out(cache, tmp_path, monkeypatch):
    """A model whose second part is missing is not offered."""
    (tmp_path / "half-00001-of-00002.gguf").write_bytes(b"GGUF")
    user_folders(monkeypatch, tmp_path)
    assert specs("folder") == []


def test_search_is_bounded(cache, tmp_path, monkeypatch):
    """A folder of very many files ends the search there instead of walking a disk."""
    monkeypatch.setattr(gguf_files, "_MOST_FILES", 5)
    below = tmp_path / "many" / "below"
    below.mkdir(parents=True)
    for number in range(5):
        (tmp_path / "many" / f"{number}.txt").touch()
    (below / "a.gguf").write_bytes(b"GGUF")
    user_folders(monkeypatch, tmp_path / "many")
    assert specs("folder") == []


@pytest.mark.parametrize("value", ['"~/models"', "[1]"])
def test_wrong_setting(cache, value):
    """A setting that is no list of folders is told, with what to write."""
    Path(os.environ[CONFIG_VARIABLE]).write_text(f"[folders]\ngguf = {value}\n")
    with pytest.raises(nbp.ConfigurationError, match="must be a list of folders"):
        local.find_models()


@pytest.mark.parametrize("folder", ["~nobody-of-that-name/models", "a\u0000b", "/dev/null/x"])
def test_a_folder_that_cannot_be(cache, folder, monkeypatch):
    """A setting that names no possible folder finds nothing there, and all the rest."""
    user_folders(monkeypatch, folder)
    assert specs() == SHIPPED
