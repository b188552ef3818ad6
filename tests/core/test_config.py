"""How a service is reached: typed, bounded, and its key never seen."""

from __future__ import annotations

import json
import logging
import traceback
from typing import Any

import pytest

from nbproviders.core.config import MASK, ProviderConfig, Secret
from nbproviders.core.spec import canonical
from nbproviders.errors import ConfigurationError

KEY = "a-key-that-nobody-may-see"


def config(**changes: Any) -> ProviderConfig:
    return ProviderConfig(**{"name": "mine", "api_key": KEY, **changes})


def test_the_key_can_be_used() -> None:
    """In a header, as a str, whoever wrote the f-string."""
    made = config()
    assert f"Bearer {made.api_key}" == f"Bearer {KEY}"
    assert isinstance(made.api_key, str)
    assert made.api_key == KEY


def test_the_key_is_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    """Not by repr, str, dumps, containers or a log of the configuration."""
    made = config()
    shown = [repr(made), str(made), str(made.model_dump()), made.model_dump_json()]
    shown += [repr([made.api_key]), repr({"k": made.api_key}), f"{made!r} {made.api_key!r}"]
    with caplog.at_level(logging.INFO):
        logging.getLogger("x").info("made %s of %r", made, made.api_key)
    assert KEY not in "".join([*shown, caplog.text])
    assert repr(Secret(KEY)) == f"'{MASK}'"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": "soon"}, "timeout='soon'"),
        ({"max_retries": 21}, "max_retries=21"),
        ({"name": ""}, "name=''"),
        ({"custom": 1}, "unknown field 'custom'"),
        ({"base_url": "ftp://x"}, "base_url: must be a URL"),
        ({"base_url": f"https://u:{KEY}@x.test"}, "base_url: must not hold a user"),
        ({"api_key": [KEY]}, "api_key: "),
        ({"token": KEY}, "unknown field 'token'"),
    ],
)
def test_what_is_wrong_is_told_without_the_key(changes: dict[str, Any], told: str) -> None:
    """At construction, and when assigned afterwards; the fields there are stand in the hint."""
    with pytest.raises(ConfigurationError) as made:
        config(**changes)
    assert told in str(made.value)
    [(name, value)] = changes.items()
    there = config()
    with pytest.raises(ConfigurationError) as assigned:
        setattr(there, name, value)
    for caught in (made, assigned):
        text = "".join(traceback.format_exception(caught.value))
        assert KEY not in text
        assert "base_url" in caught.value.hint
    assert there == config()


def test_fields_can_be_completed() -> None:
    """A provider sets its default address; a slash at its end does not matter."""
    made = config()
    made.base_url = "https://x.test/v1/"
    made.timeout = 5
    assert (made.base_url, made.timeout) == ("https://x.test/v1", 5.0)


def test_another_key_is_another_provider() -> None:
    """Canonical forms differ by key, and tell nothing of it."""
    one, other = canonical(config()), canonical(config(api_key="another-key"))
    assert one == canonical(config())
    assert one != other
    assert KEY not in one
    assert json.loads(one)["name"] == "mine"


def test_a_copy_for_a_model_keeps_the_key() -> None:
    """What opens a model of a service is the same configuration with its name."""
    copy = config().model_copy(update={"model": "large"})
    assert (copy.api_key, copy.model) == (KEY, "large")
