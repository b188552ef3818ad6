"""Loading a model as a widget's job, and what is in memory as a small table."""

from __future__ import annotations

import asyncio
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from nbproviders import registry
from nbproviders.authoring.opening import ModelContext
from nbproviders.core.client import Client
from nbproviders.core.spec import ResourceKey
from nbproviders.residency import residency as residencies
from nbproviders.residency.entry import Loader, Resident, State
from nbproviders.residency.memory import size_text
from nbproviders.widgets.tasks import Tell

POLL_S = 0.05
CELL = "text-align:left;padding:2px 14px 2px 0;vertical-align:top;overflow-wrap:anywhere"
MUTED = "color:var(--jp-ui-font-color2,inherit)"


@dataclass(frozen=True, slots=True)
class Loading:
    """How far a load is, as a widget shows it; `fraction` is None while unknown."""

    text: str
    fraction: float | None


async def load(spec: str, tell: Tell) -> tuple[Client, ResourceKey]:
    """Load a model on the engine, telling how far it is; return a client and the model's key."""
    context = await asyncio.to_thread(registry.model, spec)  # may read files or import a plugin
    loader = context._opened.loader
    work = asyncio.ensure_future(_opened(context, loader))
    try:
        while not work.done():
            await asyncio.wait({work}, timeout=POLL_S)
            loading = _loading(spec, loader)
            if loading is not None:
                tell(loading)
        return await work, loader.key
    finally:
        work.cancel()


async def _opened(context: ModelContext, loader: Loader) -> Client:
    # Held while it is opened, so that the opening is instant and draws no bar of its own.
    async with residencies.default().using(loader):
        return await context.open()


def _loading(spec: str, loader: Loader) -> Loading | None:
    entry = residencies.default().find(loader.key)
    if entry is None or entry.model is not None:
        return None
    progress = entry.progress
    text = f"Loading {spec}: {progress.phase}"
    if entry.state is State.WAITING:
        text = f"Waiting for memory to load {spec}"
    if progress.total_bytes:
        text += f", {size_text(progress.done_bytes)} of {size_text(progress.total_bytes)}"
    return Loading(text, progress.fraction)


def row(one: Resident) -> tuple[str, str, str, str]:
    """Return the cells of a model's row: reference, state, size, open handles."""
    state = "ready" if one.state is State.HOT else str(one.state)
    if one.progress is not None:
        state += f" {math.floor(100 * one.progress)} %"
    size = ", ".join(f"{size_text(count)} on {device}" for device, count in one.bytes.items())
    return one.spec, state, size or "0 B", str(one.handles)


def residents_html(residents: Sequence[Resident]) -> str:
    """Return the small table of what is in memory."""
    if not residents:
        return f'<span style="{MUTED}">Nothing is in memory.</span>'
    heads = ("In memory", "State", "Size", "Open")
    head = "".join(f'<th scope="col" style="{CELL}">{text}</th>' for text in heads)
    body = "".join(
        "<tr>" + "".join(f'<td style="{CELL}">{html.escape(cell)}</td>' for cell in row(one))
        for one in residents
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
