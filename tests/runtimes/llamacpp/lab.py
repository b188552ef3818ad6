"""A scheduler over real weights, whose rows, arrivals and interruptions a test decides turn by turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from nbproviders.core.completion import Finish
from nbproviders.core.engine import Mailbox
from nbproviders.core.params import GenerationParams, Request
from nbproviders.errors import ProviderError
from nbproviders.runtimes.batching import Ticket
from nbproviders.runtimes.llamacpp.context import Context, Settings
from nbproviders.runtimes.llamacpp.native import Abort
from nbproviders.runtimes.llamacpp.pace import Pace
from nbproviders.runtimes.llamacpp.scheduler import Limits, Scheduler
from nbproviders.runtimes.llamacpp.vocabulary import Vocabulary
from nbproviders.runtimes.rows import Row

F32 = 0


class Direct:
    """A mailbox that calls at once: there is no loop in between."""

    def post(self, function: Callable[..., object], *arguments: object) -> bool:
        function(*arguments)
        return True


class Turns(Abort):
    """Tells of each turn of the scheduler, before anything else happens in it."""

    def __init__(self) -> None:
        super().__init__()
        self.then: Callable[[], object] = lambda: None

    def clear(self) -> None:
        super().clear()
        self.then()


class Watched(Context):
    """A context that notes what is evaluated and copied in it."""

    def __init__(self, lab: Lab, sequences: int, cells: int) -> None:
        self.lab = lab
        words = lab.words.size
        super().__init__(lab.pointer, words, lab.settings, sequences, cells, lab.abort)

    def evaluate(self, tokens: Any, places: Any, outputs: Any) -> Any:
        self.lab.evaluations.append(list(zip(tokens, places, strict=True)))
        return super().evaluate(tokens, places, outputs)

    def copy(self, source: int, target: int, count: int) -> int:
        copied = super().copy(source, target, count)
        self.lab.copies.append((source, target, copied))
        return copied


class Lab:
    """Everything a test needs to run rows.

    Attributes
    ----------
    evaluations
        Of each, its tokens with their places.
    copies
        Source, target and tokens of each.
    made
        Sequences and cells of each context.
    """

    def __init__(
        self,
        pointer: Any,
        *,
        sequences: int = 4,
        cells: int = 1024,
        n_ctx: int = 256,
        n_batch: int = 32,
        flash: bool | None = False,
    ) -> None:
        self.pointer, self.words = pointer, Vocabulary(pointer)
        self.settings = Settings(n_ctx, n_batch, 1, flash, flash is None, F32, F32, False)
        self.abort = Turns()
        self.evaluations: list[list[tuple[int, tuple[int, int]]]] = []
        self.copies: list[tuple[int, int, int]] = []
        self.made: list[tuple[int, int]] = []
        self.scheduler = Scheduler(
            limits=Limits(cells, sequences, n_ctx, n_batch),
            make=self._make,
            decode=self.words.decode,
            shown=self.words.shown,
            eos_ids=frozenset(),
            pace=Pace(1),
            parameters=1,
            invariant=True,
            abort=self.abort,
        )

    def _make(self, sequences: int, cells: int) -> Context:
        self.made.append((sequences, cells))
        return Watched(self, sequences, cells)

    def run(
        self, rows: Sequence[Row], more: Callable[[int], Sequence[Row]] = lambda _: ()
    ) -> list[list[int]]:
        """Run rows to their ends; return the tokens of each."""
        self.scheduler.run(rows, more)
        return [row.new_ids for row in rows]

    @property
    def tokens(self) -> int:
        """How many have been evaluated."""
        return sum(map(len, self.evaluations))

    def close(self) -> None:
        self.scheduler.close()


def row(ids: Sequence[int], max_tokens: int = 6, *, alone: bool = False, **how: Any) -> Row:
    """A request for so many tokens behind these."""
    given = GenerationParams(**{"temperature": 0.0, "top_p": 1.0, **how, "max_tokens": max_tokens})
    ticket = Ticket(Request("", given, whole=True, alone=alone), cast(Mailbox, Direct()))
    return Row(ticket, list(ids), given, chat=False)


def end(of: Row) -> Finish | ProviderError:
    """How a row ended; exactly once."""
    ends = [item for item in of.ticket._items if not isinstance(item, str)]
    assert len(ends) == 1
    return ends[0]


def reason(of: Row) -> str:
    """Why a row ended."""
    finish = end(of)
    assert isinstance(finish, Finish), finish
    return finish.reason
