"""Prices: from the list and from nowhere else, and no surer than the list is."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import genai_prices
import pytest
from genai_prices import data_snapshot, types

from nbproviders.catalog import prices
from nbproviders.catalog.prices import PROVIDERS, price
from nbproviders.catalog.services import SERVICES
from nbproviders.core.completion import UNPRICED, Usage

USAGE = Usage(1000, 100)


def listed(name: str, match: types.MatchLogic | None = None, **values: Any) -> types.ModelInfo:
    found = {"input_mtok": "2", "output_mtok": "10", **values}
    own = {k: Decimal(v) if isinstance(v, str) else v for k, v in found.items() if v is not None}
    clause = match or types.ClauseEquals(equals=name)
    return types.ModelInfo(id=name, match=clause, prices=types.ModelPrice(**own))


NOTHING = {"input_mtok": None, "output_mtok": None}
TIERS = types.TieredPrices(base=Decimal(2), tiers=[types.Tier(start=1000, price=Decimal(20))])
MODELS = [
    listed("plain"),
    listed("cheaper-read", cache_read_mtok="1"),
    listed(
        "named",
        types.ClauseOr(
            or_=[
                types.ClauseEquals(equals="Named-Too"),
                types.ClauseStartsWith(starts_with="named-"),
            ]
        ),
    ),
    listed("tiered", input_mtok=TIERS),
    listed("talks-to-itself", output_reasoning_mtok="3"),
    listed("by-request", requests_kcount="5"),
    listed("embeds", output_mtok=None),
    listed("hears", **NOTHING, audio_hours="1"),
    listed("nobody-knows", **NOTHING),
    listed("gift:free", **NOTHING),
    listed("gift", types.ClauseStartsWith(starts_with="gift"), **NOTHING),
]


@pytest.fixture
def own_list() -> Iterator[None]:
    """A price list of this test's own."""
    lender = types.Provider(
        "elsewhere", "Elsewhere", "https://elsewhere", models=[listed("borrowed")]
    )
    home = types.Provider(
        "openai", "Home", "https://home", models=MODELS, fallback_model_providers=["elsewhere"]
    )
    data_snapshot.set_custom_snapshot(data_snapshot.DataSnapshot([home, lender], False))
    prices._listing.cache_clear()
    yield
    data_snapshot.set_custom_snapshot(None)
    prices._listing.cache_clear()


@pytest.mark.parametrize(
    ("model", "usage", "usd", "kind"),
    [
        ("plain", USAGE, 0.003, "known"),
        ("PLAIN", USAGE, 0.003, "known"),
        ("plain", Usage(1000, 100, 400), 0.003, "known"),
        ("cheaper-read", Usage(1000, 100, 400), 0.0026, "known"),
        ("named-too", USAGE, 0.003, "known"),
        ("named-2026-01-31", USAGE, 0.003, "estimated"),
        ("borrowed", USAGE, 0.003, "estimated"),
        ("tiered", Usage(1000, 100), 0.003, "known"),
        ("tiered", Usage(1001, 100), 0.02102, "known"),
        ("talks-to-itself", USAGE, 0.003, "estimated"),
        ("by-request", USAGE, 0.008, "estimated"),
        ("gift:free", USAGE, 0.0, "known"),
    ],
)
@pytest.mark.usefixtures("own_list")
def test_it_is_as_sure_as_the_list(model: str, usage: Usage, usd: float, kind: str) -> None:
    """A model that is named has a known price; a pattern, or what usage does not tell, only estimates."""
    found = price("openai", model, usage)
    assert found.usd == pytest.approx(usd)
    assert found.kind == kind


@pytest.mark.parametrize(
    ("model", "usage"),
    [
        ("unheard-of", USAGE),
        ("nobody-knows", USAGE),
        ("gift:free-for-now", USAGE),
        ("embeds", USAGE),
        ("hears", USAGE),
        ("plain", Usage()),
    ],
)
@pytest.mark.usefixtures("own_list")
def test_there_is_no_silent_zero(model: str, usage: Usage) -> None:
    """What has no price for its text, and an answer whose tokens nobody counted, is unpriced."""
    assert price("openai", model, usage) == UNPRICED


@pytest.mark.usefixtures("own_list")
def test_tokens_counted_here_make_an_estimate() -> None:
    """A known price times a guess is a guess."""
    assert price("openai", "plain", USAGE, counted=False).kind == "estimated"


@pytest.mark.parametrize(
    "name", ["gigachat", "yandexgpt", "ollama", "lmstudio", "vllm", "my-openai", "Azure OpenAI", ""]
)
def test_only_services_of_the_list_are_priced(name: str) -> None:
    """A server of one's own is not taken for the service whose protocol it speaks."""
    assert price(name, "gpt-4o", USAGE) == UNPRICED


@pytest.mark.parametrize("name", PROVIDERS)
def test_each_service_is_in_the_list(name: str) -> None:
    """By a name of ours, with models that it prices for certain."""
    assert name in SERVICES
    (found,) = (one for one in data_snapshot.get_snapshot().providers if one.id == PROVIDERS[name])
    names = {model.id for model in found.models}
    names |= {spelt for model in found.models for spelt in prices._names(model.match)}
    assert "known" in {price(name, spelt, USAGE).kind for spelt in names}


@pytest.mark.parametrize(
    ("name", "model", "kind"),
    [
        ("openai", "gpt-4o", "known"),
        ("openai", "gpt-4o-2024-08-06", "known"),
        ("anthropic", "claude-sonnet-4-5-20250929", "estimated"),
        ("openrouter", "deepseek/deepseek-chat", "known"),
        ("fireworks", "accounts/fireworks/models/deepseek-r1-0528", "known"),
        ("xai", "grok-3", "known"),
        ("perplexity", "sonar", "estimated"),
    ],
)
def test_models_as_services_name_them(name: str, model: str, kind: str) -> None:
    """The shipped list knows them by the names that a request carries."""
    found = price(name, model, USAGE)
    assert found.kind == kind
    assert found.usd is not None
    assert 0 < found.usd < 1


def test_what_breaks_is_logged_and_unpriced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither tokens that cannot be nor a defect of the package reach a user as an error."""
    caplog.set_level(logging.WARNING, "nbproviders")
    assert price("openai", "gpt-4o", Usage(10, 1, 50)) == UNPRICED
    assert "openai:gpt-4o cannot be priced: ValueError" in caplog.text

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(genai_prices, "calc_price", broken)
    assert price("openai", "gpt-4o-mini", USAGE) == UNPRICED
    assert "RuntimeError: planted" in caplog.text


def test_nothing_is_fetched() -> None:
    """Where any socket is an error there are prices all the same, and no thread stays to renew them."""
    code = (
        "import socket, threading\n"
        "def no(*_, **__): raise AssertionError('a socket')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = no\n"
        "from nbproviders.catalog.prices import price\n"
        "from nbproviders.core.completion import Usage\n"
        "print(price('openai', 'gpt-4o', Usage(1000, 100)).kind, threading.active_count())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["known", "1"]


def test_the_list_is_imported_on_use() -> None:
    """Asking for no price costs no import."""
    code = "import sys, nbproviders.catalog.prices; print('genai_prices' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
