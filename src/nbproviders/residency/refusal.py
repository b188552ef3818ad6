"""What is said where memory does not suffice: how much is missing, who holds it, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nbproviders.errors import InsufficientMemoryError
from nbproviders.residency.memory import size_text
from nbproviders.residency.residents import Resident, held_text, place

_LESS = (
    "Choose a smaller model or dtype, or raise the budget: nbp.set_memory, or NBPROVIDERS_BUDGET."
)
_UNLOAD = "Unload or unpin something (nbp.unload_all(), nbp.unpin), choose"
_WAIT = (
    "Wait for them and try again, end them (nbp.unload(…, force=True)), or wait longer: "
    "nbp.set_memory(wait_s=…)."
)


def out_of_memory(
    error: InsufficientMemoryError, others: Sequence[Resident]
) -> InsufficientMemoryError:
    """Return an out-of-memory error of a device with the table of who holds what."""
    return InsufficientMemoryError(
        f"{error.message}\n{held_text(others)}", hint=error.hint or _hint(others)
    )


def too_much(
    names: Sequence[str],
    needs: Mapping[str, int],
    short: Mapping[str, int],
    limits: Mapping[str, int],
    others: Sequence[Resident],
    waited_s: float | None,
) -> InsufficientMemoryError:
    """Return the error of models that were not let in.

    Parameters
    ----------
    names
        Theirs; one alone is told by whoever asked for it.
    needs, short, limits
        Bytes on each device: of them all, what of that is too much, and the most that models may take.
    others
        Who is there.
    waited_s
        How long others were waited for; None if that would have been in vain.
    """
    who = f"{' and '.join(names)} need" if len(names) > 1 else "it needs"
    alone = any(needs.get(device, 0) > limits[device] for device, count in short.items() if count)
    most = ", ".join(f"{size_text(limits[d])} on {place(d)}" for d, n in short.items() if n)
    why = f"models may take {most} in all"
    if waited_s is not None:
        why = f"models that are running did not end in time ({waited_s:.0f} s)"
    elif not alone:
        why += ", and what is there stays"
    if not any(short.values()):  # there would be room by now, had it had its turn
        why = "others waited before it, and had not come in by then"
        return InsufficientMemoryError(
            f"{who} {_sizes(needs)}: {why}.\n{held_text(others)}", hint=_WAIT
        )
    return InsufficientMemoryError(
        f"{who} {_sizes(needs)}. That is {_sizes(short)} too much: {why}.\n{held_text(others)}",
        hint=_WAIT if waited_s is not None else _LESS if alone else _hint(others),
    )


def _hint(others: Sequence[Resident]) -> str:
    return f"{_UNLOAD}{_LESS.removeprefix('Choose')}" if others else _LESS


def _sizes(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{size_text(n)} on {place(device)}" for device, n in counts.items() if n)
