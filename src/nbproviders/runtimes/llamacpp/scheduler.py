"""Many requests in one context: who computes in which sequence, and what they share.

Each evaluation takes one token of every request that is generating, and fills up with the prompts of those
that are not there yet. A request joins as soon as a sequence is free. What a sequence still knows from an
earlier request is not computed again, and requests that begin alike compute their beginning once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nbproviders.core.tokens import Token
from nbproviders.errors import ProviderError
from nbproviders.runtimes.llamacpp.choosing import Choice, logprobs, require_numbers
from nbproviders.runtimes.llamacpp.context import CELL_STEP, Aborted, Context
from nbproviders.runtimes.llamacpp.native import Abort
from nbproviders.runtimes.llamacpp.pace import Pace
from nbproviders.runtimes.rows import Row

# Copying a sequence costs about as much as evaluating a few tokens.
_WORTH_COPYING_TOKENS = 32


@dataclass(eq=False, slots=True)
class Active:
    """A row in its sequence.

    Attributes
    ----------
    row
        The request.
    sequence
        Where it computes.
    todo
        Tokens to evaluate next: the rest of the prompt, then one at a time.
    source, shared
        Another that is still computing tokens this one begins with, and how many: it waits for them.
        Always one that was there before, so that no two wait for each other.
    """

    row: Row
    sequence: int
    todo: list[int]
    choice: Choice
    source: Active | None = None
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a context may grow.

    Attributes
    ----------
    cells
        Of all sequences together.
    sequences
        At most.
    n_ctx
        Cells of one sequence, at most.
    n_batch
        Tokens of one evaluation.
    """

    cells: int
    sequences: int
    n_ctx: int
    n_batch: int

    def layout(self, needs: Sequence[int]) -> tuple[int, int]:
        """Return sequences and cells of each for requests that need so many cells."""
        cells = min(_rounded_up(max(needs)), _rounded_up(self.n_ctx))
        most = max(min(self.sequences, self.cells // cells, self.n_batch), 1)
        wanted = 1
        while wanted < min(len(needs), most):
            wanted *= 2
        return min(wanted, most), cells


def _rounded_up(tokens: int) -> int:
    return -(-tokens // CELL_STEP) * CELL_STEP


@dataclass(slots=True)
class Scheduler:
    """Carries rows through a context that is made, and made anew, as they need it.

    Parameters
    ----------
    limits
        How large the context may become.
    make
        Makes one with so many sequences and cells of each.
    decode
        From tokens to text.
    shown
        What a single token writes.
    eos_ids
        Tokens that end a text.
    pace
        Chooses how many cores an evaluation gets.
    parameters
        Of the model.
    invariant
        Whether a text is the same in any batch.
    abort
        Stops an evaluation that nobody waits for.
    """

    limits: Limits
    make: Callable[[int, int], Context]
    decode: Callable[[Sequence[int]], str]
    shown: Callable[[int], str]
    eos_ids: frozenset[int]
    pace: Pace
    parameters: int
    invariant: bool
    abort: Abort
    context: Context | None = None
    waiting: deque[Row] = field(default_factory=deque)
    active: list[Active] = field(default_factory=list)
    left: bool = False  # whether a row has ended since its neighbours were moved together

    def run(self, rows: Sequence[Row], more: Callable[[int], Sequence[Row]]) -> None:
        """Carry rows to their ends; `more` gives up to so many that have arrived since."""
        self.waiting.extend(rows)
        ended = False
        try:
            while self.waiting or self.active:
                self.abort.clear()  # first: who cancels after this sets it again
                self._drop_cancelled()
                self._grow()
                self._share()  # before others are admitted over what is known
                self._admit()
                if self.active:
                    self._step()
                room = self.limits.sequences - len(self.active) - len(self.waiting)
                if room > 0 and not self._alone():
                    self.waiting.extend(more(room))
            ended = True
        finally:
            if not ended:  # what the context remembers is not sure any more
                self.close()
            self.waiting.clear()
            self.active.clear()

    def _alone(self) -> bool:
        return any(one.row.ticket.request.alone for one in self.active)

    def context_for(self, needs: Sequence[int], *, alone: bool = False) -> Context:
        """Return a context with room for these needs: the one there is, if it has it.

        `alone` asks for one that computes as if nothing had been asked before.
        """
        sequences, cells = self.limits.layout(needs)
        context = self.context
        if (
            context is None
            or context.cells < cells
            or context.sequences < sequences
            or (alone and not context.as_alone)
        ):
            self.close()
            context = self.context = self.make(sequences, cells)
        return context

    def close(self) -> None:
        """Free the context."""
        context, self.context = self.context, None
        if context is not None:
            context.close()

    # Who is in

    def _drop_cancelled(self) -> None:
        now_s = time.perf_counter()
        for row in [row for row in self.waiting if row.ticket.cancelled]:
            self.waiting.remove(row)
            row.began_s = row.began_s or now_s
            row.end("cancelled", row.text, now_s, self.invariant)
        for one in [one for one in self.active if one.row.ticket.cancelled]:
            one.row.end("cancelled", one.row.text, now_s, self._promise(one.row))
            self.active.remove(one)
            self.left = True

    def _grow(self) -> None:
        """Make another context if who waits first has no place in this one, but has one there.

        Only while all that is known of those in it fits one evaluation: it is computed again.
        """
        old = self.context
        if old is None or not self.active or not self.waiting:
            return
        first = _need(self.waiting[0])
        if len(self.active) < old.sequences and first <= old.cells:
            return
        most = max(first, old.cells)
        needs = [_need(one.row) for one in self.active]
        needs += [need for need in map(_need, self.waiting) if need <= most]
        sequences, cells = self.limits.layout(needs)
        if sequences <= len(self.active) or cells < first:
            return
        if sum(len(old.known[one.sequence]) for one in self.active) > self.limits.n_batch:
            return
        self.close()  # first: there may be no room for both
        new = self.context = self.make(sequences, cells)
        for place, one in enumerate(self.active):
            one.sequence = place
        self._begin_again(new)

    def _admit(self) -> None:
        if not self.waiting:
            if self.left:
                self._close_gaps()
            return
        if not self.active:
            alone = self.waiting[0].ticket.request.alone
            self.context_for([_need(row) for row in self.waiting], alone=alone)
        context = self.context
        assert context is not None
        taken = {one.sequence for one in self.active}
        free = [i for i in range(context.sequences) if i not in taken]
        while free and self.waiting and _need(self.waiting[0]) <= context.cells:
            one = self._place(context, self.waiting.popleft(), free)
            free.remove(one.sequence)
            self.active.append(one)
        assert self.active  # no request needs more than n_ctx: it would be refused before

    def _place(self, context: Context, row: Row, free: list[int]) -> Active:
        """Give a row the sequence that already knows most of it."""
        row.began_s = row.began_s or time.perf_counter()
        one = Active(row, free[0], row.ids, Choice(row.params))
        if row.ticket.request.alone:
            context.keep(one.sequence, 0)
            return one
        best = max(free, key=lambda i: _common(context.known[i], row.ids))
        own = _common(context.known[best], row.ids)
        source, shared = self._source(context, row)
        if shared >= own + _WORTH_COPYING_TOKENS:
            one.source, one.shared = source, shared
            own = 0
        elif own:
            one.sequence = best
        row.cached_tokens = context.keep(one.sequence, own)
        one.todo = row.ids[row.cached_tokens :]
        return one

    def _source(self, context: Context, row: Row) -> tuple[Active | None, int]:
        """Return who begins, or will begin, most like a row, and how many tokens that are."""
        found, most = None, 0
        for other in self.active:
            shared = max(
                _common(other.row.ids, row.ids), _common(context.known[other.sequence], row.ids)
            )
            if shared > most:
                found, most = other, shared
        return found, most

    def _share(self) -> None:
        """Give tokens to those that wait for them, if they are there or will not come any more."""
        for one in self.active:
            source = one.source
            if source is None:
                continue
            assert self.context is not None
            found = _common(self.context.known[source.sequence], one.row.ids)
            if found < one.shared and not source.row.ended:
                continue
            one.source = None
            one.row.cached_tokens = self.context.copy(source.sequence, one.sequence, found)
            one.todo = one.row.ids[one.row.cached_tokens :]
            if source.row.ended:  # the rest is its own work now; who waited as well waits for it
                for other in self.active:
                    if other.source is source:
                        other.source, other.shared = one, min(one.shared, other.shared)

    def _close_gaps(self) -> None:
        """Move rows together: llama.cpp evaluates only neighbouring sequences in one go."""
        context, self.left = self.context, False
        if context is None or not self.active:
            return
        taken = {one.sequence for one in self.active}
        if max(taken) - min(taken) < len(taken):
            return
        for one in sorted(self.active, key=lambda one: -one.sequence):
            gap = next(i for i in range(context.sequences + 1) if i not in taken)
            if gap >= len(self.active) or one.sequence < len(self.active):
                continue
            context.copy(one.sequence, gap, len(context.known[one.sequence]))
            taken = taken - {one.sequence} | {gap}
            one.sequence = gap

    # One evaluation

    def _step(self) -> None:
        context = self.context
        assert context is not None
        tokens: list[int] = []
        places: list[tuple[int, int]] = []
        outputs: list[int] = []
        chosen: list[tuple[Active, int]] = []
        # Those that generate first: a long prompt must not hold them up.
        for one in sorted(self.active, key=lambda one: len(one.todo) > 1):
            room = self.limits.n_batch - len(tokens)
            if room <= 0 or one.source is not None:
                continue
            count = min(len(one.todo), room)
            begin = len(context.known[one.sequence])
            tokens += one.todo[:count]
            places += [(one.sequence, begin + i) for i in range(count)]
            chosen.append((one, count))
            if count == len(one.todo):
                outputs.append(len(tokens) - 1)
        try:
            logits = self.evaluate(context, tokens, places, outputs)
        except Aborted:
            self._begin_again(context)
            return
        finished = [one for one, count in chosen if count == len(one.todo)]
        for one, count in chosen:
            one.todo = one.todo[count:]
        if finished:
            self._choose(finished, logits)

    def evaluate(
        self,
        context: Context,
        tokens: Sequence[int],
        places: Sequence[tuple[int, int]],
        outputs: Sequence[int],
    ) -> Any:
        """Evaluate with as many cores as that is worth; see `Context.evaluate`."""
        work = self.parameters * len(tokens)
        cores = self.pace.cores(work)
        context.use_threads(cores)
        began_s = time.perf_counter()
        logits = context.evaluate(tokens, places, outputs)
        self.pace.took(work, cores, time.perf_counter() - began_s)
        return logits

    def _begin_again(self, context: Context) -> None:
        """Have rows evaluate anew what was forgotten of them."""
        for one in self.active:
            whole = [*one.row.ids, *one.row.new_ids]
            one.todo = whole[len(context.known[one.sequence]) :]

    def _choose(self, finished: list[Active], logits: Any) -> None:
        now_s = time.perf_counter()
        best = logits.argmax(axis=1)  # of a row with what is no number, that
        for one, row_logits, top in zip(finished, logits, best.tolist(), strict=True):
            try:
                require_numbers(row_logits[top])
            except ProviderError as error:
                one.row.fail(error)
            else:
                token = top if one.choice.greedy else one.choice.sample(row_logits)
                self._add(one, token, row_logits, now_s)
        if any(one.row.ended for one in finished):
            self.active = [one for one in self.active if not one.row.ended]
            self.left = True

    def _add(self, one: Active, token: int, logits: Any, now_s: float) -> None:
        """Add a token to its row, which may end with it."""
        row, invariant = one.row, self._promise(one.row)
        one.todo = [token]
        known = len(row.new_ids)
        reason = row.take(token, self.eos_ids, now_s)
        if row.ticket.request.logprobs and len(row.new_ids) > known:
            logprob = float(logprobs(logits)[token])
            row.tokens.append(Token(self.shown(token), token, logprob))
        if reason is not None:
            row.finish(reason, self.decode(row.new_ids), now_s, invariant)
        elif row.watched:
            row.advance(self.decode, now_s, invariant)

    def _promise(self, row: Row) -> bool:
        return self.invariant or row.ticket.request.alone


def _need(row: Row) -> int:
    return len(row.ids) + (row.params.max_tokens or 0)


def _common(known: list[int], wanted: list[int]) -> int:
    """Return how many first tokens are the same, leaving one to evaluate: its logits are needed."""
    low, high = 0, min(len(known), len(wanted) - 1)
    while low < high:  # by halves: comparing slices is one call each
        middle = (low + high + 1) // 2
        if known[low:middle] == wanted[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
