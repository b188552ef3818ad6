"""Promises of blocks that several tasks or threads are inside of at once."""

from __future__ import annotations

import pytest

from nbproviders.authoring.blocks import Blocks
from nbproviders.errors import ClosedError


def test_each_leaves_with_its_own() -> None:
    """Whoever entered gets back what it was given, whatever the others do."""
    blocks: Blocks[str] = Blocks()
    assert blocks.enter("a", "of a") == "of a"
    blocks.enter("b", "of b")
    assert blocks.leave("a") == "of a"
    assert blocks.leave("b") == "of b"


def test_entered_twice_the_inner_block_ends_first() -> None:
    """One task inside two blocks leaves with what it was given last."""
    blocks: Blocks[int] = Blocks()
    for given in (1, 2):
        blocks.enter("a", given)
    assert [blocks.leave("a"), blocks.leave("a")] == [2, 1]


def test_one_that_never_entered_leaves_for_the_oldest() -> None:
    """A fixture may be left by another task than entered it."""
    blocks: Blocks[int] = Blocks()
    blocks.enter("a", 1)
    blocks.enter("b", 2)
    assert blocks.leave("somebody else") == 1
    assert blocks.leave("b") == 2


def test_left_more_often_than_entered() -> None:
    """It is an error of ours, also after it was used well."""
    blocks: Blocks[int] = Blocks()
    for _ in range(2):
        blocks.enter("a", 1)
        blocks.leave("a")
        with pytest.raises(ClosedError, match="left more often than it was entered"):
            blocks.leave("a")


def test_what_was_given_may_be_none() -> None:
    """Nothing is mistaken for nobody."""
    blocks: Blocks[None] = Blocks()
    blocks.enter(None, None)
    assert blocks.leave(None) is None
