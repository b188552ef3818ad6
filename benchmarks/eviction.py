"""How many bytes an eviction policy makes a notebook load, against the least that is possible.

Run: python benchmarks/eviction.py

One device of 24 GB; a load moves all bytes of its model. Nothing is loaded: bytes are counted. The policies:

- ours: what the residency does, by its own `plan` and `Reuse`;
- lru: the longest unused leave until the new one fits;
- keep-alive: as Ollama, the shortest keep-alive leaves first, and of equal ones (here nobody set any) the
  first by name;
- one slot: as LM Studio with models loaded on demand, all others leave;
- informed: on Zipf traces the best policy that knows each model's chance but not what comes: the optimum of
  the Markov decision process, by value iteration. On drawn notebooks, who is told the present favourites and
  the present comparison: `plan` with these as chances. That is no bound, but shows what habits tell;
- clairvoyant: the least that is possible for who knows the future. Exact: all sets of models that could be in
  memory are followed through the trace.

The traces, a number of each kind that is drawn:

- grid: a comparison of all models on 20 prompts, model by model, as comparisons run;
- loop: models that do not fit together in turn, 20 times over;
- zipf: each use is drawn by itself; a model's chance falls as 1/rank, the ranks are dealt;
- notebook: drawn by `notebook`, which plays somebody with three favourites who runs bursts of cells, lets one
  model judge another, runs a comparison again, tries other models, and changes favourites at times;
- session: one, written by hand after a typical day with such a notebook, not recorded from one.

The constants of `Reuse` were chosen with other seeds.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from nbproviders.residency.plan import Move, Seat, plan
from nbproviders.residency.reuse import Reuse

GB = 10**9
BUDGET_GB = 24
DEVICE = "cuda:0"
SIZES_GB = {
    "llama-8b": 16,
    "qwen-14b-int8": 15,
    "gemma-4b": 9,
    "phi-mini": 8,
    "qwen-3b": 6,
    "judge-8b-int4": 5,
    "llama-1b": 3,
    "embedder": 1,
}
SESSION = """
llama-1b*4 qwen-3b*3 llama-1b qwen-3b*2
gemma-4b*2 qwen-3b*5 llama-1b qwen-3b gemma-4b llama-1b qwen-3b gemma-4b
gemma-4b*6 embedder gemma-4b*3 embedder gemma-4b*4
judge-8b-int4 gemma-4b*2 judge-8b-int4 qwen-3b judge-8b-int4 gemma-4b judge-8b-int4*2
llama-8b*3 gemma-4b*2 llama-8b*4 judge-8b-int4 llama-8b*2 judge-8b-int4
llama-1b qwen-3b gemma-4b llama-8b judge-8b-int4 llama-8b*3
embedder llama-8b*2 embedder llama-8b*5 gemma-4b*2 llama-8b*2 judge-8b-int4
phi-mini*2 llama-8b*3 phi-mini llama-8b judge-8b-int4 llama-8b*4
qwen-14b-int8*2 llama-8b*2 qwen-14b-int8 judge-8b-int4 llama-8b*3 embedder llama-8b*4
llama-1b*3 llama-8b judge-8b-int4 llama-8b judge-8b-int4 llama-1b llama-8b*2
gemma-4b phi-mini llama-8b judge-8b-int4 gemma-4b phi-mini llama-8b judge-8b-int4
gemma-4b*5 embedder gemma-4b*3 judge-8b-int4 gemma-4b*2 judge-8b-int4 gemma-4b*4
qwen-3b*2 gemma-4b*2 judge-8b-int4 qwen-3b judge-8b-int4 gemma-4b*3
llama-8b*2 judge-8b-int4 gemma-4b judge-8b-int4 llama-8b judge-8b-int4
llama-1b qwen-3b phi-mini gemma-4b llama-8b qwen-14b-int8 judge-8b-int4
gemma-4b*4 embedder gemma-4b*2 llama-8b*3
"""

Trace = list[str]
Leave = Callable[[Mapping[str, int], str, int], Sequence[str]]


def session() -> Trace:
    """Return the hand-written trace, one name a use."""
    uses = []
    for word in SESSION.split():
        name, _, times = word.partition("*")
        uses += [name] * int(times or 1)
    return uses


def grid() -> Trace:
    return [name for name in sorted(SIZES_GB) for _ in range(20)]


def loop(rng: random.Random) -> Trace:
    names = rng.sample(sorted(SIZES_GB), 5)
    while sum(SIZES_GB[name] for name in names) <= BUDGET_GB:
        names = rng.sample(sorted(SIZES_GB), 5)
    return names * 20


def zipf(rng: random.Random, length: int) -> tuple[Trace, dict[str, float]]:
    names = rng.sample(sorted(SIZES_GB), len(SIZES_GB))
    weights = {name: 1 / rank for rank, name in enumerate(names, 1)}
    total = sum(weights.values())
    chances = {name: weight / total for name, weight in weights.items()}
    return rng.choices(list(chances), list(chances.values()), k=length), chances


def notebook(rng: random.Random, length: int) -> tuple[Trace, list[Mapping[str, float]]]:
    """Return what somebody with favourites uses, and at each use their habits as weights of models."""
    names = sorted(SIZES_GB)
    favourites = rng.sample(names, 3)
    compared = rng.sample(names, rng.randint(3, 5))
    uses: Trace = []
    habits: list[Mapping[str, float]] = []
    while len(uses) < length:
        doing = rng.random()
        if doing < 0.50:  # cells with one favourite
            uses += rng.choices(favourites, [4, 2, 1]) * rng.randint(1, 8)
        elif doing < 0.65:  # two in turn: one answers, another judges or embeds
            uses += rng.sample(favourites, 2) * rng.randint(1, 4)
        elif doing < 0.80:  # the cell that compares is run again, its prompts changed
            uses += compared * rng.randint(1, 3)
        elif doing < 0.90:  # something else is tried
            uses += [rng.choice(names)] * rng.randint(1, 4)
        elif doing < 0.95:
            favourites[rng.randrange(3)] = rng.choice([n for n in names if n not in favourites])
        else:
            compared = rng.sample(names, rng.randint(3, 5))
        now = {name: 0.3 + 3 * (name in favourites) + 3 * (name in compared) for name in names}
        habits += [now] * (len(uses) - len(habits))
    return uses[:length], habits[:length]


def moved_gb(trace: Trace, leave: Leave) -> int:
    """Return what is loaded when `leave` decides who goes."""
    inside: dict[str, int] = {}  # in order of last use
    moved = 0
    for now, name in enumerate(trace):
        if name not in inside:
            moved += SIZES_GB[name]
            for victim in leave(inside, name, now):
                del inside[victim]
        inside[name] = inside.pop(name, SIZES_GB[name])
        assert sum(inside.values()) <= BUDGET_GB
    return moved


def until_it_fits(order: Sequence[str], inside: Mapping[str, int], name: str) -> list[str]:
    over = sum(inside.values()) + SIZES_GB[name] - BUDGET_GB
    victims = []
    for victim in order:
        if over <= 0:
            break
        victims.append(victim)
        over -= inside[victim]
    return victims


def lru(inside: Mapping[str, int], name: str, now: int) -> list[str]:
    return until_it_fits(list(inside), inside, name)


def keep_alive(inside: Mapping[str, int], name: str, now: int) -> list[str]:
    return until_it_fits(sorted(inside), inside, name)


def one_slot(inside: Mapping[str, int], name: str, now: int) -> list[str]:
    return list(inside)


def planned(inside: Mapping[str, int], name: str, chances: Mapping[str, float]) -> list[str]:
    """Return who leaves by the residency's own planner."""
    seats = [
        Seat(
            each,
            {DEVICE: size * GB},
            reuse=chances[each],
            idle_s=float(len(inside) - n),
            moves=(Move("free", {DEVICE: size * GB}, cost_s=float(size)),),
        )
        for n, (each, size) in enumerate(inside.items())
    ]
    decided = plan(seats, {DEVICE: SIZES_GB[name] * GB}, {DEVICE: BUDGET_GB * GB})
    assert decided.verdict == "fits"
    return [victim for victim, _ in decided.moves]


def ours(trace: Trace) -> Leave:
    """Return the residency's policy. It sees no more of the trace than has passed."""
    reuse = {name: Reuse() for name in SIZES_GB}
    # A turn begins when another model is used than the last time.
    turns = list(itertools.accumulate(map(str.__ne__, trace, ["", *trace])))
    seen = 0

    def leave(inside: Mapping[str, int], name: str, now: int) -> list[str]:
        nonlocal seen
        for n in range(seen, now):
            reuse[trace[n]].used(turns[n])
        seen = now
        turn = turns[now - 1] if now else 0
        return planned(inside, name, {each: reuse[each].chance(turn) for each in inside})

    return leave


def told(habits: Sequence[Mapping[str, float]]) -> Leave:
    return lambda inside, name, now: planned(inside, name, habits[now])


Inside = frozenset[str]


def after_load(inside: Inside, name: str) -> Iterator[Inside]:
    """Yield each set that a load can leave, none of which could have kept one more."""
    room = BUDGET_GB - SIZES_GB[name]
    stays = [
        frozenset(kept)
        for count in range(len(inside) + 1)
        for kept in itertools.combinations(sorted(inside), count)
        if sum(SIZES_GB[each] for each in kept) <= room
    ]
    for kept in stays:
        if not any(kept < other for other in stays):
            yield kept | {name}


class Futures:
    """The sets that can follow a set, each worked out once."""

    def __init__(self) -> None:
        self.known: dict[tuple[Inside, str], list[Inside]] = {}

    def of(self, inside: Inside, name: str) -> list[Inside]:
        if (inside, name) not in self.known:
            self.known[inside, name] = list(after_load(inside, name))
        return self.known[inside, name]


FUTURES = Futures()


def clairvoyant_gb(trace: Trace) -> int:
    """Return the least bytes any policy loads. To evict only when room is needed is never worse."""
    least = {frozenset[str](): 0}
    for name in trace:
        after: dict[Inside, int] = {}
        for inside, moved in least.items():
            if name in inside:
                after[inside] = min(moved, after.get(inside, moved))
                continue
            for then in FUTURES.of(inside, name):
                total = moved + SIZES_GB[name]
                after[then] = min(total, after.get(then, total))
        least = after
    return min(least.values())


def knowing(chances: Mapping[str, float]) -> Leave:
    """Return the best policy that knows the chances: the least mean bytes a use, in the long run."""
    values = dict.fromkeys(reachable(), 0.0)
    while True:
        after = {inside: mean_gb(inside, chances, values) for inside in values}
        change = [after[inside] - values[inside] for inside in values]
        base = min(after.values())
        values = {inside: value - base for inside, value in after.items()}
        if max(change) - min(change) < 1e-6:
            break

    def leave(inside: Mapping[str, int], name: str, now: int) -> list[str]:
        then = min(
            FUTURES.of(frozenset(inside), name), key=lambda kept: (values[kept], sorted(kept))
        )
        return sorted(set(inside) - then)

    return leave


def reachable() -> list[Inside]:
    """Return all sets that can be in memory."""
    found = {frozenset[str]()}
    todo = list(found)
    while todo:
        inside = todo.pop()
        for name in SIZES_GB.keys() - inside:
            new = set(FUTURES.of(inside, name)) - found
            found |= new
            todo += new
    return sorted(found, key=sorted)


def mean_gb(inside: Inside, chances: Mapping[str, float], values: Mapping[Inside, float]) -> float:
    """Return what the next use loads on average, and what is to come after it."""
    total = 0.0
    for name, chance in chances.items():
        if name in inside:
            total += chance * values[inside]
        else:
            best = min(values[then] for then in FUTURES.of(inside, name))
            total += chance * (SIZES_GB[name] + best)
    return total


POLICIES = ("ours", "lru", "keep-alive", "one slot", "informed", "clairvoyant")


def results(trace: Trace, informed: Leave | None = None) -> dict[str, float]:
    """Return what each policy loads on a trace, in GB."""
    found: dict[str, float] = {
        "ours": moved_gb(trace, ours(trace)),
        "lru": moved_gb(trace, lru),
        "keep-alive": moved_gb(trace, keep_alive),
        "one slot": moved_gb(trace, one_slot),
        "clairvoyant": clairvoyant_gb(trace),
    }
    if informed is not None:
        found["informed"] = moved_gb(trace, informed)
    return found


def measure(seeds: int, length: int) -> dict[str, list[dict[str, float]]]:
    """Return the results of each trace, by kind."""
    found: dict[str, list[dict[str, float]]] = {"grid": [results(grid())]}
    found["session"] = [results(session())]
    for seed in range(seeds):
        found.setdefault("loop", []).append(results(loop(random.Random(seed))))
        uses, habits = notebook(random.Random(seed), length)
        found.setdefault("notebook", []).append(results(uses, told(habits)))
        uses, chances = zipf(random.Random(seed), length)
        found.setdefault("zipf", []).append(results(uses, knowing(chances)))
    return found


def cell(ratios: Sequence[float]) -> str:
    worst = f" ({max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.mean(ratios):.2f}{worst}".rjust(13)


def main() -> None:
    """Print GB over the clairvoyant's, the mean of all traces of a kind, and the worst."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=24, help="traces of each drawn kind")
    parser.add_argument("--length", type=int, default=500, help="uses in each drawn trace")
    options = parser.parse_args()
    found = measure(options.seeds, options.length)
    print(f"GB loaded over the clairvoyant's: mean (worst) of {options.seeds} traces where drawn")
    print("trace     " + "".join(name.rjust(13) for name in POLICIES) + "    GB")
    for kind, runs in found.items():
        columns = [
            cell([run[name] / run["clairvoyant"] for run in runs]) if name in runs[0] else " " * 13
            for name in POLICIES
        ]
        least = statistics.mean(run["clairvoyant"] for run in runs)
        print(f"{kind:10}{''.join(columns)}{least:6.0f}")
    for kind in ("zipf", "notebook"):
        ratios = [run["ours"] / run["informed"] for run in found[kind]]
        print(f"{kind}: ours over informed {cell(ratios).strip()}")
    print(f"grid: all models once are {sum(SIZES_GB.values())} GB")


if __name__ == "__main__":
    main()
