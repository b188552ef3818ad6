"""An examination as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable

from nbproviders.doctor.finding import Finding

_WIDTH = 100
_MARKS = {"ok": "ok", "note": "note", "problem": "WRONG"}
_NAME, _MARK = 20, 6


def tell(findings: Iterable[Finding], say: Callable[[str], object]) -> int:
    """Say each finding as it comes, and at the end what is wrong; return how many problems there are.

    Parameters
    ----------
    findings
        As `examine` yields them.
    say
        Called with each line.
    """
    area, problems = "", 0
    for one in findings:
        if one.area != area:
            say(f"\n{one.area.capitalize()}" if area else one.area.capitalize())
            area = one.area
        for line in _lines(one):
            say(line)
        problems += one.state == "problem"
    told = {0: "Nothing is wrong.", 1: "1 thing is wrong."}
    say(f"\n{told.get(problems, f'{problems} things are wrong.')}")
    return problems


def _lines(one: Finding) -> list[str]:
    head = f"  {_MARKS[one.state]:{_MARK}}{one.name:{_NAME}}"
    if not head.endswith(" "):
        head += " "
    indent = " " * (2 + _MARK + _NAME)
    text = " ".join(one.said.split())
    lines = textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=head,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    if one.hint:
        lines += textwrap.wrap(
            one.hint,
            _WIDTH,
            initial_indent=f"{indent}> ",
            subsequent_indent=f"{indent}  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines or [head.rstrip()]
