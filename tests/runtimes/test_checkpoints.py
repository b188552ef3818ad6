"""What a checkpoint tells of itself before it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbproviders.runtimes import checkpoints
from tests.tiny import llama_bytes, write_llama

pytest.importorskip("torch")


def test_header_bytes_are_the_weights_bytes(tmp_path: Path) -> None:
    """Bytes by header equal parameters times item size, tied embeddings once."""
    weights = checkpoints.read_weights(write_llama(tmp_path, hidden=64, layers=3))
    assert weights is not None
    assert weights.bytes_as("float32") == llama_bytes(64, 3)
    assert weights.bytes_as("bfloat16") == llama_bytes(64, 3) // 2
    assert weights.bytes_as(None) == llama_bytes(64, 3)


@pytest.mark.parametrize("name", ["./x", "/x/y", "~/x", "a/b/c", r"C:\models\x"])
def test_paths_are_not_hub_ids(name: str) -> None:
    """What looks like a path is one, there or not."""
    assert checkpoints.is_local(name)


@pytest.mark.parametrize("name", ["gpt2", "org/name", "org/name.v1-2"])
def test_hub_ids_are_not_paths(name: str) -> None:
    """A Hub id is none."""
    assert not checkpoints.is_local(name)


def test_the_revision_of_a_snapshot_is_its_commit(tmp_path: Path) -> None:
    """In the Hub cache the folder's name is the commit."""
    folder = tmp_path / "snapshots" / "abc123"
    folder.mkdir(parents=True)
    assert checkpoints.revision_of(folder) == "abc123"
