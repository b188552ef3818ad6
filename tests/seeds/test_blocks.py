"""Every code block of the five documents is accounted for, by a test that is there."""

from __future__ import annotations

import importlib

import pytest

from tests.seeds.documents import BLOCKS, FOUND, NAMES, blocks

HOW = {"as it is", "import changed", "with stand-ins", "corrected", "no code"}


@pytest.mark.parametrize("name", NAMES)
def test_no_block_is_left_out(name: str) -> None:
    """Each block is named once, each name is a block, and what is not run is no code."""
    if name not in FOUND:
        pytest.skip(f"NBPROVIDERS_TEST_SEEDS names no folder with {name}")
    for _, text in blocks(name):
        told = [one for one in BLOCKS[name] if one.words in text]
        assert len(told) == 1, f"not accounted for: {text[:80]!r}"
    assert len(blocks(name)) == len(BLOCKS[name])


@pytest.mark.parametrize("name", NAMES)
def test_the_tests_are_there(name: str) -> None:
    """What is said to run a block is a test, and says what it adds or corrects."""
    for told in BLOCKS[name]:
        assert told.how in HOW
        assert told.test or told.how == "no code", told
        assert told.why or told.how in ("as it is", "import changed"), told
        if told.test:
            module, _, function = told.test.partition("::")
            assert callable(getattr(importlib.import_module(f"tests.{module}"), function)), told
