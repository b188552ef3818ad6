"""Many requests in one context: each has the text it has alone, none is lost, and none waits for ever."""

from __future__ import annotations

import gc
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from nbproviders.errors import InsufficientMemoryError, ProviderError
from nbproviders.residency.progress import Progress
from nbproviders.runtimes.batching import Ticket
from nbproviders.runtimes.llamacpp.native import library, load_weights
from nbproviders.runtimes.llamacpp.scheduler import Active, Limits
from nbproviders.runtimes.rows import Row
from tests.gguf_files import write_llama_gguf
from tests.runtimes.llamacpp.lab import Lab, end, reason, row

ARCHITECTURES = ("llama", "gemma2", "gemma3", "phi3", "mamba")  # three with sliding windows
WORDS = range(259, 340)
Open = Callable[..., Lab]


@pytest.fixture(scope="module")
def pointers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """Weights by their architecture, in float32; each loaded once."""
    found: dict[str, Any] = {}
    folder = tmp_path_factory.mktemp("scheduler")

    def pointer(arch: str) -> Any:
        if arch not in found:
            path = write_llama_gguf(folder / f"{arch}.gguf", arch=arch, context=512)
            found[arch], _ = load_weights(path, gpu_layers=0, total_bytes=1, progress=Progress())
        return found[arch]

    yield pointer
    for one in found.values():
        library().llama_model_free(one)


@pytest.fixture
def lab(pointers: Callable[[str], Any]) -> Iterator[Open]:
    """Opens labs; closed at the end."""
    made: list[Lab] = []

    def new(arch: str = "llama", **how: Any) -> Lab:
        made.append(Lab(pointers(arch), **how))
        return made[-1]

    yield new
    for one in made:
        one.close()


def text(length: int, seed: int = 0) -> list[int]:
    """Some tokens, others for each seed."""
    return random.Random(seed).choices(WORDS, k=length)


def by_itself(lab: Open, rows: Sequence[Row], arch: str = "llama") -> list[list[int]]:
    """Return what each row has in a context that has seen nothing else."""
    one, found = lab(arch), []
    for each in rows:
        one.scheduler.close()
        wanted = row(each.ids, each.params.max_tokens or 0, **_sampling(each))
        found += one.run([wanted])
    return found


def _sampling(of: Row) -> dict[str, Any]:
    params = of.params
    return {"temperature": params.temperature, "top_p": params.top_p, "seed": params.seed}


def once(then: Callable[[], object], when: Callable[[], bool]) -> Callable[[], None]:
    """Have something happen at the first turn at which something is true."""
    left = [then]

    def turn() -> None:
        if left and when():
            left.pop()()

    return turn


def cancel(*rows: Row) -> None:
    for one in rows:
        one.ticket.cancelled = True


# Everything at once


class Traffic:
    """Random requests that share beginnings, arrive and are given up at random; seeded."""

    def __init__(self, lab: Lab, count: int, seed: int) -> None:
        self._rng = rng = random.Random(seed)
        self._lab = lab
        starts = [text(rng.randint(40, 120), seed * 10 + n) for n in range(3)]
        self.rows = [self._request(starts) for _ in range(count)]
        self._coming = deque(self.rows)
        lab.abort.then = self._turn

    def _request(self, starts: list[list[int]]) -> Row:
        rng = self._rng
        start = rng.choice(starts)
        ids = start[: rng.choice((0, 1, 35, 60, len(start)))] + text(
            rng.randint(1, 30), rng.randrange(9)
        )
        hot = rng.random() < 0.3
        sampling = {"temperature": 1.5, "top_p": 0.9, "seed": rng.randrange(99)} if hot else {}
        return row(ids, rng.choice((1, 1, 2, 5, 9, 40)), **sampling)

    def _turn(self) -> None:
        """Cancel some; stop an evaluation that goes on to be wanted."""
        if self._rng.random() < 0.05:
            cancel(self._rng.choice(self.rows))
        if self._rng.random() < 0.05:
            self._lab.abort.set()

    def run(self) -> None:
        def more(room: int) -> list[Row]:
            count = min(self._rng.randint(0, 2), room, len(self._coming))
            return [self._coming.popleft() for _ in range(count)]

        while self._coming:  # it may have become empty for a moment
            self._lab.run([self._coming.popleft()], more)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_any_traffic_gives_the_texts_of_one_by_one(lab: Open, arch: str, seed: int) -> None:
    """Whatever is shared, moved, stopped, given up or grown meanwhile: token for token."""
    busy = lab(arch, sequences=4, cells=768, n_batch=random.Random(seed).choice((8, 64)))
    traffic = Traffic(busy, 60, seed)
    traffic.run()
    ends = [reason(one) for one in traffic.rows]
    assert ends.count("length") > 30
    for one, why, wanted in zip(
        traffic.rows, ends, by_itself(lab, traffic.rows, arch), strict=True
    ):
        got = one.new_ids if why == "length" else one.new_ids + wanted[len(one.new_ids) :]
        assert got == wanted
    assert not busy.scheduler.active
    assert not busy.scheduler.waiting
    if arch == "llama":
        assert busy.copies
        assert sum(one.cached_tokens for one in traffic.rows) > 200


def test_a_real_model_in_any_traffic(lab: Open) -> None:
    """More requests, with a published checkpoint."""
    import os

    folder = os.environ.get("NBPROVIDERS_TEST_MODELS", "")
    path = Path(folder, "stories260k", "stories260k.gguf")
    if not folder or not path.is_file():
        pytest.skip("NBPROVIDERS_TEST_MODELS names no folder with stories260k")
    pointer, _ = load_weights(path, gpu_layers=0, total_bytes=1, progress=Progress())
    busy, one = Lab(pointer, sequences=8, cells=2048, n_batch=64), Lab(pointer)
    try:
        traffic = Traffic(busy, 200, 5)
        traffic.run()
        for each in traffic.rows:
            one.scheduler.close()
            [wanted] = one.run([row(each.ids, each.params.max_tokens or 0, **_sampling(each))])
            assert each.new_ids == wanted[: len(each.new_ids)]
            assert reason(each) == "cancelled" or len(each.new_ids) == len(wanted)
    finally:
        busy.close()
        one.close()
        library().llama_model_free(pointer)


# Waiting for another's tokens


def test_nobody_waits_for_one_who_waits_for_him(lab: Open) -> None:
    """Its source is given up, and a third takes that place who would wait for it in turn."""
    start = text(100)
    first, second, third = (row([*start, word]) for word in (300, 301, 302))
    busy, coming = lab(n_batch=16, sequences=2, cells=512), [third]

    def give_up() -> None:
        cancel(first)
        busy.scheduler.waiting.extend(coming.pop() for _ in list(coming))

    busy.abort.then = once(give_up, lambda: len(busy.evaluations) == 3)
    busy.scheduler.context_for([110, 110])
    busy.run([first, second])
    assert [reason(one) for one in (first, second, third)] == ["cancelled", "length", "length"]
    assert [second.new_ids, third.new_ids] == by_itself(lab, [second, third])


def test_what_a_source_has_done_is_not_lost_with_it(lab: Open) -> None:
    """Who waited takes that over, and only one of them goes on with the rest."""
    start = text(160)
    rows = [row([*start, word], 1) for word in range(300, 304)]
    busy = lab(n_batch=16)
    busy.abort.then = once(lambda: cancel(rows[0]), lambda: len(busy.evaluations) == 5)
    busy.run(rows)
    assert [reason(one) for one in rows] == ["cancelled", "length", "length", "length"]
    assert rows[1].cached_tokens == 80
    assert [one.cached_tokens for one in rows[2:]] == [160, 160]
    assert busy.tokens == 160 + 3
    assert [one.new_ids for one in rows[1:]] == by_itself(lab, rows[1:])


def test_a_source_that_ends_with_its_prompt_is_shared_all_the_same(lab: Open) -> None:
    """Requests of one token, and others that would take its place at once."""
    start, other = text(90), text(90, 1)
    rows = [row([*start, 300], 1), row([*start, 301], 1)]
    late = [row([*other, 300], 1)]
    busy = lab(n_batch=128, sequences=2, cells=512)
    busy.run(rows, lambda _: [late.pop() for _ in list(late)])
    assert rows[1].cached_tokens == 90
    assert [one.new_ids for one in rows] == by_itself(lab, rows)


def test_a_source_may_move_while_others_wait_for_it(lab: Open) -> None:
    """Neighbours end, it is moved together with the rest, and gives its tokens from there."""
    start = text(200)
    short = row(text(3, 1), 1)
    between = row(text(3, 2), 30)
    source, waits = row([*start, 300]), row([*start, 301])
    busy = lab(n_batch=16)
    busy.run([between, short, source, waits])
    moved = [copy for copy in busy.copies if copy[1] == 1]
    assert moved
    assert waits.cached_tokens == 200
    rows = [short, between, source, waits]
    assert [one.new_ids for one in rows] == by_itself(lab, rows)


def test_neighbours_stay_where_they_are(lab: Open) -> None:
    """One who is left alone is not moved over what an ended conversation has left."""
    busy, short, long = lab(), row(text(50), 1), row(text(50, 1), 9)
    busy.run([short, long])
    assert busy.copies == []
    again = row([*short.ids, *short.new_ids, 300])
    busy.run([again])
    assert again.cached_tokens == 50


# Cached beginnings


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_conversation_goes_on_from_what_is_known(lab: Open, arch: str) -> None:
    """Turn after turn, and from a turn that was taken back; window or not, the text is the same."""
    one = lab(arch, n_ctx=512, cells=512, sequences=1)
    first = row(text(150), 20)
    one.run([first])
    whole = [*first.ids, *first.new_ids, *text(9, 3)]
    second = row(whole, 20)
    back = row(whole[:100] + text(20, 4), 20)
    one.run([second])
    one.run([back])
    known = [second.cached_tokens, back.cached_tokens]
    assert known == ([169, 100] if arch != "mamba" else [169, 0])
    rows = [first, second, back]
    alone = lab(arch, n_ctx=512, cells=512, sequences=1)
    for each in rows:
        alone.scheduler.close()
        assert alone.run([row(each.ids, 20)]) == [each.new_ids]


def test_the_whole_prompt_again_is_one_token(lab: Open) -> None:
    """Its last: the logits behind it are needed."""
    one = lab()
    first, again = row(text(40), 1), row(text(40), 1)
    one.run([first])
    one.evaluations.clear()
    one.run([again])
    assert (again.cached_tokens, one.tokens) == (39, 1)
    assert again.new_ids == first.new_ids


# Stopped evaluations


@pytest.mark.parametrize("arch", ["llama", "mamba"])
def test_a_stopped_evaluation_is_done_again(lab: Open, arch: str) -> None:
    """Whoever is still there has the text as if nothing had happened."""
    busy, rows = lab(arch, n_batch=16), [row(text(n, n), 9) for n in (5, 40, 70)]
    stops = iter([False, True, False, False, True, True, False, True])

    def turn() -> None:
        if next(stops, False):
            busy.abort.set()

    busy.abort.then = turn
    busy.run(rows)
    assert next(stops, None) is None
    assert [one.new_ids for one in rows] == by_itself(lab, rows, arch)


def test_a_stop_that_comes_late_does_not_stop_the_next(lab: Open) -> None:
    """The flag of one who is gone is still set when another run begins."""
    one, wanted = lab(), row(text(20))
    one.abort.set()
    assert one.run([wanted]) == by_itself(lab, [wanted])


# Who may come in


def test_who_arrives_joins_one_that_has_just_begun(lab: Open) -> None:
    """Though its context was made for one: the first of many must not hold up the rest."""
    long, late = row(text(50), 100), [row(text(20, n)) for n in range(1, 4)]
    busy, coming = lab(n_batch=64), list(late)
    busy.run([long], lambda _: [coming.pop() for _ in list(coming) if len(busy.evaluations) > 4])
    assert busy.made == [(1, 256), (4, 256)]
    assert len(busy.evaluations) == 100
    rows = [long, *late]
    assert [one.new_ids for one in rows] == by_itself(lab, rows)


def test_what_would_be_computed_again_for_long_is_left_alone(lab: Open) -> None:
    """Whoever arrives then waits; and nothing is computed twice."""
    long, late = row(text(100), 20), [row(text(20, n)) for n in range(1, 4)]
    busy, coming = lab(n_batch=64), list(late)
    busy.run([long], lambda _: [coming.pop() for _ in list(coming) if len(busy.evaluations) > 4])
    assert busy.made == [(1, 256), (4, 256)]
    assert busy.tokens == 100 + 19 + 3 * (20 + 5)
    rows = [long, *late]
    assert [one.new_ids for one in rows] == by_itself(lab, rows)


def test_a_larger_one_joins_one_that_has_just_begun(lab: Open) -> None:
    """Sequences become longer as they become more."""
    small, large = row(text(20), 90), row(text(200, 1), 100)
    busy, coming = lab(n_ctx=512, cells=1024, n_batch=256), [large]
    busy.run([small], lambda _: [coming.pop()] if coming and len(busy.evaluations) > 4 else [])
    assert busy.made == [(1, 256), (2, 512)]
    assert len(busy.evaluations) < 120
    assert [reason(one) for one in (small, large)] == ["length", "length"]


def test_a_large_request_gets_its_turn_among_small_ones(lab: Open) -> None:
    """It is not passed over for ever by those that fit, nor are they by it."""
    small = [row(text(20, n), 5) for n in range(12)]
    large = row(text(300), 100)
    coming = deque([*small[4:8], large, *small[8:]])
    busy = lab(n_ctx=512, cells=1024, n_batch=64)
    busy.run(small[:4], lambda room: [coming.popleft() for _ in range(min(room, len(coming), 1))])
    rows = [*small, large]
    assert [reason(one) for one in rows] == ["length"] * 13
    one = lab(n_ctx=512, cells=1024)
    for each in rows:
        one.scheduler.close()
        assert one.run([row(each.ids, each.params.max_tokens or 0)]) == [each.new_ids]


def test_small_requests_go_beside_a_large_one(lab: Open) -> None:
    """As many as there is room for, and all of them when it has gone."""
    large, small = row(text(300), 100), [row(text(20, n), 5) for n in range(8)]
    busy = lab(n_ctx=512, cells=1024, n_batch=64)
    busy.run([large, *small])
    assert busy.made[0] == (2, 512)
    assert all(reason(one) == "length" for one in small)
    # Large: 5 evaluations for its prompt, 99 behind; the others went beside it.
    assert len(busy.evaluations) < 110


def test_a_long_prompt_does_not_hold_up_those_that_generate(lab: Open) -> None:
    """Each evaluation has their next token; a prompt that came before them takes what room is left."""
    start = text(200)
    source, waits, quick = row([*start, 300], 30), row(start + text(100, 1), 1), row(text(4, 2), 30)
    busy = lab(n_ctx=512, cells=2048, n_batch=16)
    busy.run([source, waits, quick])
    assert all(len(one) <= 16 for one in busy.evaluations)
    # 201 tokens and a whole short prompt in 13 evaluations; then the hundred of the one who waited.
    sequences = [{place[0] for _, place in one} for one in busy.evaluations[13:20]]
    assert sequences == [{0, 1, 2}] * 7


def test_alone_means_that_nobody_is_let_in(lab: Open) -> None:
    """Whoever arrives meanwhile waits, and what was known before is not used."""
    one = lab()
    one.run([row(text(40))])
    alone, asked = row(text(40), 5, alone=True), []
    one.run([alone], lambda room: asked.append(alone.ended) or [])
    assert asked == [True]
    assert alone.cached_tokens == 0


def test_alone_computes_as_if_nothing_had_been_asked_before(lab: Open) -> None:
    """Not in a context that was made for many, if that computes otherwise."""
    one = lab(flash=None)
    one.run([row(text(9, n)) for n in range(4)])
    one.run([row(text(40), alone=True)])
    assert one.made == [(4, 256), (1, 256)]
    plain = lab()
    plain.run([row(text(9, n)) for n in range(4)])
    plain.run([row(text(40), alone=True)])
    assert plain.made == [(4, 256)]


# Ends


def test_who_gave_up_before_his_turn_is_told_so(lab: Open) -> None:
    """With no token, and no evaluation for it."""
    rows = [row(text(9, n), 4) for n in range(3)]
    busy = lab(sequences=1, cells=256)
    busy.abort.then = once(lambda: cancel(rows[2]), lambda: len(busy.evaluations) == 2)
    busy.run(rows)
    assert [reason(one) for one in rows] == ["length", "length", "cancelled"]
    assert rows[2].new_ids == []
    assert busy.tokens == 2 * (9 + 3)


def test_a_request_that_fits_nowhere_ends_the_run(lab: Open) -> None:
    """It is refused before it comes here; should it come, nothing turns round for ever."""
    with pytest.raises(AssertionError):
        lab().run([row(text(250), 100)])
    small, large = row(text(5), 3), row(text(250), 100)
    busy = lab()
    with pytest.raises(AssertionError):
        busy.run([small, large])
    assert reason(small) == "length"
    assert len(busy.made) == 1


def test_what_is_no_number_fails_its_row_alone(lab: Open, tmp_path: Path) -> None:
    """Damage in the weights of one word harms those who use that word."""
    import gguf

    path = write_llama_gguf(tmp_path / "damaged.gguf", context=512)
    damaged = gguf.GGUFReader(path, "r+")
    [words] = [tensor for tensor in damaged.tensors if tensor.name == "token_embd.weight"]
    words.data[300] = np.nan
    damaged.data.flush()
    pointer, _ = load_weights(path, gpu_layers=0, total_bytes=1, progress=Progress())
    busy = Lab(pointer)
    rows = [row([270, 271, word], 1) for word in (280, 300, 281)]
    try:
        busy.run(rows)
    finally:
        busy.close()
        library().llama_model_free(pointer)
    assert [reason(one) for one in rows[::2]] == ["length", "length"]
    error = end(rows[1])
    assert isinstance(error, ProviderError)
    assert "no number" in str(error)


def test_a_context_that_cannot_be_made_is_an_error_and_no_more(lab: Open) -> None:
    """The next request finds everything as it was."""
    one, wanted = lab(), row(text(9))
    make, failing = one.scheduler.make, [InsufficientMemoryError("none left")]

    def once_not(sequences: int, cells: int) -> Any:
        if failing:
            raise failing.pop()
        return make(sequences, cells)

    one.scheduler.make = once_not
    with pytest.raises(InsufficientMemoryError):
        one.run([row(text(9))])
    assert one.run([wanted]) == by_itself(lab, [wanted])


def test_nothing_is_remembered_of_those_that_ended(lab: Open) -> None:
    """Neither rows nor tickets, also while the run goes on and after an error in it."""
    gc.collect()
    before = _alive()
    one = lab()
    one.run([row(text(60 + n), 2) for n in range(6)])
    gc.collect()
    assert _alive() == before
    counts = []

    def more(room: int) -> list[Row]:
        counts.append(_alive()[1] if len(counts) % 20 == 19 else 0)
        return [row(text(50, len(counts)), 2)] if len(counts) < 60 else []

    one.run([row(text(50), 2)], more)
    assert 0 < max(counts) < 12
    one.scheduler.decode = lambda _: 1 / 0  # type: ignore[assignment,return-value]
    with pytest.raises(ZeroDivisionError):
        one.run([row(text(9), 2)])
    assert one.scheduler.context is None  # nobody knows what it remembers
    gc.collect()
    assert _alive() == before


def _alive() -> tuple[int, ...]:
    kinds = (Row, Ticket, Active)
    return tuple(sum(type(thing) is kind for thing in gc.get_objects()) for kind in kinds)


# How large a context becomes


@pytest.mark.parametrize(
    ("limits", "needs", "layout"),
    [
        ((2048, 8, 512, 64), [10], (1, 256)),
        ((2048, 8, 512, 64), [10] * 3, (4, 256)),
        ((2048, 8, 512, 64), [10] * 99, (8, 256)),
        ((2048, 8, 512, 64), [10, 257], (2, 512)),
        ((2048, 8, 512, 64), [10] * 8 + [512], (4, 512)),
        ((512, 8, 512, 64), [10] * 8 + [512], (1, 512)),
        ((2048, 6, 512, 64), [10] * 99, (6, 256)),
        ((2048, 8, 512, 3), [10] * 99, (3, 256)),
        ((256, 8, 100, 64), [100], (1, 256)),
    ],
)
def test_a_context_is_as_large_as_it_must_be(
    limits: tuple[int, int, int, int], needs: list[int], layout: tuple[int, int]
) -> None:
    """Sequences double up to those that are wanted; cells, sequences and a batch's tokens are bounds."""
    assert Limits(*limits).layout(needs) == layout
