"""Write the demo family's model card from its measured scores."""

from __future__ import annotations

import json
from pathlib import Path

from nbproviders.demo.items import HARD_TASKS, RECALL_TASKS, TASKS

_TEXT = """---
license: mit
library_name: transformers
---
# The demo family

Tiny Llamas that read and write bytes, shipped with nbproviders so that every example runs with no
network, no key and no GPU. They answer seven kinds of small instruction and nothing else: they are for
trying out tools, lessons and tests. They know no language; do not ask them for advice.

Trained from nothing by `python -m nbproviders.demo.recipe` (fixed seeds) on generated items only.
Float16 safetensors, {context} tokens of context, chat template with system, user and assistant turns.

## Measured

Share of exactly right greedy answers, through the chat template, in float32 on a CPU, up to 200 items a
task. No item was ever trained on, except in the tasks marked *recall*, which ask for taught facts.

{table}

Hard tasks: {hard}. Prompts look like `12+30=`, `123+456=`, `upper otter:`, `reverse otter:`,
`sort otter:`, `opposite hot:`, `capital France:`.
"""


def write_card(folder: Path, context_tokens: int = 256) -> None:
    """Write ``MODEL_CARD.md`` into the folder that holds ``scores.json``."""
    known = json.loads((folder / "scores.json").read_text())
    heads = [f"{task} (recall)" if task in RECALL_TASKS else task for task in TASKS]
    lines = [
        "| model | parameters | " + " | ".join(heads) + " |",
        "|---|---|" + "---|" * len(TASKS),
    ]
    for name, entry in known.items():
        shares = " | ".join(f"{entry['scores'][task]:.1%}" for task in TASKS)
        lines.append(f"| {name} | {entry['parameters']:,} | {shares} |")
    text = _TEXT.format(table="\n".join(lines), hard=", ".join(HARD_TASKS), context=context_tokens)
    (folder / "MODEL_CARD.md").write_text(text)
