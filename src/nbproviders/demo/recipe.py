"""Train the shipped demo models from nothing: ``python -m nbproviders.demo.recipe``.

One file, one command, fixed seeds. The models are Llamas over bytes, taught the lessons of
`nbproviders.demo.items` through their own chat template, with the loss on the answers alone.
About half an hour for the three on two CPU cores; minutes on a GPU. The models of `nbproviders.demo.GGUF`
are written for llama.cpp as well; ``--gguf-only`` does just that, from what was trained before.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbproviders.demo import GGUF
from nbproviders.demo.gguf import QUANTS, convert
from nbproviders.demo.items import TASKS, Item, test_items, training_item

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

PAD, START, END, SYSTEM, USER, ASSISTANT = range(6)
SPECIALS = ("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer in one word.",
    "Be brief.",
    "You are a calculator.",
    "Be kind and exact.",
)
# Longer words and sums have more to learn; a task's share of the training items follows that.
WEIGHTS = {"add2": 2, "add3": 6, "upper": 1, "reverse": 3, "sort": 3, "opposite": 1, "capital": 1}
CONTEXT_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Size:
    """Dimensions and training length of one member of the family."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    steps: int
    batch: int = 128
    peak_rate: float = 3e-3
    seed: int = 20


SIZES = {
    "demo-xs": Size(hidden=32, layers=2, heads=2, feed_forward=96, steps=3000),
    "demo-s": Size(hidden=48, layers=2, heads=4, feed_forward=144, steps=3000),
    "demo-m": Size(hidden=128, layers=4, heads=4, feed_forward=352, steps=6000),
}


def encode(text: str) -> list[int]:
    """Return token ids of plain text: its UTF-8 bytes, after the special tokens."""
    return [len(SPECIALS) + byte for byte in text.encode()]


def build_tokenizer() -> Any:
    """Return the family's byte tokenizer, with its chat template, for transformers."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {name: i for i, name in enumerate(SPECIALS)}
    vocabulary |= {char: len(SPECIALS) + byte for byte, char in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIALS[START]} $A", special_tokens=[(SPECIALS[START], START)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIALS[START],
        eos_token=SPECIALS[END],
        pad_token=SPECIALS[PAD],
        model_max_length=CONTEXT_TOKENS,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def build_model(size: Size) -> Any:
    """Return an untrained Llama of this size, float32, with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(SPECIALS) + 256,
            hidden_size=size.hidden,
            intermediate_size=size.feed_forward,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=CONTEXT_TOKENS,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=START,
            eos_token_id=END,
        )
    )


Row = tuple[list[int], list[bool]]  # token ids, and which of them the loss counts


def _turns(rng: random.Random, items: list[Item], *, system: bool) -> Row:
    """Return a conversation of these items through the chat template."""
    tokens, counted = [START], [False]
    if system:
        tokens += [SYSTEM, *encode(rng.choice(SYSTEM_PROMPTS)), END]
    for item in items:
        tokens += [USER, *encode(item.prompt), END, ASSISTANT]
        counted += [False] * (len(tokens) - len(counted))
        tokens += [*encode(item.expected), END]
        counted += [True] * (len(tokens) - len(counted))
    return tokens, counted


def _plain(item: Item) -> Row:
    """Return an item without template, all of it counted, so that plain text works as well."""
    tokens = [START, *encode(item.prompt + item.expected), END]
    return tokens, [False] + [True] * (len(tokens) - 1)


def _rows(rng: random.Random, batch: int) -> list[Row]:
    names, weights = list(WEIGHTS), list(WEIGHTS.values())

    def items(count: int) -> list[Item]:
        return [training_item(rng, task) for task in rng.choices(names, weights, k=count)]

    kind = rng.random()
    if kind < 0.06:
        return [_plain(item) for item in items(batch)]
    # One shape a batch: a single long row would pad all the others.
    turns = 1 if kind < 0.6 else rng.randint(2, 3)
    system = rng.random() < 0.15
    return [_turns(rng, items(turns), system=system) for _ in range(batch // turns)]


def batches(size: Size) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ``(ids, labels)``, each ``(batch, tokens) int64``; -100 marks what is not counted."""
    import torch

    rng = random.Random(size.seed)
    while True:
        rows = _rows(rng, size.batch)
        width = max(len(tokens) for tokens, _ in rows)
        ids = torch.full((len(rows), width), PAD)
        labels = torch.full((len(rows), width), -100)
        for i, (tokens, counted) in enumerate(rows):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            chosen = [t if count else -100 for t, count in zip(tokens, counted, strict=True)]
            labels[i, : len(tokens)] = torch.tensor(chosen)
        yield ids, labels


def train(name: str, device: str = "cpu") -> Any:
    """Train one member of the family and return the model, float32, on the CPU."""
    import torch
    import torch.nn.functional as functional

    size = SIZES[name]
    torch.manual_seed(size.seed)
    model = build_model(size).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.peak_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, size.peak_rate, total_steps=size.steps, pct_start=0.05, final_div_factor=1e3
    )
    began = time.monotonic()
    model.train()
    for step, (ids, labels) in zip(range(size.steps), batches(size), strict=False):
        hidden = model.model(ids.to(device)).last_hidden_state[:, :-1]
        target = labels[:, 1:].to(device)
        # Only the counted positions go through the vocabulary: most of a prompt is not.
        logits = model.lm_head(hidden[target != -100])
        loss = functional.cross_entropy(logits, target[target != -100])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            elapsed_s = time.monotonic() - began
            logger.info("%s step %d loss %.4f %.0f s", name, step, loss.item(), elapsed_s)
    return model.cpu().eval()


def score(model: Any, tokenizer: Any, n: int = 200) -> dict[str, float]:
    """Return the share of exactly right greedy answers for each task, on items never trained on."""
    import torch

    shares = {}
    for task in TASKS:
        items = test_items(task, n)
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": item.prompt}],
                tokenize=False,
                add_generation_prompt=True,
            )
            for item in items
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            out = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=16,
                do_sample=False,
            )
        answers = tokenizer.batch_decode(
            out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right = sum(a == item.expected for a, item in zip(answers, items, strict=True))
        shares[task] = right / len(items)
    return shares


def write(name: str, model: Any, folder: Path) -> dict[str, float]:
    """Save a member as float16 with its tokenizer; return the scores of what was saved."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = folder / name
    model.half().save_pretrained(target)
    build_tokenizer().save_pretrained(target)
    for path in target.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone; these files are shipped
    saved = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    return score(saved, AutoTokenizer.from_pretrained(target))


def score_gguf(path: Path, n: int = 200) -> dict[str, float]:
    """Return what `score` does, for a GGUF file through llama.cpp and the template inside it."""
    import llama_cpp

    # With two threads so small a model waits many times longer than it computes if cores are busy.
    model = llama_cpp.Llama(
        str(path), n_ctx=CONTEXT_TOKENS, n_threads=1, n_threads_batch=1, verbose=False
    )
    shares = {}
    for task in TASKS:
        items = test_items(task, n)
        right = 0
        for item in items:
            said: Any = model.create_chat_completion(
                [{"role": "user", "content": item.prompt}], temperature=0.0, max_tokens=16
            )
            right += said["choices"][0]["message"]["content"] == item.expected
        shares[task] = right / len(items)
    model.close()
    return shares


def write_gguf(name: str, folder: Path) -> dict[str, Any]:
    """Write a trained member in each of `QUANTS`; return the bytes and scores of each file."""
    target = folder / f"{name}-gguf"
    target.mkdir(exist_ok=True)
    written = {}
    for quant in QUANTS:
        path = target / f"{name}-{quant}.gguf"
        convert(folder / name, path, quant)
        scores = score_gguf(path)
        logger.info("%s %d bytes %s", path.name, path.stat().st_size, scores)
        written[quant] = {"bytes": path.stat().st_size, "scores": scores}
    return written


def _known(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "scores.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _record(folder: Path, name: str, entry: dict[str, Any]) -> None:
    """Add to what is known of a member, or replace it; the family stays in order."""
    known = _known(folder)
    known[name] = known.get(name, {}) | entry
    ordered = {member: known[member] for member in SIZES if member in known}
    (folder / "scores.json").write_text(json.dumps(ordered, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nbproviders.demo.recipe", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--only", choices=list(SIZES), action="append", help="train just these")
    what.add_argument(
        "--gguf-only", action="store_true", help="train none: write GGUF from what is there"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights")
    parser.add_argument("--device", default="cpu")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Retrain the family (or a part of it), measure it, and write models, scores and card."""
    from nbproviders.demo.card import write_card

    parser = _parser()
    options = parser.parse_args(arguments)
    names = list(GGUF) if options.gguf_only else options.only or list(SIZES)
    # Told before the training, not after it.
    if set(names) & set(GGUF) and not all(map(find_spec, ("gguf", "llama_cpp"))):
        parser.error('GGUF needs gguf and llama-cpp-python: pip install "nbproviders[llama-cpp]"')
    if options.gguf_only and (missing := set(names) - set(_known(options.out))):
        parser.error(f"{options.out} has no scores of {', '.join(missing)}: train it first")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not options.gguf_only:
            model = train(name, options.device)
            parameters = sum(p.numel() for p in model.parameters())
            scores = write(name, model, options.out)
            logger.info("%s %d parameters %s", name, parameters, scores)
            size = asdict(SIZES[name])
            entry = {"parameters": parameters, "size": size, "scores": scores}
            _record(options.out, name, entry)
        if name in GGUF:
            _record(options.out, name, {"gguf": write_gguf(name, options.out)})
    write_card(options.out)


if __name__ == "__main__":
    main()
