"""The author's kit: a package for a provider of one's own, written to be filled in.

It installs as it is written, is found by its entry points, and passes its own tests. It knows names and
files; what a provider does is in the templates beside it, one folder for each way of writing one.
"""

from __future__ import annotations

from nbproviders.kit.command import add_command
from nbproviders.kit.names import Names
from nbproviders.kit.project import STYLES, new_provider, next_steps

__all__ = ["STYLES", "Names", "add_command", "new_provider", "next_steps"]
