"""`ModelPicker`: choose a provider and a model, load and unload it, see what is in memory."""

from __future__ import annotations

import asyncio
import html
from contextlib import suppress
from functools import partial
from typing import Any

import ipywidgets as widgets
import traitlets

from nbproviders import registry, session
from nbproviders.core.client import Client
from nbproviders.core.spec import ModelSpec, ResourceKey, split_options
from nbproviders.errors import ConfigurationError, ProviderError
from nbproviders.widgets import closing, models
from nbproviders.widgets.models import MUTED, Loading
from nbproviders.widgets.on_disk import OnDisk
from nbproviders.widgets.status import Status
from nbproviders.widgets.tasks import Home, Job, State, clicks_note, told

_LABEL = "80px"
_LATE_S = 0.05
_WIDE = "640px"


class ModelPicker(widgets.VBox):  # type: ignore[misc]  # ipywidgets is not typed
    """Choose a model and load it by a click; use it in the next cells as ``picker.model``.

    Parameters
    ----------
    spec
        What is chosen at first; by default the shipped ``transformers:demo-m``, where transformers is
        not installed ``llama-cpp:demo-m``, and where neither is ``echo:echo``.

    Attributes
    ----------
    spec
        What is chosen; empty while the fields make no valid reference. Setting it fills the fields.
    model
        The open client, or None. Loading another model closes it; so does `close`.
    error
        Why the last action failed or the fields are not valid; empty if all is well.

    Raises
    ------
    ConfigurationError
        For a `spec` that is no reference, here or set later.
    """

    spec = traitlets.Unicode()
    model = traitlets.Instance(Client, allow_none=True)
    error = traitlets.Unicode()

    def __init__(self, spec: str = "", **kwargs: Any) -> None:
        chosen = ModelSpec.parse(spec, registry.names()).text if spec else models.first()
        self._filling = self._loadable = False
        self._said = Status()
        self._provider_shown = self._asked = ""
        self._models: dict[str, str] = dict(models.PREFERRED)
        self._loaded: tuple[str, ResourceKey | None] = ("", None)
        self._home = home = Home()
        self._loads: Job[tuple[Client, ResourceKey]] = Job(
            lambda: self._changed(self._loads), self._show, home
        )
        self._unloads: Job[int] = Job(lambda: self._changed(self._unloads), home=home)
        self._build()
        super().__init__(children=self._children(), **kwargs)
        self._suggest_providers()
        self.spec = chosen
        self._found.look()
        closing.close_when_rerun(self)

    # What people and code do

    def load(self) -> None:
        """Start to load what is chosen, as the button does; `model` is set when it is there."""
        if not self._loadable or self._busy:
            return
        spec = self._asked = self.spec
        self.error, self._bar.value = "", 0.0
        self._say("busy", f"Loading {spec}")
        self._loads.start(lambda tell: models.load(spec, tell), lambda got: self._take(spec, *got))

    def unload(self) -> None:
        """Start to free the memory of what is chosen, as the button does."""
        if not self._loadable or self._busy:
            return
        spec = self.spec
        self.error = ""
        if self._loaded[0] == spec:
            self._drop()
        self._say("busy", f"Unloading {spec}; running calls are waited for")
        self._unloads.start(
            lambda _: asyncio.to_thread(session.unload, spec),
            lambda freed: self._over("done", models.freed(spec, freed)),
        )

    def stop(self) -> None:
        """Stop waiting for a load or unload, as the button does; what was begun is undone behind."""
        loading, unloading = self._loads.busy, self._unloads.busy
        self._loads.stop()
        self._unloads.stop()
        if loading:
            self._over("", "Stopped; nothing was loaded.")
        if unloading:
            self._over("", "No longer waiting; the memory comes back when the running calls end.")

    def close(self) -> None:
        """Give the model back and take the widget off the page."""
        if hasattr(self, "_home"):  # not if it could not even be made
            self.stop()
            self._drop()
            closing.close_all((*self._parts, self.layout))
        super().close()

    # The parts

    def _build(self) -> None:
        on_disk = partial(OnDisk, self._home, self._suggest_found, self._take_found)
        self._found = _field(
            on_disk, "On disk", "Models on this machine; choose one to fill in all"
        )
        self._provider = _field(widgets.Dropdown, "Provider", "Who runs the model")
        self._model = _field(
            widgets.Combobox,
            "Model",
            "A model of this provider: type a name or choose one",
            placeholder="name, alias, Hub id or path",
            continuous_update=False,
        )
        self._options = _field(
            widgets.Text,
            "Options",
            "Load options, written name=value and joined with &",
            placeholder="optional, such as dtype=float32",
            continuous_update=False,
        )
        self._code = _field(widgets.Textarea, "Code", "The code that does the same", rows=2)
        self._bar = _field(widgets.FloatProgress, "Progress", "How much is loaded", max=1.0)
        self._status, self._table, self._note = (
            widgets.HTML(layout=widgets.Layout(margin="2px 0 2px 90px", width="auto"))
            for _ in range(3)
        )
        self._buttons = [
            _button("Load", "primary", "Load the model and keep it in memory"),
            _button("Unload", "", "Free the memory of the model"),
            _button("Stop", "", "Stop loading or unloading"),
        ]
        # Each widget's messages may come on a thread of their own: what was typed before may come later.
        actions = (lambda: self._home.soon(_LATE_S, self.load), self.unload, self.stop)
        for button, action in zip(self._buttons, actions, strict=True):
            button.on_click(lambda _, action=action: self._home.call(action))
        for field in (self._provider, self._model, self._options):
            field.observe(lambda _: self._home.call(self._read), "value")
        self._code.observe(lambda _: self._home.call(self._show_code), "value")

    def _children(self) -> list[Any]:
        layout = widgets.Layout(margin="0 0 0 88px", flex_flow="row wrap")
        row = widgets.HBox(self._buttons, layout=layout)
        note = clicks_note()
        self._note.value = f'<span style="{MUTED}">{html.escape(note)}</span>'
        fields = [self._found, self._provider, self._model, self._options]
        shown = [*fields, row, self._bar, self._status, self._table, self._code]
        self._parts = [*shown, *self._buttons, self._note]
        return [*shown, self._note] if note else shown

    def _suggest_providers(self) -> None:
        listed = registry.list_available()
        labels = [
            (name if info.available else f"{name} (not available)", name)
            for name, info in listed.items()
        ]
        self._filling = True
        try:
            self._provider.options = labels
        finally:
            self._filling = False

    def _suggest_found(self) -> None:
        for one in self._found.found:  # where nothing of a provider was chosen yet, its first
            self._models.setdefault(one.provider, one.name)
        self._suggest_models()

    def _suggest_models(self) -> None:
        provider: str = self._provider.value
        with suppress(ProviderError):  # a broken settings file: told at the load
            named = [*models.suggestions(provider), *self._found.names(provider)]
            self._model.options = list(dict.fromkeys(named))

    def _take_found(self, spec: str) -> None:
        if not spec or spec == self.spec or self._busy:
            return
        provider = spec.partition(":")[0]
        if provider in registry.names():
            self.spec = spec
        else:
            self._chosen(f"{provider} is not available: {models.why_not(provider)}")

    # From fields to spec, and back

    @traitlets.validate("spec")
    def _checked(self, proposal: Any) -> str:
        text: str = proposal["value"]
        return ModelSpec.parse(text, registry.names()).text if text else ""

    @traitlets.observe("spec")
    def _spec_changed(self, _: object) -> None:
        self._home.call(self._fill)  # any thread may set it, also while a search ends at home

    def _fill(self) -> None:
        if self._filling:
            return
        provider, model, query = self._provider.value, "", ""
        if self.spec:
            parsed = ModelSpec.parse(self.spec, registry.names())
            provider, model, query = parsed.provider, parsed.model, parsed.name.partition("?")[2]
            self._models[provider] = model
        if provider not in {name for _, name in self._provider.options}:
            self._suggest_providers()
        self._filling = True
        try:
            self._provider.value, self._model.value = provider, model
            self._options.value = query
        finally:
            self._filling = False
        self._chosen("")

    def _read(self) -> None:
        """Make the reference that the fields mean; say what is wrong if they mean none."""
        if self._filling:
            return
        self._filling = True
        try:
            found, error = self._composed(), ""
        except ProviderError as failure:
            found, error = "", told(failure)
            self._forget_secrets()
        try:
            self.spec = found
        finally:
            self._filling = False
        # While a model loads the fields are locked: this was changed before, and is told only now.
        late = self._loads.busy and found != self._asked
        if late:
            self._loads.stop()
        self._chosen(error)
        if late and not error:
            self.load()

    def _composed(self) -> str:
        provider: str = self._provider.value
        if self._provider_shown != provider:  # another one: what was last chosen of it
            self._model.value = self._models.get(provider, "")
            self._options.value = ""
        self._provider_shown = provider
        if models.holds_secret(self._model.value) or models.holds_secret(self._options.value):
            raise ConfigurationError(
                "A key or password was typed here; it was taken out, for a notebook is a file.",
                hint=f"Give it to the provider: nbp.create_provider({provider!r}, api_key=…).",
            )
        name, written = split_options(self._model.value.strip())
        query = self._options.value.strip()
        _, options = split_options(f"?{query}" if query else "")
        spec = ModelSpec.of(provider, name, {**written, **options})
        self._models[provider] = self._model.value.strip()
        return spec.text

    def _forget_secrets(self) -> None:
        """Empty a field that holds a secret: what is in a widget is saved with the notebook."""
        for field in (self._model, self._options):
            if models.holds_secret(field.value):
                field.value = ""

    def _chosen(self, error: str) -> None:
        """Show what follows from the choice: its reason if unavailable, suggestions, code."""
        provider: str = self._provider.value
        self._provider_shown = provider
        reason = models.why_not(provider)
        self._loadable = bool(self.spec) and not reason
        self.error = error or (f"{provider} is not available: {reason}" if reason else "")
        self._suggest_models()
        self._show_code()
        self._refresh()  # before the words: who reads them may click or type on at once
        if self._busy:
            pass  # what is under way is told
        elif self.error:
            self._say("failed", self.error)
        elif self.model is None or self._loaded[0] != self.spec:
            held = any(one.spec == self.spec for one in session.residents())
            self._say("", "In memory; Load opens it here." if held else "Not loaded.")
        else:
            self._say("done", f"Loaded {self.spec}.")

    # What is shown

    @property
    def _busy(self) -> bool:
        return self._loads.busy or self._unloads.busy

    def _show(self, told: list[Loading]) -> None:
        last = told[-1]
        self._bar.value = last.fraction or 0.0
        self._say("busy", last.text)
        self._show_table()

    def _changed(self, job: Job[Any]) -> None:
        if job.state is State.FAILED:
            self.error = job.error
            self._over("failed", job.error)
        else:
            self._refresh()

    def _refresh(self) -> None:
        load, unload, stop = self._buttons
        # Not while busy: a disabled button loses the keyboard's focus. Clicks are ignored then.
        load.disabled = unload.disabled = not self._loadable
        stop.disabled = not self._busy
        for field in (self._found, self._provider, self._model, self._options):
            field.disabled = self._busy
        self._found.show(self.spec)
        self._bar.layout.display = "" if self._loads.busy else "none"
        self._show_table()

    def _over(self, kind: str, text: str) -> None:
        """Say how it ended, once all can be used again."""
        self._refresh()
        self._say(kind, text)

    def _say(self, kind: str, text: str) -> None:
        self._said = Status(kind, text)
        self._status.value = self._said.html()

    def _show_table(self) -> None:
        self._table.value = models.residents_html(session.residents())

    def _show_code(self) -> None:
        """Show the code; what is typed over it is put back, for the field is there to copy from."""
        self._code.value = models.code(self.spec)

    # The model

    def _take(self, spec: str, client: Client, key: ResourceKey) -> None:
        """Take the client of a finished load, unless the open one is of the same model."""
        if self.model is not None and not self.model.closed and self._loaded == (spec, key):
            client.close()
        else:
            self._drop()
            self._loaded = (spec, key)
            self.model = client
        self._bar.value = 1.0
        self._over("done", f"Loaded {spec}. Use it as picker.model.")

    def _drop(self) -> None:
        client, self.model = self.model, None
        if client is not None:
            client.close()

    # Without a kernel or a front end

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """Return the widget's view, and its state as HTML and text for where no widget can be shown."""
        bundle = dict(super()._repr_mimebundle_(**kwargs) or {})
        bundle["text/plain"] = models.as_text(self.spec, str(self._said))
        bundle["text/html"] = models.as_html(self.spec, str(self._said))
        return bundle


def _field(kind: Any, label: str, tooltip: str, **more: Any) -> Any:
    style = {"description_width": _LABEL}
    layout = widgets.Layout(width="auto", max_width=_WIDE)  # one each: a layout is a shared object
    return kind(description=label, tooltip=tooltip, style=style, layout=layout, **more)


def _button(text: str, style: str, tooltip: str) -> Any:
    layout = widgets.Layout(width="96px")
    return widgets.Button(description=text, button_style=style, tooltip=tooltip, layout=layout)
