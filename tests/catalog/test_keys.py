"""Promises of keys: where they are looked for, in which order, and that nothing shows them."""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from nbproviders.catalog import keys
from nbproviders.catalog.keys import Location, ask, find, forget, locate
from nbproviders.core import engine
from nbproviders.core.config import Secret
from nbproviders.errors import ConfigurationError
from tests.services.keys import FAKE, fake

ONE, TWO = "NBP_ONE_API_KEY", "NBP_TWO_API_KEY"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key in the environment, in memory or in the user's own keyring."""
    for variable in (ONE, TWO):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(keys, "_known", {})
    monkeypatch.setattr(keys, "_hung", None)
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")


Store = dict[str, str | BaseException | Callable[[], str]]


@pytest.fixture
def keyring(nothing_known: None) -> Iterator[Store]:
    """A keyring in memory: what a name has is returned, raised or called."""
    library = pytest.importorskip("keyring")
    backend = pytest.importorskip("keyring.backend")
    store: Store = {}

    class InMemory(backend.KeyringBackend):  # type: ignore[misc, name-defined]
        priority = 1

        def get_password(self, service: str, username: str) -> str | None:
            held = store.get(username) if service == "nbproviders" else None
            if isinstance(held, BaseException):
                raise held
            return held() if callable(held) else held

        def set_password(self, service: str, username: str, password: str) -> None:
            raise AssertionError("nothing is ever stored")

    before = library.get_keyring()
    library.set_keyring(InMemory())
    yield store
    library.set_keyring(before)


@pytest.fixture
def colab(monkeypatch: pytest.MonkeyPatch) -> Store:
    """A stand-in of the shape of ``google.colab.userdata``; what a name has is returned or raised."""
    store: Store = {}
    modules = [types.ModuleType(n) for n in ("google", "google.colab", "google.colab.userdata")]
    userdata: object = modules[-1]

    class SecretNotFoundError(Exception):
        pass

    class NotebookAccessError(Exception):
        pass

    def get(key: str) -> object:
        if key not in store:
            raise SecretNotFoundError(f"Secret {key} does not exist.")
        held = store[key]
        if isinstance(held, BaseException):
            raise held
        return held

    vars(userdata).update(
        SecretNotFoundError=SecretNotFoundError, NotebookAccessError=NotebookAccessError, get=get
    )
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(modules[1])["userdata"] = userdata
    return store


# The order


def test_environment_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first variable that is set is taken; one that is empty is not set."""
    assert find([ONE, TWO]) is None
    monkeypatch.setenv(TWO, fake("two"))
    monkeypatch.setenv(ONE, "  ")
    assert find([ONE, TWO]) == fake("two")
    monkeypatch.setenv(ONE, fake("one"))
    assert find([ONE, TWO]) == fake("one")
    assert find([TWO, ONE]) == fake("two")
    assert find([]) is None


def test_places_in_order(monkeypatch: pytest.MonkeyPatch, keyring: Store, colab: Store) -> None:
    """Environment before Colab before keyring, whichever of the variables each of them has."""
    assert ask("One", [ONE, TWO]) is None
    keyring[ONE] = fake("keyring")
    assert ask("One", [ONE, TWO]) == fake("keyring")
    forget([ONE, TWO])
    colab[TWO] = fake("colab")
    assert ask("One", [ONE, TWO]) == fake("colab")
    monkeypatch.setenv(TWO, fake("environment"))
    assert ask("One", [ONE, TWO]) == fake("environment")


def test_remembered_in_memory_alone(keyring: Store) -> None:
    """What was found is found again without looking, and no child process inherits it."""
    keyring[ONE] = fake()
    assert find([ONE]) is None
    assert ask("One", [ONE]) == fake()
    keyring[ONE] = AssertionError("looked again")
    assert find([TWO, ONE]) == ask("One", [TWO, ONE]) == fake()
    assert fake() not in os.environ.values()


def test_forgotten_when_refused(monkeypatch: pytest.MonkeyPatch, keyring: Store) -> None:
    """A forgotten key is looked for anew; the environment's is not ours to forget."""
    keyring[ONE] = fake("old")
    ask("One", [ONE])
    keyring[ONE] = fake("new")
    forget([TWO, ONE])
    assert find([ONE]) is None
    assert ask("One", [ONE]) == fake("new")
    monkeypatch.setenv(ONE, fake("environment"))
    forget([ONE])
    assert find([ONE]) == fake("environment")


def test_nothing_is_asked_without_a_name(keyring: Store, colab: Store) -> None:
    """A service that takes no key has none."""
    assert ask("Free", []) is None


# The key


@pytest.mark.parametrize("around", ["{} ", "\t{}\n", "'{}'", '"{}"', ' "{}" \r\n', '" {}"'])
def test_what_was_copied_along_is_cut(
    around: str, monkeypatch: pytest.MonkeyPatch, keyring: Store
) -> None:
    """White space and quotes round a key are no part of it, wherever it is from."""
    keyring[TWO] = monkeypatched = around.format(fake())
    monkeypatch.setenv(ONE, monkeypatched)
    assert find([ONE]) == ask("Two", [TWO]) == fake()


@pytest.mark.parametrize("inner", ["\n", "\r\n", "\t", "é", "\u200b", "\ufeff", "\x00"])
@pytest.mark.parametrize("place", ["environment", "keyring", "colab"])
def test_what_no_header_can_hold_is_refused(
    inner: str, place: str, monkeypatch: pytest.MonkeyPatch, keyring: Store, colab: Store
) -> None:
    """A key with a line break or a foreign character is refused with its place, and is not shown."""
    bad = FAKE + inner + FAKE
    if place == "environment":
        if inner == "\x00":
            return  # no environment can hold it
        monkeypatch.setenv(ONE, bad)
    else:
        (keyring if place == "keyring" else colab)[ONE] = bad
    with pytest.raises(ConfigurationError, match=ONE) as caught:
        ask("One", [ONE])
    assert FAKE not in told_of(caught.value)
    assert keys._known == {}


def told_of(error: BaseException) -> str:
    """Return all that a traceback which shows each frame's values would show of our frames."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    frames = [one for one in shown.stack if one.filename == keys.__file__]
    assert frames
    return "".join([*shown.format_exception_only(), *(str(one.locals) for one in frames)])


def test_it_does_not_show_itself(monkeypatch: pytest.MonkeyPatch, keyring: Store) -> None:
    """Wherever it is from, a key is a str that reprs show masked, in containers and in memory too."""
    keyring[ONE] = fake("one")
    monkeypatch.setenv(TWO, fake("two"))
    found = [ask("One", [ONE]), find([TWO])]
    assert all(type(key) is Secret for key in found)
    assert FAKE not in repr([found, keys._known, locate([[ONE], [TWO]])])
    assert f"Bearer {found[0]}" == f"Bearer {fake('one')}"


# Colab


def test_a_secret_without_access_is_passed_over(
    colab: Store, keyring: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the notebook may not read a secret, the next name and the next place are looked at."""
    caplog.set_level(logging.INFO, keys.__name__)
    denied = sys.modules["google.colab.userdata"].NotebookAccessError
    colab[ONE] = denied(ONE)
    keyring[ONE] = fake("keyring")
    assert ask("One", [ONE]) == fake("keyring")
    assert f"not given access to Colab's secret {ONE}" in caplog.text
    colab[TWO] = fake("two")
    forget([ONE])
    assert ask("One", [ONE, TWO]) == fake("two")


def test_colab_without_a_page(
    colab: Store, keyring: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """What else Colab raises, such as a timeout, ends the looking there, and is logged by its type."""
    caplog.set_level(logging.INFO, keys.__name__)
    colab[ONE] = TimeoutError(FAKE)
    colab[TWO] = fake("never looked at")
    keyring[TWO] = fake()
    assert ask("One", [ONE, TWO]) == fake()
    assert "Colab's secrets cannot be read: TimeoutError" in caplog.text
    assert FAKE not in caplog.text


def test_colab_is_asked_on_the_main_thread_only(colab: Store) -> None:
    """Its channel to the page is the main thread's: another thread passes it over."""
    colab[ONE] = fake()
    assert on_a_thread(lambda: ask("One", [ONE])) is None
    assert ask("One", [ONE]) == fake()


def on_a_thread(function: Callable[[], object]) -> object:
    """Return what a function returns on a thread of its own."""
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(function()))
    thread.start()
    thread.join(10)
    return got[0]


# The keyring


def test_other_threads_have_the_keyring(keyring: Store) -> None:
    """The keyring is read for any thread, the engine's among them."""
    keyring[ONE] = fake("one")
    keyring[TWO] = fake("two")

    async def asked() -> Secret | None:
        return ask("Two", [TWO])

    assert on_a_thread(lambda: ask("One", [ONE])) == fake("one")
    assert engine.default().wait(asked, 10) == fake("two")


@pytest.mark.parametrize(
    "error", ["NoKeyringError", "KeyringLocked", "InitError", "KeyringError", "RuntimeError"]
)
def test_a_keyring_that_fails_is_passed_over(
    error: str, keyring: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A keyring that is locked, broken or not there is no error; it is logged, and its text is not."""
    caplog.set_level(logging.INFO, keys.__name__)
    errors = pytest.importorskip("keyring.errors")
    keyring[ONE] = getattr(errors, error, RuntimeError)(FAKE)
    assert ask("One", [ONE]) is None
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("INFO", f"The keyring cannot be read: {error}")
    ]


def test_no_keyring_for_real(monkeypatch: pytest.MonkeyPatch, keyring: Store) -> None:
    """Keyring's own backend for machines without any is passed over."""
    library = pytest.importorskip("keyring")
    fail = pytest.importorskip("keyring.backends.fail")
    library.set_keyring(fail.Keyring())
    assert ask("One", [ONE]) is None


def test_keyring_need_not_be_installed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the package it is passed over, which is not worth a word."""
    caplog.set_level(logging.INFO, keys.__name__)
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert ask("One", [ONE]) is None
    assert caplog.text == ""


def test_a_locked_keyring_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, keyring: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """One that waits for its owner is left after a while, not waited for again, and used once it answers."""
    caplog.set_level(logging.INFO, keys.__name__)
    monkeypatch.setattr(keys, "_KEYRING_S", 0.05)
    unlocked = threading.Event()
    times = []

    def wait() -> str:
        times.append(1)
        assert unlocked.wait(10)
        return fake()

    keyring[ONE] = wait
    assert ask("One", [ONE]) is None
    assert "did not answer within 0.05 s" in caplog.text
    assert ask("One", [ONE]) is None
    assert "still has not answered" in caplog.text
    assert len(times) == 1
    unlocked.set()
    assert keys._hung is not None
    keys._hung.join(10)
    monkeypatch.setattr(keys, "_KEYRING_S", 10)
    assert ask("One", [ONE]) == fake()


def test_the_limit_is_seconds() -> None:
    """Nobody waits longer than five seconds for a keyring."""
    assert keys._KEYRING_S == 5


# Threads


def test_many_threads(keyring: Store) -> None:
    """Threads that ask, find and forget at once see a whole key or none."""
    keyring[ONE] = fake()
    seen: set[object] = set()

    def work() -> None:
        for _ in range(30):
            seen.update({ask("One", [ONE]), find([ONE])})
            forget([ONE])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen - {None} == {fake()}


# Nobody to ask


def test_no_question_in_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pytest nobody is asked, although the session looks interactive."""
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    monkeypatch.setattr(keys.getpass, "getpass", lambda prompt: pytest.fail("asked"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert ask("One", [ONE]) is None


# At a terminal. In notebooks: tests/kernel/test_keys.py

HASHED = (
    "from nbproviders.catalog import keys; import hashlib; "
    f"key = keys.ask('Lab', ['{ONE}']); "
    "print('got', key and hashlib.sha256(key.encode()).hexdigest(), key.__class__.__name__)"
)


# Makes the terminal the program's own: only then is Ctrl-C an interrupt, and /dev/tty this one.
LOG_IN = "import os, sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A program at a pseudo terminal, and all that it showed."""

    def __init__(self, *command: str) -> None:
        import pty

        self.shown = ""
        self.end, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOG_IN, sys.executable, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def wait_for(self, text: str) -> None:
        """Read until a text was shown."""
        while text not in self.shown:
            assert select.select([self.end], [], [], 20)[0], self.shown
            self.shown += os.read(self.end, 4096).decode()

    def enter(self, line: str) -> None:
        os.write(self.end, f"{line}\n".encode())

    def close(self) -> str:
        """End the program and return all that was shown."""
        with suppress(OSError):  # Linux's way to tell that the program has gone
            while select.select([self.end], [], [], 20)[0] and (part := os.read(self.end, 4096)):
                self.shown += part.decode()
        self.process.kill()
        self.process.wait()
        os.close(self.end)
        return self.shown


needs_terminal = pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo terminals")


@pytest.fixture
def plain_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("PYTHON_BASIC_REPL", "1")


@needs_terminal
def test_a_person_at_a_terminal_is_asked(plain_prompt: None) -> None:
    """An interactive session asks, told where to store the key for good, and what is entered stays dark."""
    import hashlib

    shell = Terminal("-q", "-i")
    shell.enter(HASHED)
    shell.wait_for("Key (Enter: none): ")
    shell.enter(fake())
    shell.wait_for(f"got {hashlib.sha256(fake().encode()).hexdigest()} Secret")
    shell.enter("print([key], keys.find(['" + ONE + "']) is key)")
    shell.wait_for("['****'] True")
    shell.enter("exit()")
    shown = shell.close()
    assert FAKE not in shown
    assert "Lab needs an API key" in shown
    assert f"set {ONE} in the environment" in shown


@needs_terminal
def test_nobody_need_answer(plain_prompt: None) -> None:
    """Enter alone and Ctrl-D are no key, for this time; Ctrl-C is an interrupt."""
    shell = Terminal("-q", "-i")
    for answer, told in (("\n", "got None"), ("\x04", "got None"), ("\x03", "KeyboardInterrupt")):
        shell.enter(HASHED)
        shell.wait_for("Key (Enter: none): ")
        os.write(shell.end, answer.encode())
        shell.wait_for(told)
        shell.shown = ""
    shell.enter("exit()")
    shell.close()


@needs_terminal
def test_a_script_is_not_held_up(plain_prompt: None) -> None:
    """A program that is run, though at a terminal, asks nothing."""
    assert "got None NoneType" in Terminal("-c", HASHED).close()


# Where it is


def test_where_keys_are(monkeypatch: pytest.MonkeyPatch, keyring: Store) -> None:
    """Each service is told variable and place of its key, without looking beyond the first."""
    keyring[TWO] = fake("two")
    keyring["NBP_THREE"] = fake("three")
    ask("Three", ["NBP_THREE"])
    monkeypatch.setenv(ONE, fake())
    assert locate([[ONE], [TWO], ["NBP_THREE"], ["NBP_FOUR"], []]) == [
        Location(ONE, "environment"),
        Location(TWO, "keyring"),
        Location("NBP_THREE", "memory"),
        None,
        None,
    ]
    assert find([TWO]) is None


def test_where_shared_keys_are(monkeypatch: pytest.MonkeyPatch, keyring: Store) -> None:
    """Two services may look at one variable; each is told what it would use itself."""
    monkeypatch.setenv(ONE, fake())
    keyring[TWO] = fake("two")
    assert locate([[ONE, TWO], [TWO]]) == [Location(ONE, "environment"), Location(TWO, "keyring")]


def test_where_a_spoiled_key_is(monkeypatch: pytest.MonkeyPatch, keyring: Store) -> None:
    """A key that cannot be sent is told with what is wrong, not shown and not raised."""
    monkeypatch.setenv(ONE, FAKE + "\n" + FAKE)
    keyring[TWO] = FAKE + "é"
    told = locate([[ONE], [TWO]])
    assert told == [
        Location(ONE, "environment", "a line break"),
        Location(TWO, "keyring", "a character that is not ASCII"),
    ]
    assert FAKE not in repr(told)
