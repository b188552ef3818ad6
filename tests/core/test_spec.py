"""Promises of model references and of the keys they load by."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from nbproviders.core.spec import (
    ModelSpec,
    ResourceKey,
    canonical,
    holds_secret,
    is_secret,
    secret_digest,
    split_options,
)
from nbproviders.errors import ConfigurationError
from tests.services.keys import FAKE

KNOWN = ("echo", "llama-cpp", "transformers")

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
).filter(lambda value: not holds_secret("", value))
option_names = st.from_regex(r"\A[a-z][a-z0-9_]{0,12}\Z").filter(lambda name: not is_secret(name))
model_names = st.text(min_size=1, max_size=30).filter(str.strip)


@given(model=model_names, options=st.dictionaries(option_names, values, max_size=4))
def test_text_and_back(model: str, options: dict[str, Any]) -> None:
    """Whatever the model and its options are called, the written reference means the same again."""
    spec = ModelSpec.of("echo", model, options)
    assert ModelSpec.parse(spec.text, KNOWN) == spec
    assert ModelSpec.parse(spec.text, KNOWN).model == model


@given(options=st.dictionaries(option_names, values, max_size=4))
@example(options={"a": " "})
@example(options={"a": "x "})
def test_options_keep_their_types(options: dict[str, Any]) -> None:
    """A number comes back as a number, and the text of a number as text."""
    spec = ModelSpec.of("echo", "m", options)
    again = dict(ModelSpec.parse(spec.text, KNOWN).options)
    finite = {k: v for k, v in options.items() if v not in (float("inf"), float("-inf"))}
    for name, value in finite.items():
        if isinstance(value, (bool, int, str)) or value is None:
            assert again[name] == value
            assert type(again[name]) is type(value)


@pytest.mark.parametrize(
    "model",
    [
        r"C:\models\m.gguf",
        "llama3:8b",
        "org/repo:Q4_K_M",
        "/data/my model.gguf",
        "./rel/path",
        "100%",
        "50%25",
        "why?",
        "a&b=c",
        "ünïcode-模型",
        "#tag",
    ],
)
def test_model_names_pass_as_they_are(model: str) -> None:
    """Paths, tags and odd characters of a model's name survive being written down."""
    assert ModelSpec.parse(ModelSpec.of("echo", model).text, KNOWN).model == model


@pytest.mark.parametrize("model", [" lead", "trail ", "line\n"])
def test_blanks_at_the_ends_of_a_name_are_not_lost(model: str) -> None:
    """A reference is equal to what is read back from its own text, blanks included."""
    spec = ModelSpec.of("echo", model)
    assert ModelSpec.parse(spec.text, KNOWN) == spec


def test_reference_is_normalised() -> None:
    """Case of the provider, order and spelling of options make no difference."""
    one = ModelSpec.parse("ECHO:m?b=TRUE&a=0.50", KNOWN)
    two = ModelSpec.parse("echo:m?a=0.5&b=true", KNOWN)
    assert one == two
    assert hash(one) == hash(two)
    assert str(one) == "echo:m?a=0.5&b=true"
    assert one != "echo:m?a=0.5&b=true"


def test_model_keeps_its_case() -> None:
    """Only the provider is lowered; models are spelled as their provider wants them."""
    assert ModelSpec.parse("Echo:Org/Model", KNOWN).text == "echo:Org/Model"


def test_nested_options_are_json() -> None:
    """Lists and tables in options are written as JSON, in one order."""
    spec = ModelSpec.of("echo", "m", {"stop": ["a&b", "c"], "map": {"b": 1, "a": None}})
    assert spec.text == 'echo:m?map={"a":null,"b":1}&stop=["a%26b","c"]'
    assert dict(ModelSpec.parse(spec.text, KNOWN).options) == {
        "stop": ["a&b", "c"],
        "map": {"a": None, "b": 1},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("demo-m", "No provider is named"),
        ("nobody:demo-m", "Unknown provider 'nobody'"),
        ("echo:", "needs a name"),
        ("echo:  ", "needs a name"),
        ("echo:m?seed", "'seed'.*not of the form name=value"),
        ("echo:m?=1", "not of the form"),
        ("echo:m?a=1&a=2", "given twice"),
        (42, "not int"),
        (None, "not NoneType"),
    ],
)
def test_bad_references_are_told_with_their_value(text: Any, said: str) -> None:
    """What cannot be read is refused, showing the part and how to write it."""
    with pytest.raises(ConfigurationError, match=said) as caught:
        ModelSpec.parse(text, KNOWN)
    assert caught.value.hint


def test_a_deeply_nested_option_is_text() -> None:
    """No reference, however odd, ends in anything but one of our errors or a meaning."""
    assert split_options("m?x=" + "[" * 100_000)[1]["x"].startswith("[[")


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": "x"},
        {"apikey": "x"},
        {"hf_token": "x"},
        {"password": "x"},
        {"client_secret": "x"},
        {"harmless": "sk-abcdefgh12345678"},
        {"harmless": "hf_abcdefgh12345678"},
    ],
)
def test_secrets_are_refused_in_references(options: dict[str, str]) -> None:
    """A key in a reference would be shown; the refusal does not show it either."""
    with pytest.raises(ConfigurationError, match="is a secret") as caught:
        ModelSpec.of("echo", "m", options)
    assert "abcdefgh" not in str(caught.value)
    assert "create_provider" in caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"api_key": "abcdefgh12345678"}},
        {"headers": {"x": "sk-abcdefgh12345678"}},
        {"keys": ["sk-abcdefgh12345678"]},
    ],
)
def test_secrets_are_refused_inside_nested_options(options: dict[str, Any]) -> None:
    """A key deeper inside an option would be shown just as well."""
    with pytest.raises(ConfigurationError, match="secret"):
        ModelSpec.of("echo", "m", options)


@pytest.mark.parametrize("name", ["tokens", "max_tokens", "tokenizer", "secretary", "n_ctx"])
def test_harmless_names_are_no_secrets(name: str) -> None:
    """Names that only resemble a secret's are ordinary options."""
    assert not is_secret(name, 1)


def test_digest_of_a_secret_hides_it() -> None:
    """Equal secrets have equal digests, others other ones, and the secret is not in it."""
    assert secret_digest("hunter22") == secret_digest("hunter22") != secret_digest("hunter23")
    assert "hunter" not in secret_digest("hunter22")


def test_specs_pickle() -> None:
    """A reference in a saved table is the same one later."""
    spec = ModelSpec.of("echo", "m", {"a": [1, {"b": 2}]})
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_key_ignores_values_and_shows_none() -> None:
    """The options a loader gets are not compared and not shown: they may hold secrets."""
    one = ResourceKey("o", "m", "{}", values={"api_key": "hunter22"})
    two = ResourceKey("o", "m", "{}", values={})
    assert one == two
    assert hash(one) == hash(two)
    assert "hunter22" not in repr(one)
    assert one.digest == two.digest


def test_digest_tells_fields_apart() -> None:
    """What differs in any field has another short name."""
    keys = [
        ResourceKey("o", "m", "{}"),
        ResourceKey("p", "m", "{}"),
        ResourceKey("o", "n", "{}"),
        ResourceKey("o", "m", '{"a":1}'),
        ResourceKey("o", "m", "{}", "r"),
    ]
    assert len({key.digest for key in keys}) == 5
    assert len(keys[0].digest) == 16


def test_canonical_is_the_same_however_written() -> None:
    """Order of names, tuples or lists, paths or text of them make no difference."""
    one = canonical({"b": (1, 2), "a": Path("/x"), "c": {3, 1, 2}})
    two = canonical({"a": "/x", "c": {2, 3, 1}, "b": [1, 2]})
    assert one == two


def test_canonical_hides_secrets() -> None:
    """A secret enters a key as its digest, at any depth."""
    text = canonical({"api_key": "hunter22", "deep": [{"password": "hunter22"}, "sk-hunter2222"]})
    assert "hunter" not in text
    assert canonical({"api_key": "a"}) != canonical({"api_key": "b"})


def test_canonical_of_objects_that_tell_their_values() -> None:
    """A config object counts by its class and what it says it is."""

    class Config:
        def to_dict(self) -> dict[str, Any]:
            return {"bits": 4, "token": "hunter22"}

    assert '"":"Config"' in canonical(Config())
    assert "hunter" not in canonical(Config())


@pytest.mark.parametrize("value", [io.StringIO(), lambda: 0, object(), {"a": [object()]}, int])
def test_no_canonical_form(value: object) -> None:
    """What cannot be compared by value is refused with a TypeError."""
    with pytest.raises(TypeError, match="no canonical form"):
        canonical(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_without_canonical_form(value: float) -> None:
    """A number that JSON cannot write is refused like anything else without canonical form."""
    with pytest.raises(TypeError):
        canonical({"x": value})


@pytest.mark.parametrize(
    "text",
    ["opnai:gpt-x?api_key={}", "openai:gpt-x?api_key={}&bad", "openai:gpt-x?api_key={}&api_key={}"],
)
def test_a_key_in_a_wrong_reference_is_not_shown(text: str) -> None:
    """Whatever else is wrong with it, no error repeats what may be a secret."""
    with pytest.raises(ConfigurationError) as caught:
        ModelSpec.parse(text.format(FAKE, FAKE), known=("openai",))
    assert FAKE not in str(caught.value)
