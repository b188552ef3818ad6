"""The Python blocks of the three documents on dotevals' providers, as they stand, imports pointed here."""

from __future__ import annotations

import os
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("NBPROVIDERS_TEST_SEEDS") or REPOSITORY.parent / "shared" / "seeds")
NAMES = ("dotevals-create-a-plugin", "doteval-provider-pattern", "dotevals-providers-api")
FOUND = {name: path for name in NAMES for path in sorted(FOLDER.glob(f"{name}*"))[:1]}

IMPORTS = {
    r"from doteval(s\.providers)? import ModelProvider, ModelHandle": (
        "from nbproviders.abc import ModelProvider, ModelHandle, ResourceHandle"
    ),
    r"from \.provider import": "from provider import",
    r"from mypackage import": "from provider import",
}


def block(name: str, words: str) -> str:
    """Return the one Python block of a document that holds these words."""
    text = FOUND[name].read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    [found] = [one for one in blocks if words in one]
    for old, new in IMPORTS.items():
        found = re.sub(old, new, found)
    return found
