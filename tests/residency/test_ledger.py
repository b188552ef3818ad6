"""Promises of the ledger, kept between real processes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nbproviders.residency import ledger as ledgers
from nbproviders.residency.ledger import Ledger, Row, default_folder, strangers
from tests.residency.kernels import GPU, Kernel, row

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no ledger there")

Start = Callable[..., Kernel]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts kernels that share a folder."""
    started = []

    def one(label: str = "") -> Kernel:
        started.append(Kernel(folder, label))
        return started[-1]

    yield one
    for kernel in started:
        kernel.end()


def files(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


def keys(rows: list[Row]) -> list[str]:
    return sorted(one.key for one in rows)


async def test_rows_are_told_with_whose_they_are(folder: Path, start: Start) -> None:
    """Another process sees what is on a device, and who has it; its own rows it does not see."""
    peer, mine = start("/home/someone/fruit.ipynb"), Ledger(folder)
    peer.do("publish", ["pear", 10, True], ["plum", 20, False])
    mine.publish([row("fig"), row("kiwi", device="cpu")])
    assert mine.others(GPU) == [
        replace(row("pear", 10), process="fruit.ipynb", pid=peer.pid),
        replace(row("plum", 20, idle=False), process="fruit.ipynb", pid=peer.pid),
    ]
    assert mine.others("cpu") == []
    assert peer.do("others", "cpu") == [["kiwi", f"process {os.getpid()}"]]
    mine.publish([])
    assert peer.do("others", GPU) == []
    await mine.close()
    assert [kind for kind in files(folder) if kind == ".json"] == [".json"]


async def test_a_label_tells_no_path_and_no_key(folder: Path) -> None:
    """What others show of us is a name: short, in one line, and nothing that looks like a key."""
    one, other = Ledger(folder, "/srv/api_key=hunter22/" + "n\x1b" * 400), Ledger(folder)
    two = Ledger(folder, "C:\\Users\\me\\token=hunter22")
    one.publish([row("a")])
    two.publish([row("b")])
    labels = {found.key: found.process for found in other.others(GPU)}
    assert labels == {"a": "n" * 80, "b": "token=****"}
    await one.close()
    await two.close()


def test_a_killed_process_is_gone_at_the_next_look(folder: Path, start: Start) -> None:
    """Wherever the kill falls, in the middle of writing too, no row and no file is left of it."""
    mine, doomed = Ledger(folder), [start() for _ in range(3)]
    for kernel in doomed:
        kernel.do("flicker")
    for kernel in doomed:
        assert any(one.pid == kernel.pid for one in mine.others(GPU))
        kernel.kill()
        assert not any(one.pid == kernel.pid for one in mine.others(GPU))
    assert list(folder.iterdir()) == []


def test_half_a_page_is_never_read(folder: Path, start: Start) -> None:
    """While another process writes all the time, each look sees one of its pages as a whole."""
    mine, peer = Ledger(folder), start()
    peer.do("flicker")
    seen = {len(mine.others(GPU)) for _ in range(300)}
    assert seen == {1, 200}


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"version": 1, "pid": 12',
        "[]",
        "7",
        '{"pid": "x", "label": "", "rows": []}',
        '{"pid": 1, "started": "", "label": "", "port": 0, "token": "", "rows": [{"key": "a"}]}',
        "[" * 5000,
    ],
)
def test_a_page_that_cannot_be_read_has_no_rows(folder: Path, start: Start, text: str) -> None:
    """Half a page, or one of another version, hides its own process only, which keeps its files."""
    bad, good, mine = Ledger(folder), Ledger(folder), Ledger(folder)
    bad.publish([row("bad")])
    (page,) = folder.glob("*.json")
    good.publish([row("good")])
    page.write_text(text)
    assert keys(mine.others(GPU)) == ["good"]
    assert page.exists()
    bad.publish([row("mended")])
    assert keys(mine.others(GPU)) == ["good", "mended"]


def test_charges_below_nothing_are_refused(folder: Path) -> None:
    """No page can make a device look larger than it is."""
    bad, mine = Ledger(folder), Ledger(folder)
    bad.publish([row("bad", -5)])
    assert mine.others(GPU) == []


def test_three_processes_never_reserve_more_than_there_is(folder: Path, start: Start) -> None:
    """Of two hundred tries each, all at once, none makes the sum of the charges exceed the limit."""
    kernels = [start() for _ in range(3)]
    for seed, kernel in enumerate(kernels):
        kernel.tell("reserve", 200, 1000, seed)
    most, granted = zip(*(kernel.answer() for kernel in kernels), strict=True)
    assert max(most) <= 1000
    assert max(most) > 900  # they did come near it
    assert min(granted) > 10


def test_a_device_held_by_a_stopped_process_holds_nobody_up_for_long(
    folder: Path,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After a bounded wait it goes on without the lock and says so; other devices are free at once."""
    monkeypatch.setattr(ledgers, "RESERVE_S", 0.2)
    mine, peer = Ledger(folder), start()
    peer.do("hold")
    with mine.reserving("cpu"):
        assert caplog.text == ""  # else it would say whom it waited for
    began_s = time.monotonic()
    with mine.reserving(GPU):
        assert 0.2 <= time.monotonic() - began_s < 1.5
    assert "has held the ledger of gpu-1 for 0.2 s" in caplog.text
    caplog.clear()
    peer.kill()
    with mine.reserving(GPU):
        assert caplog.text == ""


@pytest.mark.parametrize("fork", ["fork", "fork_in_c"])
def test_a_child_does_not_go_on_reserving(
    folder: Path, start: Start, fork: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is forked while its parent holds a device holds nothing up."""
    mine, parent = Ledger(folder), start()
    child = parent.do("fork_while_reserving", fork)
    try:
        with mine.reserving(GPU):
            assert caplog.text == ""
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_that_leaves_a_reservation_closes_nothing_of_its_own(start: Start) -> None:
    """What it was forked with is not its to give back, whatever has that number by now."""
    assert start().do("leave_in_child") is True


def test_a_child_does_not_reserve_for_a_dead_parent(
    folder: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor when the parent was killed before it gave the device back."""
    mine, parent = Ledger(folder), start()
    parent.tell("hold", "fork")
    child = parent.answer()
    try:
        parent.kill()
        with mine.reserving(GPU):
            assert caplog.text == ""
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_reservation_that_fails_gives_the_device_back(folder: Path) -> None:
    """An error inside leaves nothing locked, and nothing open."""
    one, other = Ledger(folder), Ledger(folder)
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(ValueError, match="no"), one.reserving(GPU):
            raise ValueError("no")
    began_s = time.monotonic()
    with other.reserving(GPU):
        assert time.monotonic() - began_s < 1
    assert len(list(Path("/dev/fd").iterdir())) == before


@pytest.mark.parametrize("told", [True, False], ids=["linux", "another system"])
def test_a_forked_child_is_a_process_of_its_own(folder: Path, start: Start, told: bool) -> None:
    """It sees its parent as another, and neither keeps the parent's page alive nor takes it away.

    Also where nobody can tell when a process started, and the lock is all there is.
    """
    mine, parent = Ledger(folder), start("parent")
    if not told:
        parent.do("forget_the_start")
    parent.do("serve")
    parent.do("publish", ["a", 1, True])
    (page,) = folder.glob("*.json")
    port = json.loads(page.read_text())["port"]
    child, seen = parent.do("fork")
    try:
        assert seen == [["a", "parent"]]
        assert keys(mine.others(GPU)) == ["a", "child"]
        parent.kill()
        assert keys(mine.others(GPU)) == ["child"]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    finally:
        os.kill(child, signal.SIGKILL)


async def test_a_parent_answers_as_before(folder: Path, start: Start) -> None:
    """A child that lets go of its parent's socket does not close it for the parent."""
    mine, parent = Ledger(folder), start()
    parent.do("publish", ["a", 300, True])
    parent.do("serve")
    child, _ = parent.do("fork")
    try:
        for count in (300, 40):
            parent.do("publish", ["a", count, True])
            assert await mine.ask(GPU, 400, deadline_s=30) == count
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_end_of_a_forked_child_leaves_its_parent(folder: Path, start: Start) -> None:
    """A child's end takes the child's page and no other."""
    mine, parent = Ledger(folder), start()
    parent.do("publish", ["a", 1, True])
    child, _ = parent.do("fork")
    os.kill(child, signal.SIGKILL)
    # The parent does not wait for it, so it stays a zombie: its files are closed all the same.
    while "child" in keys(mine.others(GPU)):
        time.sleep(0.01)
    assert keys(mine.others(GPU)) == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a process when it started")
def test_a_child_forked_behind_pythons_back_keeps_nobody_alive(folder: Path, start: Start) -> None:
    """Such a child holds its parent's lock; the page goes with the parent all the same."""
    mine, parent = Ledger(folder), start()
    parent.do("publish", ["a", 1, True])
    child = parent.do("fork_in_c")
    try:
        assert keys(mine.others(GPU)) == ["a"]
        parent.kill()
        assert mine.others(GPU) == []
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_page_of_another_container_is_believed(folder: Path) -> None:
    """Process ids of another space say nothing here: who is locked there lives."""
    one, mine = Ledger(folder), Ledger(folder)
    one.publish([row()])
    (page,) = folder.glob("*.json")
    told = json.loads(page.read_text())
    page.write_text(json.dumps(told | {"pid": 2**22 + 1, "started": "pid:[1]/7"}))
    assert keys(mine.others(GPU)) == ["a"]
    if sys.platform == "linux":
        page.write_text(json.dumps(told | {"pid": 2**22 + 1}))
        assert mine.others(GPU) == []


def test_a_folder_that_was_cleared_away_is_entered_again(folder: Path) -> None:
    """Temporary files are cleared by age: the next publishing brings the page back."""
    one, mine = Ledger(folder), Ledger(folder)
    one.publish([row()])
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    one.publish([row()])
    assert keys(mine.others(GPU)) == ["a"]


async def test_who_left_can_come_back(folder: Path) -> None:
    """Closing takes the page away, twice does no harm, and publishing brings it back."""
    one, mine = Ledger(folder), Ledger(folder)
    one.publish([row()])
    await one.close()
    await one.close()
    assert mine.others(GPU) == []
    assert files(folder) == []
    one.publish([row()])
    assert keys(mine.others(GPU)) == ["a"]


def test_nobody_else_can_look(folder: Path) -> None:
    """The folder and all in it are closed to other users; one that was open is closed."""
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    one = Ledger(folder)
    one.publish([row()])
    with one.reserving(GPU):
        modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def use(one: Ledger) -> None:
    async def give(device: str, need_bytes: int) -> int:
        return 0

    one.publish([row()])
    one.serve(give)
    one.publish([row("b")])
    with one.reserving(GPU):
        assert one.others(GPU) == []
    assert await one.ask(GPU, 10) == 0
    await one.close()


async def test_a_folder_that_cannot_be_used_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything goes on without a ledger, and one warning says why."""
    (tmp_path / "file").write_text("")
    await use(Ledger(tmp_path / "file" / "ledger"))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    await use(Ledger(tmp_path / "link"))
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warned) == 2
    assert str(tmp_path / "file") in warned[0].getMessage()
    assert "Models load all the same" in warned[0].getMessage()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_a_folder_of_another_user_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody who was first to make it is told nothing."""
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o777)
    os.chown(folder, 12345, 12345)
    Ledger(folder).publish([row()])
    assert list(folder.iterdir()) == []
    assert "belongs to another user" in caplog.text


def test_a_full_disk_takes_the_page_away(folder: Path, start: Start) -> None:
    """What can no longer be told truly is not told any more."""
    mine, peer = Ledger(folder), start()
    peer.do("publish", ["a", 1, True])
    peer.do("fill_the_disk")
    peer.do("publish", ["a", 2, True])
    assert mine.others(GPU) == []
    assert list(folder.iterdir()) == []


def test_where_kernels_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the runtime folder if it is ours alone to write to, else in a folder with our number."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert default_folder() == runtime / "nbproviders" / "ledger"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    else_here = tmp_path / f"nbproviders-{os.geteuid()}" / "ledger"
    runtime.chmod(0o777)
    assert default_folder() == else_here
    for unusable in (str(tmp_path / "none"), "relative", ""):
        monkeypatch.setenv("XDG_RUNTIME_DIR", unusable)
        assert default_folder() == else_here
    one, other = Ledger(), Ledger()
    one.publish([row()])
    assert keys(other.others(GPU)) == ["a"]
    assert stat.S_IMODE(else_here.parent.stat().st_mode) == 0o700


def test_memory_of_programs_outside_the_ledger() -> None:
    """What the driver counts, less what the ledger's processes have really taken; never below nothing."""
    rows = [replace(row("a", 100), taken_bytes=30), row("b", 20), row("c", 500, device="cpu")]
    assert strangers(GPU, 90, rows, own_bytes=10) == 30
    assert strangers(GPU, 40, rows, own_bytes=10) == 0
    assert strangers("cpu", 600, rows, own_bytes=0) == 100
    assert rows[0].pending_bytes == 70
    assert replace(rows[0], taken_bytes=120).pending_bytes == 0


async def test_idle_models_of_others_make_room(folder: Path, start: Start) -> None:
    """Who has most idle bytes is asked, and no more processes than need be; the ledger shows it at once."""
    mine, small, large, busy = Ledger(folder), start(), start(), start()
    for kernel, rows in (
        (small, [["s", 10, True]]),
        (large, [["l", 50, True], ["k", 7, False]]),
        (busy, [["b", 900, False]]),
    ):
        kernel.do("publish", *rows)
        kernel.do("serve")
    assert await mine.ask(GPU, 40) == 50
    assert keys(mine.others(GPU)) == ["b", "k", "s"]
    assert [kernel.do("calls") for kernel in (small, large, busy)] == [[], [40], []]
    assert await mine.ask(GPU, 40) == 10
    assert await mine.ask(GPU, 40) == 0
    assert await mine.ask("cpu", 40) == 0
    assert busy.do("calls") == []


async def test_a_stopped_process_costs_no_more_than_the_deadline(
    folder: Path, start: Start
) -> None:
    """Who is stopped is passed over for the next; when it goes on it frees nothing for who gave up."""
    mine, stopped, awake = Ledger(folder), start(), start()
    for kernel, count in ((stopped, 100), (awake, 60)):
        kernel.do("publish", ["a", count, True])
        kernel.do("serve")
    stopped.stop()
    began_s = time.monotonic()
    assert await mine.ask(GPU, 80, deadline_s=1) == 60
    assert 1 <= time.monotonic() - began_s < 4
    stopped.go_on()
    assert await mine.ask(GPU, 70) == 100
    assert stopped.do("calls") == [70]


async def test_who_refuses_hangs_or_dies_gives_nothing(folder: Path, start: Start) -> None:
    """Each of them is no bytes, and no error."""
    mine, refusing, hanging = Ledger(folder), start(), start()
    for kernel, how in ((refusing, "refuse"), (hanging, "hang")):
        kernel.do("publish", ["a", 100, True])
        kernel.do("serve", how)
    asking = asyncio.create_task(mine.ask(GPU, 150, deadline_s=30))
    while not await asyncio.to_thread(hanging.do, "calls"):
        pass
    hanging.kill()
    assert await asking == 0
    assert refusing.do("calls") != []
    assert keys(mine.others(GPU)) == ["a"]
