"""Models of Ollama's: real folders as it lays them out, of its older and newer versions, whole and broken."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from nbproviders.catalog import ollama
from nbproviders.errors import ModelAccessError

WEIGHTS = "application/vnd.ollama.image.model"
LIBRARY = "registry.ollama.ai/library"


class Store:
    """A folder of Ollama's."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def blob(self, content: bytes) -> str:
        """Write a blob and return its digest."""
        digest = hashlib.sha256(content).hexdigest()
        path = self.root / "blobs" / f"sha256-{digest}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return f"sha256:{digest}"

    def path(self, content: bytes) -> Path:
        return self.root / "blobs" / f"sha256-{hashlib.sha256(content).hexdigest()}"

    def manifest(self, *layers: tuple[str, bytes], **more: Any) -> dict[str, Any]:
        made = [
            {"mediaType": kind, "digest": self.blob(content), "size": len(content)}
            for kind, content in layers
        ]
        return {"schemaVersion": 2, "config": {}, "layers": made, **more}

    def put(self, name: str, manifest: object, tree: str = "manifests") -> Path:
        path = self.root / tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
        return path

    def put_model(self, name: str, content: bytes) -> Path:
        """Write a model with a template; return its blob."""
        template = ("application/vnd.ollama.image.template", b"{{ .Prompt }}")
        self.put(name, self.manifest(template, (WEIGHTS, content)))
        return self.path(content)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Ollama's folder in a home of this test alone; no service and no setting of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv(ollama.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(ollama, "_SERVICE_FOLDER", tmp_path / "service")
    return Store(tmp_path / ".ollama" / "models")


def names() -> list[str]:
    return [one.name for one in ollama.models()]


def test_models_are_named_as_ollama_does(store: Store) -> None:
    """Host, namespace and tag are left out where they are the defaults, and only there."""
    blob = store.put_model(f"{LIBRARY}/llama3.2/3b", b"GGUF a")
    store.put_model(f"{LIBRARY}/mistral/latest", b"GGUF bb")
    store.put_model("registry.ollama.ai/someone/fine/v1", b"GGUF c")
    store.put_model("hf.co/org/Small-GGUF/Q4_K_M", b"GGUF d")
    store.put_model("example.com/library/own/latest", b"GGUF e")
    found = ollama.models()
    assert found[2] == ollama.OllamaModel("llama3.2:3b", 6, blob)
    assert [one.name for one in found] == [
        "example.com/library/own",
        "hf.co/org/Small-GGUF:Q4_K_M",
        "llama3.2:3b",
        "mistral",
        "someone/fine:v1",
    ]
    for one in found:
        assert ollama.blob(one.name) == one.path


@pytest.mark.parametrize(
    "name",
    ["llama3.2", "llama3.2:latest", "LLAMA3.2", "library/llama3.2", f"{LIBRARY}/llama3.2:Latest"],
)
def test_blob_of_a_name(store: Store, name: str) -> None:
    """A name finds its file with or without the default parts, whatever the case."""
    blob = store.put_model(f"{LIBRARY}/llama3.2/latest", b"GGUF a")
    store.put_model(f"{LIBRARY}/llama3.2/3b", b"GGUF b")
    assert ollama.blob(name) == blob


def test_one_file_is_listed_once(store: Store) -> None:
    """Of several names for one file the shortest is listed, and each of them opens it."""
    for tag in ("llama3.2/3b", "llama3.2/latest", "llama3.2/3b-instruct-q4_K_M"):
        blob = store.put_model(f"{LIBRARY}/{tag}", b"GGUF a")
    assert names() == ["llama3.2"]
    assert ollama.blob("llama3.2:3b-instruct-q4_k_m") == blob


def test_newer_layout(store: Store) -> None:
    """What newer versions write is read too: another tree and host, a link into the blobs."""
    content = json.dumps(store.manifest((WEIGHTS, b"GGUF a"))).encode()
    store.blob(content)
    link = store.root / "manifests-v2" / "ollama.com" / "library" / "llama3.2" / "3b"
    link.parent.mkdir(parents=True)
    link.symlink_to(store.path(content))
    assert names() == ["llama3.2:3b"]
    assert ollama.blob("llama3.2:3b") == store.path(b"GGUF a")


def test_newer_layout_stands_over_the_older(store: Store) -> None:
    """A model in both trees is the newer one's, unless its link leads nowhere."""
    store.put_model(f"{LIBRARY}/small/latest", b"GGUF old")
    link = store.put(
        "ollama.com/library/small/latest", store.manifest((WEIGHTS, b"GGUF new")), "manifests-v2"
    )
    assert ollama.blob("small") == store.path(b"GGUF new")
    link.unlink()
    link.symlink_to("nowhere")
    assert ollama.blob("small") == store.path(b"GGUF old")


def test_list_of_manifests(store: Store) -> None:
    """Of the forms that a model is there in, the one for llama.cpp is taken; a lost one costs itself."""
    children = [
        ("ollama", "gguf", (WEIGHTS, b"GGUF other")),
        ("mlx", "safetensors", ("application/vnd.ollama.image.tensor", b"x")),
        ("llamacpp", "gguf", (WEIGHTS, b"GGUF right")),
    ]
    entries: list[dict[str, str]] = [{"runner": "llamacpp", "digest": "sha256:" + "0" * 64}]
    for runner, form, layer in children:
        digest = store.blob(json.dumps(store.manifest(layer)).encode())
        entries.append({"digest": digest, "runner": runner, "format": form})
    whole = {"mediaType": "application/vnd.ollama.manifest.list.v2+json", "manifests": entries}
    store.put("ollama.com/library/small/latest", whole, "manifests-v2")
    assert ollama.blob("small") == store.path(b"GGUF right")


def test_folders(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ollama's setting, quotes or not, stands for the home's folder; the service's comes after it."""
    store.put_model(f"{LIBRARY}/home/latest", b"GGUF a")
    Store(tmp_path / "service").put_model(f"{LIBRARY}/served/latest", b"GGUF b")
    assert names() == ["home", "served"]
    Store(tmp_path / "other").put_model(f"{LIBRARY}/chosen/latest", b"GGUF c")
    monkeypatch.setenv(ollama.FOLDER_VARIABLE, f' "{tmp_path / "other"}" ')
    assert names() == ["chosen", "served"]


BROKEN: dict[str, object] = {
    "torn": '{"layers": [',
    "text": "\x00\xff",
    "list": [],
    "number": 3,
    "nested": "[" * 100_000,
    "no layers": {},
    "odd layers": {"layers": 3},
    "odd layer": {"layers": [1, None]},
    "no digest": {"layers": [{"mediaType": WEIGHTS}]},
    "odd digest": {"layers": [{"mediaType": WEIGHTS, "digest": "sha256:../../../etc/passwd"}]},
    "lost": {"layers": [{"mediaType": WEIGHTS, "digest": "sha256:" + "0" * 64}]},
    "odd list": {"manifests": [1, {"digest": 2}]},
    "huge": " " * (9 << 20),
}


@pytest.mark.parametrize("manifest", BROKEN.values(), ids=BROKEN)
def test_a_broken_manifest_costs_itself(
    store: Store, manifest: object, caplog: pytest.LogCaptureFixture
) -> None:
    """It is left out with a line in the log, and asked for by name it is an error; others are there."""
    caplog.set_level("INFO", logger="nbproviders")
    store.put(f"{LIBRARY}/broken/latest", manifest)
    blob = store.put_model(f"{LIBRARY}/good/latest", b"GGUF a")
    assert names() == ["good"]
    assert "broken" in caplog.text
    assert ollama.blob("good") == blob
    with pytest.raises(ModelAccessError, match="'broken' cannot be used") as caught:
        ollama.blob("broken")
    assert "ollama pull broken" in caught.value.hint


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([(WEIGHTS, b"ggml old")], "is no GGUF file"),
        ([(WEIGHTS, b"")], "is no GGUF file"),
        ([(WEIGHTS, b"GGUF a"), (WEIGHTS, b"GGUF b")], "lists 2 GGUF files, not one"),
        ([(WEIGHTS, b"GGUF a"), ("application/vnd.ollama.image.adapter", b"x")], "an adapter"),
        ([("application/vnd.ollama.image.tensor", b"x")], "lists no GGUF file"),
    ],
)
def test_what_is_not_one_gguf_file(
    store: Store, layers: list[tuple[str, bytes]], said: str
) -> None:
    """A model that its one file would not be is not offered, and asked for says why."""
    store.put(f"{LIBRARY}/odd/latest", store.manifest(*layers))
    assert names() == []
    with pytest.raises(ModelAccessError, match=said):
        ollama.blob("odd")


def test_a_file_cut_short(store: Store) -> None:
    """A blob of another size than its manifest tells is told with both numbers."""
    blob = store.put_model(f"{LIBRARY}/cut/latest", b"GGUF and more")
    blob.write_bytes(b"GGUF")
    assert names() == []
    with pytest.raises(ModelAccessError, match="holds 4 bytes, not 13"):
        ollama.blob("cut")


@pytest.mark.parametrize("name", ["gone", "", ":", "a/b/c/d:e", "../../good", "good:3b", "goo*"])
def test_no_such_model(store: Store, name: str) -> None:
    """A name that is not here is an error with the names that are, and how to fetch one."""
    store.put_model(f"{LIBRARY}/good/latest", b"GGUF a")
    with pytest.raises(ModelAccessError, match="there is good") as caught:
        ollama.blob(name)
    assert "ollama pull" in caught.value.hint


def test_no_ollama(store: Store, tmp_path: Path) -> None:
    """Where Ollama keeps nothing the error says which folders were looked into."""
    assert ollama.models() == []
    with pytest.raises(ModelAccessError, match="nothing was found in") as caught:
        ollama.blob("llama3.2")
    assert str(store.root) in str(caught.value)
    assert ollama.FOLDER_VARIABLE in caught.value.hint


def test_odd_files_in_between(store: Store) -> None:
    """Files and folders that are no manifests are passed by, and a link to itself ends nothing."""
    blob = store.put_model(f"{LIBRARY}/good/latest", b"GGUF a")
    manifests = store.root / "manifests"
    (manifests / ".DS_Store").write_bytes(b"x")
    (manifests / LIBRARY / "good" / ".DS_Store").write_bytes(b"x")
    (manifests / LIBRARY / "good" / "deeper" / "still").mkdir(parents=True)
    (manifests / LIBRARY / "loop").symlink_to(manifests / LIBRARY)
    (manifests / LIBRARY / "self").symlink_to("self")
    (manifests / LIBRARY / "good" / "me").symlink_to("me")
    assert names() == ["good"]
    assert ollama.blob("good") == blob


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read all")
def test_a_closed_folder_is_told(store: Store) -> None:
    """A folder of another user's is named in the hint."""
    store.root.mkdir(parents=True)
    store.root.chmod(0)
    try:
        assert ollama.models() == []
        with pytest.raises(ModelAccessError) as caught:
            ollama.blob("x")
    finally:
        store.root.chmod(0o700)
    assert "may not be read" in caught.value.hint


def test_search_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of very many manifests is not read to its end."""
    for number in range(4):
        store.put_model(f"{LIBRARY}/m{number}/latest", b"GGUF %d" % number)
    monkeypatch.setattr(ollama, "_MOST_MANIFESTS", 3)
    assert len(names()) == 3
