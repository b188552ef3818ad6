"""Models as widgets show them: what may be chosen, how a load goes, what is in memory."""

from __future__ import annotations

import asyncio
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from nbproviders import registry, session
from nbproviders.authoring.opening import ModelContext
from nbproviders.catalog import aliases
from nbproviders.core.client import Client
from nbproviders.core.spec import ModelSpec, ResourceKey, is_secret
from nbproviders.errors import scrub
from nbproviders.render.memory import memory_text, state_text
from nbproviders.render.tables import NO_FORMULAS, visible
from nbproviders.residency import residency as residencies
from nbproviders.residency.entry import Entry, Loader, State
from nbproviders.residency.memory import size_text
from nbproviders.residency.residents import Resident
from nbproviders.widgets.tasks import Tell

PREFERRED = (("transformers", "demo-m"), ("llama-cpp", "demo-m"), ("echo", "echo"))
POLL_S = 0.05
CELL = "text-align:left;padding:2px 16px 2px 0;vertical-align:top;line-height:1.4"
_LONG, _SHORT = "overflow-wrap:anywhere", "white-space:nowrap"
CODE = "font-family:var(--jp-code-font-family,monospace);font-size:var(--jp-code-font-size,13px)"
MUTED = "color:var(--jp-ui-font-color2,inherit)"


def first() -> str:
    """Return what to choose at first: the shipped model by what can run it, or echo."""
    listed = registry.list_available()
    for provider, model in PREFERRED:
        if provider in listed and listed[provider].available:
            return f"{provider}:{model}"
    return ""


def suggestions(provider: str) -> list[str]:
    """Return models of a provider that have a name here, the most likely first."""
    named = [name for name, targets in aliases.known().items() if provider in targets]
    other = [
        name
        for name, targets in aliases.known().items()
        if aliases.ANY in targets and provider not in targets
    ]
    held = [one.spec for one in session.residents()]
    resident = [
        ModelSpec.parse(spec, registry.names()).model
        for spec in held
        if spec.startswith(f"{provider}:")
    ]
    first = [model for name, model in PREFERRED if name == provider]
    return list(dict.fromkeys([*first, *resident, *reversed(named), *other]))


def why_not(provider: str) -> str:
    """Return why a provider cannot run here and what to do; empty if it can."""
    info = registry.list_available().get(provider)
    if info is None:
        return f'not installed: pip install "nbproviders[{provider}]"'
    return "" if info.available else info.reason


@dataclass(frozen=True, slots=True)
class Loading:
    """How far a load is, as a widget shows it; `fraction` is None while unknown."""

    text: str
    fraction: float | None


async def load(spec: str, tell: Tell) -> tuple[Client, ResourceKey]:
    """Load a model on the engine, telling how far it is; return a client and the model's key."""
    context = await asyncio.to_thread(registry.model, spec)  # may read files or import a plugin
    loader = context.loader
    work = asyncio.ensure_future(_opened(context, loader))
    try:
        while not work.done():
            await asyncio.wait({work}, timeout=POLL_S)
            entry = residencies.default().find(loader.key)
            if entry is not None and entry.model is None:
                tell(describe(spec, entry))
        return await work, loader.key
    finally:
        work.cancel()


async def _opened(context: ModelContext, loader: Loader) -> Client:
    # Held while it is opened, so that the opening is instant and draws no bar of its own.
    async with residencies.default().using(loader):
        return await context.open()


def describe(spec: str, entry: Entry) -> Loading:
    """Return how far a model is that is not in memory yet."""
    progress = entry.progress
    text = f"Loading {spec}: {progress.phase}"
    if entry.state is State.WAITING:
        text = f"Waiting for memory to load {spec}"
    elif progress.total_bytes:
        text += f", {size_text(progress.done_bytes)} of {size_text(progress.total_bytes)}"
    return Loading(text, progress.fraction)


def row(one: Resident) -> tuple[str, str, str, str]:
    """Return the cells of a model's row: reference, state, memory, open handles."""
    return one.spec, state_text(one), memory_text(one), str(one.handles)


def residents_html(residents: Sequence[Resident]) -> str:
    """Return the small table of what is in memory."""
    if not residents:
        return f'<span style="{MUTED}">Nothing is in memory.</span>'
    heads = ("In memory", "State", "Size", "Open handles")
    head = "".join(f'<th scope="col" style="{CELL};{_SHORT}">{text}</th>' for text in heads)
    body = "".join(f"<tr>{_cells(one)}</tr>" for one in residents)
    return (
        f'<table class="{NO_FORMULAS}" style="border-collapse:collapse"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _cells(one: Resident) -> str:
    spec, *others = (html.escape(visible(text)) for text in row(one))
    first = f'<td style="{CELL};{_LONG}">{spec}</td>'
    return first + "".join(f'<td style="{CELL};{_SHORT}">{text}</td>' for text in others)


def freed(spec: str, count: int) -> str:
    """Return what to say of a model that was unloaded."""
    return f"Unloaded {spec}: {size_text(count)} came back." if count else f"Unloaded {spec}."


def code(spec: str) -> str:
    """Return the code that loads and unloads a model."""
    if not spec:
        return ""
    written = quoted(spec)
    return f"m = await nbp.load({written})\nnbp.unload({written})"


def quoted(spec: str) -> str:
    """Return a reference as Python writes it, what cannot be seen in escapes: code is what it looks."""
    return ascii(spec) if visible(spec) != spec else json.dumps(spec, ensure_ascii=False)


def holds_secret(text: str) -> bool:
    """Whether a key or password is in what was typed."""
    for part in re.split(r"[?&\s]", text):
        name, equals, value = part.partition("=")
        if is_secret(name, value) if equals else is_secret("", part):
            return True
    return scrub(text) != text


# A picker without a kernel or a front end


def facts(spec: str, said: str) -> list[tuple[str, str]]:
    """Return heads and lines that tell what is chosen, how that went, who is there, and what is in memory."""
    providers = [
        name if info.available else f"{name} (not available: {info.reason})"
        for name, info in registry.list_available().items()
    ]
    found = [("Model", spec or "none chosen"), ("Status", said)]
    found += [("Providers" if i == 0 else "", line) for i, line in enumerate(providers)]
    memory = [f"{name}: {size}, {state}" for name, state, size, _ in map(row, session.residents())]
    found += [("In memory" if i == 0 else "", line) for i, line in enumerate(memory or ["nothing"])]
    return [(head, visible(text)) for head, text in found]


def as_text(spec: str, said: str) -> str:
    """Return a picker as plain text."""
    lines = [f"{head:<10} {text}" for head, text in facts(spec, said)]
    return "\n".join(["ModelPicker", *lines, code(spec)])


def as_html(spec: str, said: str) -> str:
    """Return a picker as a table that needs no script."""
    rows = "".join(
        f'<tr><th scope="row" style="{CELL}">{html.escape(head)}</th>'
        f'<td style="{CELL}">{html.escape(text)}</td></tr>'
        for head, text in facts(spec, said)
    )
    written = f'<pre style="{CODE};white-space:pre-wrap">{html.escape(code(spec))}</pre>'
    return f"<table><tbody>{rows}</tbody></table>{written}"
