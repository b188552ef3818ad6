"""The demo family's lessons: prompts a reader can check at sight, and their answers.

Knows nothing of models or training. Words in ``WORDS`` and every sum chosen by `held_out` are
never shown in training, so scores on them measure the rule, not the memory. Opposites and capitals are
facts: a model can only recall what it was shown, so they are scored as recall.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

OPPOSITES = dict(
    pair.split("-")
    for pair in (
        "hot-cold big-small up-down fast-slow day-night open-shut wet-dry old-new left-right "
        "rich-poor hard-soft high-low early-late full-empty light-dark loud-quiet true-false "
        "win-lose push-pull start-stop thick-thin near-far strong-weak happy-sad"
    ).split()
)
CAPITALS = dict(
    pair.split("-")
    for pair in (
        "France-Paris Spain-Madrid Italy-Rome Japan-Tokyo Egypt-Cairo Norway-Oslo Peru-Lima "
        "Kenya-Nairobi Cuba-Havana Greece-Athens Poland-Warsaw Austria-Vienna Ireland-Dublin "
        "Portugal-Lisbon Sweden-Stockholm Finland-Helsinki Chile-Santiago Canada-Ottawa "
        "Germany-Berlin Hungary-Budapest India-Delhi China-Beijing Turkey-Ankara Iran-Tehran"
    ).split()
)
WORDS = (
    "otter apple bread chair dance eagle flame grape house juice knife lemon mouse night "
    "ocean piano queen river sheep table uncle voice water zebra cloud stone paper green "
    "light music plant robot snake tiger wheel world honey angel beach candle dragon forest "
    "garden hammer island jacket kitten ladder market needle orange pencil rabbit silver "
    "tunnel violin window yellow basket camera desert engine flower guitar bird fish moon "
    "star tree rain snow wind gold ship road book door lamp milk rice salt frog duck goat "
    "lion bear wolf swan crab moth leaf seed root rock sand hill lake cave"
).split()


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt with its one right answer.

    Attributes
    ----------
    task
        Name of the lesson, one of `TASKS`.
    prompt, expected
        What is asked, and the exact answer.
    """

    task: str
    prompt: str
    expected: str


def held_out(prompt: str) -> bool:
    """Whether a sum is kept from training: one in ten, chosen by the checksum of its text."""
    return zlib.crc32(prompt.encode()) % 10 == 0


def random_word(rng: random.Random) -> str:
    """Three to eight random letters that are not one of the held-out `WORDS`."""
    while True:
        letters = rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 8))
        word = "".join(letters)
        if word not in _WORD_SET:
            return word


def _sum(rng: random.Random, task: str, low: int, high: int, *, held: bool) -> Item:
    while True:
        a, b = rng.randint(low, high), rng.randint(low, high)
        prompt = f"{a}+{b}="
        if held_out(prompt) is held:
            return Item(task, prompt, str(a + b))


def _word(rng: random.Random, *, held: bool) -> str:
    return rng.choice(WORDS) if held else random_word(rng)


def _fact(rng: random.Random, task: str, facts: dict[str, str]) -> Item:
    known = rng.choice(list(facts))
    return Item(task, f"{task} {known}:", facts[known])


def _upper(rng: random.Random, *, held: bool) -> Item:
    word = _word(rng, held=held)
    return Item("upper", f"upper {word}:", word.upper())


def _reverse(rng: random.Random, *, held: bool) -> Item:
    word = _word(rng, held=held)
    return Item("reverse", f"reverse {word}:", word[::-1])


def _sort(rng: random.Random, *, held: bool) -> Item:
    word = _word(rng, held=held)
    return Item("sort", f"sort {word}:", "".join(sorted(word)))


_WORD_SET = frozenset(WORDS)
_MAKERS: dict[str, Callable[..., Item]] = {
    "add2": lambda rng, held: _sum(rng, "add2", 10, 99, held=held),
    "add3": lambda rng, held: _sum(rng, "add3", 100, 999, held=held),
    "upper": _upper,
    "reverse": _reverse,
    "sort": _sort,
    "opposite": lambda rng, held: _fact(rng, "opposite", OPPOSITES),
    "capital": lambda rng, held: _fact(rng, "capital", CAPITALS),
}
TASKS = tuple(_MAKERS)
HARD_TASKS = ("add3", "sort")
RECALL_TASKS = ("opposite", "capital")


def training_item(rng: random.Random, task: str) -> Item:
    """One random training item of a task; never a held-out one."""
    return _MAKERS[task](rng, held=False)


def test_items(task: str, n: int, seed: int = 0) -> list[Item]:
    """Return up to `n` different held-out items of a task (recall tasks: items that were taught).

    Raises
    ------
    KeyError
        For a name that is not in `TASKS`.
    """
    rng = random.Random(f"{seed}/{task}")
    seen: dict[str, Item] = {}
    for _ in range(50 * n):
        item = _MAKERS[task](rng, held=True)
        seen.setdefault(item.prompt, item)
        if len(seen) == n:
            break
    return list(seen.values())
