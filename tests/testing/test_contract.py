"""Promises of the suite itself: what is collected, skipped, told, and where it can be called."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from unittest import SkipTest

import pytest

from nbproviders.errors import ConfigurationError, ProviderError
from nbproviders.testing import ProviderContract, check_provider
from nbproviders.testing.clause import CLAUSES, ask, promise
from nbproviders.testing.subject import Subject
from tests.services.keys import FAKE
from tests.testing.authors import PROMPT, Duck, Resident, Resource, Service, Weights

DOCS = Path(__file__).parents[2] / "docs" / "testing.md"
MODULE = """
from nbproviders.testing import ProviderContract
from tests.testing.authors import Resident

class Nameless(Resident):
    name = "not a name"

class TestIt(ProviderContract):
    model, missing = "tiny", None
    test_lazy = None

    def provider(self):
        return Nameless()
"""


def row_of(clause, make=Resident, **fields):
    return ask(clause, Subject(make, "tiny", prompt=PROMPT, **fields))


def test_one_test_a_clause_without_any_plugin(tmp_path):
    """pytest alone collects a test for each clause but those taken out, and tells failures and skips."""
    (tmp_path / "test_it.py").write_text(MODULE)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:anyio", "-rs", tmp_path,
         "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", tmp_path],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = ran.stdout
    assert f"collected {len(CLAUSES) - 1} items" in told, told + ran.stderr
    assert "1 failed" in told
    assert "What came: Its name is 'not a name'." in told
    assert "missing names no model that cannot be set up." in told


def test_importing_it_brings_no_pytest():
    """A notebook that checks a provider need not have pytest, nor anything heavy."""
    code = "import sys, nbproviders.testing as t; print({'pytest', 'torch', 'pandas'} & {*sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_every_clause_has_its_test_and_one_sentence():
    """A clause's docstring is its promise: one sentence, which its test carries."""
    for name in CLAUSES:
        assert re.fullmatch(r"[A-Z`][^\n]*\.", promise(name)), name
        assert getattr(ProviderContract, f"test_{name}").__doc__ == promise(name)


def test_the_page_lists_every_clause():
    """The table in the documentation has each clause with its promise, in their order."""
    text = DOCS.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", text, re.MULTILINE)
    assert rows == [(name, promise(name)) for name in CLAUSES]
    attributes = re.findall(r"^\| `(\w+)` \| [^|]* ?\| [^|]+ \|$", text, re.MULTILINE)
    assert attributes == list(ProviderContract.__annotations__)


def test_a_contract_has_to_make_its_provider():
    """One that makes nothing is told so by every clause."""

    class Empty(ProviderContract):
        model = "tiny"

    with pytest.raises(AssertionError, match="Empty does not say how its provider is made"):
        Empty().test_construction()


def test_a_skip_of_the_authors_own_is_a_skip():
    """What makes the provider may skip, by pytest's means too."""

    def absent():
        pytest.skip("not installed here")

    with pytest.raises(pytest.skip.Exception, match="not installed here"):
        row_of("construction", absent)

    def missing():
        raise SkipTest("nor here")

    assert row_of("construction", missing).came == "nor here"


async def test_it_is_called_where_a_loop_runs():
    """In a notebook's cell, where a loop runs, it returns the report all the same."""
    report = check_provider(Resident, "tiny", prompt=PROMPT, timeout_s=20.0)
    assert report.ok, report
    assert [row.clause for row in report.rows] == list(CLAUSES)


@pytest.mark.parametrize("thing", [Resident(), Duck(), Resource()], ids=lambda t: type(t).__name__)
def test_an_instance_is_enough(thing):
    """One provider, or an object that behaves like one, is checked for all but being built alike."""
    report = check_provider(thing, "tiny", prompt=PROMPT, tells_usage=False, timeout_s=20.0)
    assert report.ok, report
    skipped = {row.clause: row.came for row in report.rows if row.outcome == "skipped"}
    assert "give what makes it" in skipped["built_alike"]


def test_what_never_ends_is_told_in_time():
    """A provider that waits without end costs a clause its time and no more."""

    class Waiting(Resident):
        async def load(self, key, progress):
            await asyncio.Event().wait()

    class Blocking(Resource):
        async def setup(self, resource_spec, **config):
            if not config:
                threading.Event().wait(0.5)
            return await super().setup(resource_spec, **config)

    began_s = time.monotonic()
    row = row_of("sharing", Waiting, timeout_s=0.3)
    assert (row.outcome, row.came) == ("failed", "It did not end within 0.3 s.")
    assert row_of("sharing", Blocking, timeout_s=0.2).outcome == "failed"
    assert time.monotonic() - began_s < 10


def test_a_foreign_failure_tells_where():
    """An exception of the author's own is told with its kind, its text and its place, without secrets."""

    class Failing(Resident):
        def resolve(self, spec, **config):
            raise LookupError(f"no {FAKE}")

    row = row_of("construction", Failing, secrets=(FAKE,))
    assert re.search(r"LookupError: no \*\*\*\* \(line \d+ of .*test_contract\.py\)", row.came)


@pytest.mark.parametrize(
    ("secrets", "told"),
    [
        (FAKE, "not str"),
        (None, "not NoneType"),
        (3, "not int"),
        (("",), "an entry that is empty or no text"),
        ((FAKE, " "), "an entry that is empty or no text"),
        ([None], "an entry that is empty or no text"),
    ],
    ids=["str", "none", "number", "empty", "blank", "no-text"],
)
def test_secrets_that_cannot_be_looked_for(secrets, told):
    """What would be found letter by letter, everywhere or never is refused, and not shown."""
    with pytest.raises(ConfigurationError, match=told) as caught:
        check_provider(Resident, "tiny", prompt=PROMPT, secrets=secrets)
    assert FAKE not in str(caught.value)


def test_secrets_are_read_once():
    """What can be read once only is looked for in every clause."""
    subject = Subject(Telling, "tiny", prompt=PROMPT, missing=None, secrets=iter([FAKE]))
    assert [ask("secrets", subject).outcome for _ in "ab"] == ["failed", "failed"]


class Telling(Resident):
    def __repr__(self):
        return f"<Telling {FAKE}>"


def a_factory() -> Duck:
    return Duck()


@pytest.mark.parametrize("thing", [Resident, Service, Duck, a_factory, partial(Weights)])
def test_what_can_be_registered_can_be_proved(thing):
    """Where a class or a factory is returned, it is called, as it is where one is registered."""
    tells = thing is Resident
    for clause in ("construction", "sharing", "built_alike"):
        row = row_of(clause, lambda: thing, tells_usage=tells)
        assert row.outcome == "ok" or "cannot be compared" in row.came, row


def test_the_models_of_others_stay():
    """Only what the checked provider loaded is unloaded."""
    with Weights().model("small") as m:
        held = m.raw
        row_of("sharing")
        assert m.raw is held


def test_a_report_shows_itself():
    """It counts, lists what failed and why, and names what to do; as text and as a table without script."""

    class Hostile(Resident):
        name = "<script>alert(1)</script>"

    report = check_provider(Hostile, "tiny", prompt=PROMPT, missing=None, timeout_s=20.0)
    assert not report.ok
    told = repr(report)
    assert "✗ failed" in told
    assert "construction: It is complete" in told
    assert "What to do: Give the class a name of small letters" in told
    assert "missing names no model" in told
    shown = report._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert shown.count("<tr>") == len(CLAUSES) + 1
    with pytest.raises(ProviderError, match=r"(?s)construction.*What to do: Give the class"):
        report.raise_for_failures()


def test_a_good_report_raises_nothing():
    """With no failure there is nothing to raise."""
    check_provider(Resident, "tiny", prompt=PROMPT, timeout_s=20.0).raise_for_failures()
