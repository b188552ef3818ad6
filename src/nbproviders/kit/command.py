"""``nbproviders new-provider``: the command line's way to a package of one's own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nbproviders.kit.project import STYLES, new_provider, next_steps

_TEXT = "Write the package of a provider of your own, which installs and passes its tests."


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of the program; it sets ``run``, which returns the exit code."""
    made = commands.add_parser(
        "new-provider",
        help=_TEXT,
        description=_TEXT,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["styles:", *(f"  {name:10}{s.about}" for name, s in STYLES.items())]),
    )
    made.add_argument("name", help="the project's name, such as my-provider")
    # No choices=: without a style, or with another, what each is for is told.
    made.add_argument("--style", default="", metavar="|".join(STYLES), help="see below")
    made.add_argument(
        "--into", type=Path, default=Path(), metavar="FOLDER", help="where to write it (here)"
    )
    made.set_defaults(run=_run)


def _run(options: argparse.Namespace, _: Sequence[str]) -> int:
    folder = new_provider(options.name, options.style, options.into)
    print(f"{folder} is written.")
    for step in next_steps(folder, options.style):
        print(f"  {step}")
    return 0
