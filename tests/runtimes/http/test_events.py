"""Promises of the readers of events and lines: the WHATWG's rules, wherever the pieces are cut."""

from __future__ import annotations

from itertools import chain, pairwise

import pytest
from hypothesis import given, strategies as st

from nbproviders.runtimes.http.events import Event, Events, Lines, TooLong


def read(*pieces: bytes) -> list[Event]:
    reader = Events()
    return [event for piece in pieces for event in reader.feed(piece)]


def message(data: str, name: str = "message") -> Event:
    return Event(name, data)


@pytest.mark.parametrize(
    ("raw", "events"),
    [
        (b"data: a\n\n", [message("a")]),
        (b"data:a\n\n", [message("a")]),
        (b"data:  a\n\n", [message(" a")]),
        (b"data: a\ndata: b\n\n", [message("a\nb")]),
        (b"data\n\n", [message("")]),
        (b"data:\ndata:\n\n", [message("\n")]),
        (b"event: ping\ndata: 1\n\ndata: 2\n\n", [message("1", "ping"), message("2")]),
        (b"event: ping\n\ndata: 2\n\n", [message("2")]),
        (b": a comment\n\n:\n\ndata: 1\n\n", [message("1")]),
        (b"id: 7\nretry: 3000\nunknown: x\ndata: 1\n\n", [message("1")]),
        (b"data: 1\r\n\r\ndata: 2\r\n\r\n", [message("1"), message("2")]),
        (b"data: a\r\ndata: b\r\n\r\n", [message("a\nb")]),
        (b"data: 1\r\rdata: 2\r\r", [message("1"), message("2")]),
        (b"data: 1\n\r\ndata: 2\r\n\n", [message("1"), message("2")]),
        (b"\xef\xbb\xbfdata: 1\n\n", [message("1")]),
        (b"data: 1\n\n\xef\xbb\xbfdata: 2\n\n", [message("1")]),
        (b"data: a: b\n\n", [message("a: b")]),
        (b"data: \xff\xfe!\n\n", [message("\ufffd\ufffd!")]),
        ("data: a\u2028b\x0b\x85c\n\n".encode(), [message("a\u2028b\x0b\x85c")]),
        (b"data: whole\n\ndata: cut off", [message("whole")]),
        (b"data: whole\n\ndata: cut off\n", [message("whole")]),
        (b"", []),
    ],
)
def test_rules(raw: bytes, events: list[Event]) -> None:
    """Fields, endings, comments, marks and cut-off ends are read as the standard says."""
    assert read(raw) == events
    assert read(*(raw[i : i + 1] for i in range(len(raw)))) == events


TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff"), max_size=20
)


@given(
    st.lists(st.lists(TEXT, min_size=1, max_size=3), max_size=4),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 300)),
)
def test_cuts_do_not_matter(events: list[list[str]], ending: str, cuts: list[int]) -> None:
    """However a stream is cut into pieces, inside characters and line ends too, the events are the same."""
    raw = "".join(
        "".join(f"data: {line}{ending}" for line in lines) + ending for lines in events
    ).encode()
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    pieces = [raw[a:b] for a, b in pairwise(places)]
    assert read(*pieces) == [message("\n".join(lines)) for lines in events]


def test_an_event_waits_for_nothing() -> None:
    """An event is there with the CR of its blank line; a LF that comes later is no line of its own."""
    reader = Events()
    assert list(reader.feed(b"data: 1\r\n\r")) == [message("1")]
    assert list(reader.feed(b"\n")) == []
    assert list(reader.feed(b"data: 2\n\n")) == [message("2")]


@pytest.mark.parametrize(
    "pieces",
    [[b"data: " + b"x" * 101], [b"data: x\n"] * 20, [b":" + b"x" * 60] * 2, [b"x"] * 101],
    ids=["one line", "many lines", "a comment", "single bytes"],
)
def test_limit(pieces: list[bytes]) -> None:
    """An event beyond the limit is refused while it comes, whether it is one line or many."""
    reader = Events(limit_bytes=100)
    with pytest.raises(TooLong):
        list(chain.from_iterable(map(reader.feed, pieces)))


def test_limit_is_for_each() -> None:
    """Any number of events within the limit may come."""
    reader = Events(limit_bytes=100)
    assert sum(1 for _ in range(50) for _ in reader.feed(b"data: " + b"x" * 80 + b"\n\n")) == 50


def test_lines() -> None:
    """Lines come without their ends, empty ones too; what has no end yet is the rest."""
    lines = Lines()
    assert list(lines.feed(b'{"a": 1}\n\n{"b"')) == [b'{"a": 1}', b""]
    assert lines.rest() == b'{"b"'
    assert list(lines.feed(b": 2}\r\nx")) == [b'{"b": 2}']
    assert lines.rest() == b"x"
