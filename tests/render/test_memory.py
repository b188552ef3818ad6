"""What is in memory, as people see it."""

from __future__ import annotations

from nbproviders.render.memory import Residents
from nbproviders.residency.entry import State
from nbproviders.residency.residents import Resident


def resident(**changes: object) -> Resident:
    values = {
        "spec": "llama-cpp:a",
        "state": State.HOT,
        "bytes": {"cpu": 2**20},
        "handles": 1,
        "running": 0,
        "idle_s": 0.0,
        "uses": 1,
        "load_s": 0.5,
        "progress": None,
        "key": "k",
    }
    return Resident(**{**values, **changes})  # type: ignore[arg-type]


def test_what_a_load_told_is_under_the_table() -> None:
    """A step that was left out is read where the model is shown, escaped."""
    shown = Residents([resident(notes=("flash attention: <none> here",)), resident(spec="echo:b")])
    assert shown.notes == ["llama-cpp:a: flash attention: <none> here"]
    assert repr(shown).splitlines()[-1] == "llama-cpp:a: flash attention: <none> here"
    assert "<li>llama-cpp:a: flash attention: &lt;none&gt; here</li>" in shown._repr_html_()
    assert "<ul>" not in Residents([resident()])._repr_html_()
    assert len(repr(Residents([resident()])).splitlines()) == 2
