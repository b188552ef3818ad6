"""Promises of finding providers by name."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import pytest

import nbproviders as nbp
from nbproviders import registry
from nbproviders.abc import ModelHandle, ModelProvider
from nbproviders.authoring.wrapped import WrappedResource
from nbproviders.core import engine
from nbproviders.errors import ConfigurationError, ModelAccessError, ProviderError
from nbproviders.providers.echo import EchoProvider
from tests.scripted import ScriptedProvider
from tests.services.keys import FAKE


class Lab(ScriptedProvider):
    """A provider with a constructor that takes one keyword."""


class Duck:
    """Has setup and teardown only."""

    async def setup(self, resource_spec: str, **config: Any) -> ModelHandle:
        return ModelHandle(resource_spec, self, self)  # type: ignore[arg-type]

    async def teardown(self, resource_id: str) -> None: ...

    def generate(self, prompt: str) -> str:
        return f"quack {prompt}"


# Listing


def test_the_listing_is_a_read_only_mapping_that_prints_as_names() -> None:
    """It iterates, tests `in`, counts and prints like a list of names, and tells about each."""
    listing = nbp.list_available()
    assert list(listing) == sorted(listing)
    assert "echo" in listing
    assert len(listing) == len(list(listing))
    assert repr(listing) == repr(list(listing))
    assert listing["echo"].available
    assert listing["echo"].reason == ""
    assert listing["echo"].source == "nbproviders"
    with pytest.raises(TypeError):
        listing["x"] = 1  # type: ignore[index]


def test_a_missing_library_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider whose packages are not there is listed with what to install, and cannot be made."""
    monkeypatch.setattr(registry, "_NEEDS", {"echo": (("no_such_lib", "json"), "music")})
    info = nbp.list_available()["echo"]
    assert not info.available
    assert info.reason == 'no_such_lib not installed: pip install "nbproviders[music]"'
    with pytest.raises(ConfigurationError, match="not available: no_such_lib not installed"):
        nbp.create_provider("echo", tag="never made before")


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> dict[str, EntryPoint]:
    """Entry points of installed packages, as this test has them."""
    found = {
        "broken": EntryPoint("broken", "no_such_package.at_all:Thing", registry.GROUPS[1]),
        "duck": EntryPoint("duck", f"{__name__}:Duck", registry.GROUPS[2]),
        "lab": EntryPoint("lab", f"{__name__}:Lab", registry.GROUPS[0]),
    }
    monkeypatch.setattr(registry, "_points", {**registry._entry_points(), **found})
    monkeypatch.setattr(registry, "_made", {})
    monkeypatch.setattr(registry, "_broken", {})
    return found


def test_a_plugin_that_fails_to_import_breaks_nothing_else(plugins: dict[str, EntryPoint]) -> None:
    """It is listed with its reason; the others work."""
    listing = nbp.list_available()
    assert not listing["broken"].available
    assert "cannot be imported: ModuleNotFoundError" in listing["broken"].reason
    assert listing["duck"].available
    assert listing["echo"].available
    with pytest.raises(ConfigurationError, match="'broken' is not available: cannot be imported"):
        nbp.create_provider("broken")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import pytest; pytest.importorskip('not_there')",
            "Skipped: could not import 'not_there'",
        ),
        ("import pytest; pytest.skip('slow', allow_module_level=True)", "Skipped: slow"),
        ("import sys; sys.exit('need a licence')", "SystemExit: need a licence"),
    ],
)
def test_a_plugin_that_leaves_at_import_breaks_nothing_else(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What skips or exits at its import is listed with its reason, and the others work."""
    as_module(monkeypatch, tmp_path, code)
    with no_skip():
        listing = nbp.list_available()
    assert not listing["leaving"].available
    assert listing["leaving"].reason.startswith(f"cannot be imported: {words}")
    assert listing["echo"].available
    assert registry.fixture_of("leaving") == ""
    with pytest.raises(ConfigurationError, match=f"'leaving' is not available: .*{words}"):
        nbp.create_provider("leaving")


def test_ctrl_c_in_an_import_is_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who presses it while a plugin is imported is obeyed."""
    as_module(monkeypatch, tmp_path, "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        nbp.list_available()


@contextmanager
def no_skip() -> Iterator[None]:
    """Have a skip that gets out of our code fail the test, where it would skip it."""
    try:
        yield
    except pytest.skip.Exception as error:
        raise AssertionError(f"{error} was raised") from None


def as_module(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Have a module of this code bring the provider `leaving`."""
    (folder / "nbp_leaving.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    point = EntryPoint("leaving", "nbp_leaving:Provider", registry.GROUPS[0])
    monkeypatch.setattr(registry, "_points", {**registry._entry_points(), "leaving": point})
    monkeypatch.setattr(registry, "_broken", {})


def test_entry_points_of_all_groups(plugins: dict[str, EntryPoint]) -> None:
    """A class of ours and any object's class are made by entry point, under the name they go by."""
    duck, lab = nbp.create_provider("duck"), nbp.create_provider("LAB", tag=2)
    assert isinstance(duck, WrappedResource)
    assert isinstance(lab, Lab)
    assert (duck.name, lab.name, lab.tag) == ("duck", "lab", 2)


# Making


def test_names_ignore_case() -> None:
    """ECHO is echo."""
    assert isinstance(nbp.create_provider("ECHO"), EchoProvider)


@pytest.mark.parametrize("name", ["nobody", "", None, 3])
def test_an_unknown_name_lists_the_available(name: Any) -> None:
    """The error has the name and all there are."""
    with pytest.raises(ConfigurationError, match=f"Unknown provider: {name}.*echo"):
        nbp.create_provider(name)


def test_a_mistyped_name_is_guessed() -> None:
    """One that is nearly right asks whether that was meant, by itself or in a reference."""
    with pytest.raises(ConfigurationError, match="Did you mean 'transformers'"):
        nbp.create_provider("Transfomers")
    with pytest.raises(ConfigurationError, match="Did you mean 'transformers'"):
        nbp.model("transfomers:demo-m")
    for name in ("nobody", "mine"):
        with pytest.raises(ConfigurationError) as caught:
            nbp.create_provider(name)
        assert "Did you mean" not in str(caught.value)


def test_equal_configuration_shares() -> None:
    """Two calls alike give providers that share what they load; another configuration does not."""
    nbp.register_provider("lab", Lab)
    one, two, other = (nbp.create_provider("lab", tag=t) for t in (1, 1, 2))
    assert one.resolve("a") == two.resolve("a") != other.resolve("a")
    assert nbp.create_provider("lab", tag=object()) is not nbp.create_provider("lab", tag=object())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_configuration_that_json_cannot_write(value: float) -> None:
    """An odd number is configuration like any other; nothing foreign escapes."""
    nbp.register_provider("lab", Lab)
    assert isinstance(nbp.create_provider("lab", tag=value), Lab)


class Configured(Lab):
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config


class Keywords(Lab):
    def __init__(self, **options: Any) -> None:
        self.options_given = options


def factory(tag: int = 0) -> Lab:
    return Lab(tag)


@pytest.mark.parametrize(
    ("target", "given", "read"),
    [
        (Lab, {"tag": 5}, lambda p: p.tag == 5),
        (Lab, {}, lambda p: p.tag == ""),
        (Configured, {"a": 1, "b": 2}, lambda p: p.config == {"a": 1, "b": 2}),
        (Configured, {}, lambda p: p.config == {}),
        (Configured, {"config": {"a": 1}}, lambda p: p.config == {"a": 1}),
        (Keywords, {"a": 1}, lambda p: p.options_given == {"a": 1}),
        (factory, {"tag": 5}, lambda p: p.tag == 5),
    ],
)
def test_construction(target: Any, given: dict[str, Any], read: Any) -> None:
    """A signature that takes the keywords gets them; one `config` gets the dict."""
    nbp.register_provider("made", target)
    assert read(nbp.create_provider("made", **given))


def test_configuration_that_is_not_taken() -> None:
    """The error names the field and lists those there are."""
    nbp.register_provider("lab", Lab)
    with pytest.raises(ConfigurationError, match="'lab' does not take colour") as caught:
        nbp.create_provider("lab", colour="red")
    assert "tag" in caught.value.hint


def test_a_constructor_that_fails() -> None:
    """A foreign error becomes one of ours, scrubbed; an error of ours stays itself."""

    class Bad(Lab):
        def __init__(self, kind: str = "") -> None:
            if kind:
                raise ModelAccessError("gated", hint="ask")
            raise OSError("password=abcdef123456")

    nbp.register_provider("bad", Bad)
    with pytest.raises(ConfigurationError, match=r"'bad' could not be made: OSError") as caught:
        nbp.create_provider("bad")
    assert "abcdef" not in str(caught.value)
    with pytest.raises(ModelAccessError, match="gated"):
        nbp.create_provider("bad", kind="x")


class Typed(Lab):
    def __init__(
        self,
        level: str = "default",
        kernels: bool = True,
        scale: float = 1.0,
        names: list[str] | None = None,
        kind: Literal["a", "b"] = "a",
        place: Path = Path(),
        seed: int = None,  # type: ignore[assignment]  # noqa: RUF013  # as many write it
    ) -> None:
        self.given = (level, kernels, scale, names, kind, place, seed)


def typed(level: str, scale: float = 1.0) -> Lab:
    return Lab()


@pytest.mark.parametrize(
    ("target", "config", "words"),
    [
        (Typed, {"levle": "x"}, "does not take levle"),
        (Typed, {"level": 3}, "takes level as str, not int: 3"),
        (Typed, {"kernels": "yes"}, "takes kernels as bool, not str: 'yes'"),
        (Typed, {"scale": "1"}, "takes scale as float, not str: '1'"),
        (Typed, {"names": "one"}, "takes names as list[str] | None, not str: 'one'"),
        (Typed, {"kind": "c"}, "takes kind as Literal['a', 'b'], not str: 'c'"),
        (typed, {"scale": 2}, "needs level"),
        (typed, {"level": None}, "takes level as str, not NoneType"),
        (Duck, {"colour": "red"}, "does not take colour"),
        (EchoProvider, {"seed": 1}, "does not take seed"),
    ],
)
def test_a_field_that_cannot_be(
    target: Any, config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """From code or a file, an unknown or badly typed field is named, with the fields there are."""
    nbp.register_provider("lab", target)
    path = tmp_path / "provider.json"
    path.write_text(json.dumps({"provider": "lab", "provider_config": config}))
    for make in (lambda: nbp.create_provider("lab", **config), lambda: nbp.load_provider(path)):
        with pytest.raises(ConfigurationError) as caught:
            make()
        assert f"The provider 'lab' {words}" in str(caught.value)
        assert "Its fields: " in caught.value.hint


@pytest.mark.parametrize(
    "config",
    [
        {"level": "aggressive", "kernels": False, "scale": 2, "kind": "b"},
        {"names": ["one"], "seed": None},
        {"names": None, "place": "here"},
    ],
)
def test_fields_that_fit(config: dict[str, Any]) -> None:
    """Values of the annotated types are taken, a whole number for a float, None where it is the default."""
    nbp.register_provider("lab", Typed)
    assert isinstance(nbp.create_provider("lab", **config), Typed)


# Registering


def test_register_and_unregister() -> None:
    """A provider is known by its name until it is forgotten; again registered it is another."""
    nbp.register_provider("Mine", Lab)
    assert nbp.list_available()["mine"].source == "registered"
    first = nbp.create_provider("mine")
    nbp.register_provider("mine", Duck)
    second = nbp.create_provider("mine")
    assert isinstance(first, Lab)
    assert isinstance(second, WrappedResource)
    nbp.unregister_provider("MINE")
    assert "mine" not in nbp.list_available()
    with pytest.raises(ConfigurationError, match="No provider was registered as 'mine'"):
        nbp.unregister_provider("mine")


def test_a_registered_name_hides_an_installed_one() -> None:
    """What the user registers wins, and gives the name back."""
    nbp.register_provider("echo", Lab)
    assert isinstance(nbp.create_provider("echo"), Lab)
    nbp.unregister_provider("echo")
    assert isinstance(nbp.create_provider("echo"), EchoProvider)


@pytest.mark.parametrize("name", ["", " ", "a:b", "a b", "a?b", "a&b", "a=b", 3, None])
def test_names_that_cannot_stand_in_a_reference(name: Any) -> None:
    """They are refused with themselves."""
    with pytest.raises(ConfigurationError, match="cannot be a provider's name"):
        nbp.register_provider(name, Lab)


async def test_an_instance_is_a_provider_as_it_is() -> None:
    """It is handed out itself, takes no configuration, and its models work."""
    lab, duck = Lab("mine"), Duck()
    nbp.register_provider("lab", lab)
    nbp.register_provider("duck", duck)
    assert nbp.create_provider("lab") is lab
    assert nbp.create_provider("duck") is nbp.create_provider("duck")
    with pytest.raises(ConfigurationError, match="is an instance already.*tag"):
        nbp.create_provider("lab", tag=1)
    async with nbp.model("duck:a") as m:
        assert await m.generate("x") == "quack x"


def test_what_is_no_provider_is_refused() -> None:
    """An object without the methods is told what it lacks when it is asked for."""
    nbp.register_provider("bad", object())
    with pytest.raises(ConfigurationError, match="is no provider"):
        nbp.create_provider("bad")


@pytest.mark.parametrize(
    "target",
    [Lab, factory, Lab("x"), Duck, Duck()],
    ids=["class", "factory", "instance", "duck class", "duck"],
)
async def test_the_reference_a_client_shows_opens_it_again(target: Any) -> None:
    """Under whatever name a provider is registered, its models are called by that name."""
    nbp.register_provider("other-name", target)
    async with nbp.model("other-name:a") as m:
        assert m.spec == "other-name:a"
        async with nbp.model(m.spec) as n:
            assert n.raw is m.raw


# References and files


def test_find_splits_off_a_known_provider() -> None:
    """What stands before the first colon names the provider, the rest is its own."""
    provider, spec = registry.find("ECHO:a:b?seed=1")
    assert isinstance(provider, EchoProvider)
    assert (spec.model, spec.options) == ("a:b", (("seed", 1),))
    assert registry.find(spec)[1] is spec
    with pytest.raises(ConfigurationError, match="Unknown provider 'nobody'.*\n.*echo"):
        nbp.model("nobody:x")


async def test_options_given_as_keywords_win() -> None:
    """nbp.model takes more options, and they win over the reference's."""
    assert nbp.model("echo:a?seed=1", seed=2).spec == "echo:a?seed=2"


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".json", json.dumps({"provider": "lab", "provider_config": {"tag": 3}})),
        (".toml", 'provider = "lab"\n[provider_config]\ntag = 3\n'),
        (".yaml", "provider: lab\nprovider_config:\n  tag: 3\n"),
    ],
)
def test_a_provider_from_a_file(tmp_path: Path, suffix: str, text: str) -> None:
    """JSON, TOML and YAML say the same."""
    if suffix == ".yaml":
        pytest.importorskip("yaml")
    nbp.register_provider("lab", Lab)
    path = tmp_path / f"provider{suffix}"
    path.write_text(text)
    provider = nbp.load_provider(path)
    assert isinstance(provider, Lab)
    assert provider.tag == 3


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "{", "cannot be read"),
        ("a.json", "[]", "must hold provider"),
        ("a.json", '{"provider": 3}', "must hold provider"),
        ("a.json", '{"provider": "echo", "provider_config": 3}', "provider_config"),
        ("a.toml", "= 3", "cannot be read"),
        ("a.yaml", "a: [", "cannot be read"),
        ("none.json", None, "cannot be read"),
    ],
)
def test_a_provider_file_that_cannot_be_used(
    tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    """It is told with its path and what it must hold; nothing foreign escapes."""
    if name.endswith(".yaml"):
        pytest.importorskip("yaml")
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=said) as caught:
        nbp.load_provider(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", 'a: 1\napi_key: "KEY" oops\n', r"but found '<scalar>' \(at line 2, column "),
        ("a.yaml", "api_key: *KEY\n", r"undefined alias … \(at line 1, column 10\)"),
        ("a.yaml", "api_key: !KEY x\n", "a constructor for the tag …"),
        ("a.yaml", "api_key: !KEY!x y\n", "undefined tag handle …"),
        ("a.yaml", "api_key: !!int KEY\n", "invalid literal"),
        ("a.yaml", "api_key: !!bool KEY\n", "a value is not what its tag says"),
        ("a.yaml", "api_key: !!timestamp KEY\n", "a value is not what its tag says"),
        ("a.yaml", "api_key: KEY\a\n", "special characters are not allowed"),
        ("a.yaml", "[" * 9999, "nested too deeply"),
        ("a.json", "[" * 99999, "nested too deeply"),
        ("a.json", '{"api_key": "KEY" oops}', "Expecting ',' delimiter: line 1 column "),
        ("a.toml", 'api_key = "KEY" oops', r"after a statement \(at line 1, column "),
        ("a.toml", "[KEY]\n[KEY]", r"Cannot declare .* twice \(at line 2"),
        ("a.toml", "api_key = {KEY = 1, KEY = 2}", r"Duplicate .* key … \(at line 1"),
    ],
)
def test_a_provider_file_that_cannot_be_read_is_not_quoted(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    """What is wrong with a file is told with its place; what stands there may be a key."""
    if name.endswith(".yaml"):
        pytest.importorskip("yaml")
    (tmp_path / name).write_text(text.replace("KEY", FAKE))
    with pytest.raises(ConfigurationError, match=said) as caught:
        nbp.load_provider(tmp_path / name)
    (tmp_path / name).unlink()  # the only place where the key may stand
    assert FAKE not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_providers_are_model_providers() -> None:
    """create_provider always returns a ModelProvider."""
    nbp.register_provider("duck", Duck())
    for name in ("duck", "echo"):
        assert isinstance(nbp.create_provider(name), ModelProvider)


# Fixtures


events: list[str] = []


@pytest.fixture(scope="session")
def plain() -> Lab:
    return Lab()


@pytest.fixture
def yielding() -> Any:
    events.append("set up")
    provider = Lab()
    yield provider
    asyncio.run(provider.teardown_all())  # as guides have it: with a loop of its own
    events.append("torn down")


@pytest.fixture
async def awaited() -> Any:
    events.append("set up")
    yield Lab()
    events.append("torn down")


@pytest.fixture
def failing() -> Lab:
    raise LookupError("no such lab")


@pytest.fixture
def taking(request: pytest.FixtureRequest, plain: Lab) -> Lab:
    return plain


def as_entry_point(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have a fixture of this file be a provider."""
    point = EntryPoint(name, f"{__name__}:{name}", registry.GROUPS[1])
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setattr(registry, "_points", {**registry._entry_points(), name: point})


@pytest.mark.parametrize("name", ["plain", "yielding", "awaited"])
async def test_a_fixture_that_takes_none_is_a_provider(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is used outside pytest too; `teardown_all` runs what stands behind its yield, once."""
    as_entry_point(monkeypatch, name)
    events.clear()
    assert nbp.list_available()[name].available
    provider = nbp.create_provider(name)
    assert provider is nbp.create_provider(name)
    async with provider.model("a") as m:
        assert await m.generate("b") == "b"
    await provider.teardown_all()
    await provider.teardown_all()
    assert events == ([] if name == "plain" else ["set up", "torn down"])
    if name != "plain":
        again = nbp.create_provider(name)
        assert again is not provider
        await again.teardown_all()


def test_an_async_fixture_serves_the_blocking_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider whose making is awaited is made before a comparison goes onto the engine."""
    as_entry_point(monkeypatch, "awaited")
    frame = nbp.compare_sync(["awaited:a"], ["x"], progress=False).frame
    assert list(frame["text"]) == ["x"]
    asyncio.run(nbp.create_provider("awaited").teardown_all())


def test_a_fixture_that_takes_others_is_for_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is listed with the reason, and cannot be made outside."""
    as_entry_point(monkeypatch, "taking")
    info = nbp.list_available()["taking"]
    assert (info.available, info.reason) == (
        False,
        "only under pytest: it is a fixture that takes request, plain",
    )
    with pytest.raises(ConfigurationError, match="takes request, plain"):
        nbp.create_provider("taking")
    assert registry.fixture_of("taking") == "taking"
    assert registry.fixture_of("echo") == registry.fixture_of("nobody") == ""


def test_a_fixture_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its failure is one of our errors; so is configuration, which no fixture takes."""
    as_entry_point(monkeypatch, "failing")
    with pytest.raises(ConfigurationError, match="no such lab"):
        nbp.create_provider("failing")
    with pytest.raises(ConfigurationError, match="takes no configuration"):
        nbp.create_provider("failing", url="x")


@pytest.fixture
def skipping() -> Lab:
    pytest.skip("no key here")


@pytest.fixture
def exiting() -> Any:
    sys.exit("no licence")
    yield  # noqa: PT022  # what makes it a generator


@pytest.fixture
async def skipping_later() -> Any:
    pytest.skip("no key here")
    yield  # noqa: PT022


@pytest.fixture
async def exiting_later() -> Any:
    sys.exit("no licence")
    yield  # noqa: PT022


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("skipping", "failed: Skipped: no key here"),
        ("skipping_later", "failed: Skipped: no key here"),
        ("exiting", "failed: SystemExit: no licence"),
        ("exiting_later", "no licence"),
    ],
)
def test_a_fixture_that_leaves_is_told(
    name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fixture that skips or exits is one of our errors too, and ends neither process nor engine."""
    as_entry_point(monkeypatch, name)
    with no_skip(), pytest.raises(ConfigurationError, match=words):
        nbp.create_provider(name)
    with nbp.model("echo:a") as m:
        assert m.generate("b") == "b"


@pytest.fixture
def interrupted() -> Any:
    events.append("begun")
    if len(events) == 1:
        raise KeyboardInterrupt
    return Lab()


def test_ctrl_c_in_a_fixture_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who presses it while a provider is made is obeyed; another thread may then try again."""
    as_entry_point(monkeypatch, "interrupted")
    events.clear()
    with pytest.raises(KeyboardInterrupt):
        nbp.create_provider("interrupted")
    with ThreadPoolExecutor(1) as threads:
        assert isinstance(threads.submit(nbp.create_provider, "interrupted").result(20), Lab)


begun, go_on = threading.Event(), threading.Event()


@pytest.fixture
def held() -> Any:
    events.append("set up")
    begun.set()
    go_on.wait(20)
    yield Lab()
    events.append("torn down")


@pytest.fixture
async def held_later() -> Any:
    events.append("set up")
    begun.set()
    await asyncio.to_thread(go_on.wait, 20)
    yield Lab()
    events.append("torn down")


@pytest.mark.parametrize("name", ["held", "held_later"])
def test_a_fixture_is_opened_once_for_all_threads(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks while it is opened waits for it and gets the same; it is closed as often."""
    as_entry_point(monkeypatch, name)
    nbp.register_provider("lab", Lab)
    events.clear()
    begun.clear()
    go_on.clear()
    with ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(nbp.create_provider, name) for _ in range(3)]
        assert begun.wait(20)
        # Nobody else is kept waiting by code that is not ours.
        others = threading.Thread(target=nbp.create_provider, args=("lab",), daemon=True)
        others.start()
        others.join(20)
        free = not others.is_alive()
        go_on.set()
        first, second, third = (one.result(20) for one in asked)
    assert free
    assert first is second is third
    asyncio.run(first.teardown_all())
    assert events == ["set up", "torn down"]


def test_the_engine_does_not_wait_for_who_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the engine's thread a fixture that another one is opening is an error, not the end of both."""
    as_entry_point(monkeypatch, "held_later")
    begun.clear()
    go_on.clear()

    async def ask() -> Any:
        return nbp.create_provider("held_later")

    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(nbp.create_provider, "held_later")
        assert begun.wait(20)
        try:
            with pytest.raises(ConfigurationError, match="being opened by another thread"):
                engine.default().wait(ask, 20)
        finally:
            go_on.set()
        provider = asked.result(20)
    assert engine.default().wait(ask, 20) is provider
    asyncio.run(provider.teardown_all())


async def test_a_rest_that_fails_is_told_after_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands behind a yield may fail; the models are freed all the same."""
    provider = Lab()

    async def rest() -> None:
        raise LookupError("it was gone")

    provider.at_teardown_all(rest)
    async with provider.model("a"):
        pass
    with pytest.raises(ProviderError, match="it was gone"):
        await provider.teardown_all()
    assert not [one for one in nbp.residents() if one.spec == "lab:a"]
    await provider.teardown_all()
