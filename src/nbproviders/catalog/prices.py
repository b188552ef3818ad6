"""What a request to a hosted service costs, by the price list that the package genai-prices ships.

The list is data inside that package: nothing is fetched, and it is as old as the installed version. Our own
part is only who is who, and how sure a match is; no price stands here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nbproviders.core.completion import UNPRICED, Cost, Usage
from nbproviders.errors import foreign

if TYPE_CHECKING:
    from genai_prices.types import PriceCalculation

logger = logging.getLogger(__name__)

# Our providers by the list's names for them. Only these are looked up: the list itself takes any name with
# "openai" in it for OpenAI, and would price somebody's own server that speaks the same protocol.
PROVIDERS = {
    "anthropic": "anthropic",
    "cerebras": "cerebras",
    "deepseek": "deepseek",
    "fireworks": "fireworks",
    "gemini": "google",
    "groq": "groq",
    "mistral": "mistral",
    "openai": "openai",
    "openrouter": "openrouter",
    "perplexity": "perplexity",
    "together": "together",
    "xai": "x-ai",
}

# Per what text costs; a model that has a price for other things only is no text model.
_TEXT = ("input_mtok", "output_mtok")
# Charged beside the text of any request, by what no usage here tells: how much of the text was reasoning or
# citations, how many searches were made, and how large they were.
_UNTOLD = frozenset({"output_reasoning_mtok", "output_citation_mtok", "requests_kcount"})


@dataclass(frozen=True, slots=True)
class _Listing:
    """How the list knows a model."""

    provider: str
    exact: bool


def price(provider: str, model: str, usage: Usage, *, counted: bool = True) -> Cost:
    """Return what a request of so many tokens costs now, at the service's standard price.

    Parameters
    ----------
    provider
        Our name of the service. Not of a server of one's own that speaks its protocol.
    model
        As the service names it.
    usage
        Tokens; those that were cached are priced as such where the list tells a price.
    counted
        Whether the service counted them; if not, the cost is estimated.

    Returns
    -------
    Cost
        ``known``, if the list names this very model; ``estimated``, if it only has a pattern that fits, as
        for another version, or charges also for what no usage tells; else ``unpriced``.
    """
    # A service that tells no usage has not worked for nothing.
    if provider not in PROVIDERS or not usage.total_tokens:
        return UNPRICED
    try:
        listing = _listing(provider, model)
        return UNPRICED if listing is None else _cost(listing, model, usage, counted=counted)
    except Exception as error:  # the border to the package: a price is never worth an answer
        logger.warning("%s:%s cannot be priced: %s", provider, model, foreign(error))
        return UNPRICED


@lru_cache(maxsize=1024)
def _listing(provider: str, model: str) -> _Listing | None:
    """Return how the list knows a model, None if it does not: searching takes it up to a millisecond."""
    listed = PROVIDERS[provider]
    try:
        found = _calculated(listed, model, Usage(1, 1))
    except LookupError:
        return None
    own = found.provider.id == listed and any(one is found.model for one in found.provider.models)
    names = {found.model.id.lower(), *_names(found.model.match)}
    return _Listing(listed, own and model.lower() in names)


def _cost(listing: _Listing, model: str, usage: Usage, *, counted: bool) -> Cost:
    found = _calculated(listing.provider, model, usage)
    prices = {name for name, value in vars(found.model_price).items() if value is not None}
    if not prices and listing.exact and model.endswith(":free"):
        return Cost(0.0, "known")
    # An entry without a price says nothing: the list has them for what it could not find out.
    if not prices.issuperset(_TEXT):
        return UNPRICED
    sure = listing.exact and counted and not prices & _UNTOLD
    return Cost(float(found.total_price), "known" if sure else "estimated")


def _calculated(listed: str, model: str, usage: Usage) -> PriceCalculation:
    import genai_prices

    tokens = genai_prices.Usage(
        input_tokens=usage.prompt_tokens,
        cache_read_tokens=usage.cached_tokens,
        output_tokens=usage.completion_tokens,
    )
    return genai_prices.calc_price(tokens, model, provider_id=listed)


def _names(clause: Any) -> set[str]:
    """Return the names that a clause of the list spells out; those in ``or`` are each enough."""
    if hasattr(clause, "or_"):
        return {name for part in clause.or_ for name in _names(part)}
    return {clause.equals.lower()} if hasattr(clause, "equals") else set()
