"""Write the demo family's model card from its measured scores."""

from __future__ import annotations

import json
from pathlib import Path

from nbproviders.demo.gguf import QUANTS
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

{gguf}Hard tasks: {hard}. Prompts look like `12+30=`, `123+456=`, `upper otter:`, `reverse otter:`,
`sort otter:`, `opposite hot:`, `capital France:`.
"""

_GGUF_TEXT = """## For llama.cpp

Converted from the models of these names, with tokenizer and chat template within. Measured on the
same items through llama-cpp-python, by the template in the file. Norms are float32 in each; in Q4_0
the embeddings are Q8_0, as llama.cpp's own quantizer has them.

{table}

"""


def write_card(folder: Path, context_tokens: int = 256) -> None:
    """Write ``MODEL_CARD.md`` into the folder that holds ``scores.json``."""
    known = json.loads((folder / "scores.json").read_text())
    models = [(name, entry["parameters"], entry["scores"]) for name, entry in known.items()]
    files = [
        (f"{name}-{quant}.gguf", entry["gguf"][quant]["bytes"], entry["gguf"][quant]["scores"])
        for name, entry in known.items()
        for quant in QUANTS
        if quant in entry.get("gguf", {})
    ]
    text = _TEXT.format(
        table=_table("model", "parameters", models),
        gguf=_GGUF_TEXT.format(table=_table("file", "bytes", files)) if files else "",
        hard=", ".join(HARD_TASKS),
        context=context_tokens,
    )
    (folder / "MODEL_CARD.md").write_text(text)


def _table(kind: str, size: str, rows: list[tuple[str, int, dict[str, float]]]) -> str:
    heads = [f"{task} (recall)" if task in RECALL_TASKS else task for task in TASKS]
    lines = [
        f"| {kind} | {size} | " + " | ".join(heads) + " |",
        "|---|---|" + "---|" * len(TASKS),
    ]
    for name, amount, scores in rows:
        shares = " | ".join(f"{scores[task]:.1%}" for task in TASKS)
        lines.append(f"| {name} | {amount:,} | {shares} |")
    return "\n".join(lines)
