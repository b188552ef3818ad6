"""The GGUF files are the same model as the safetensors: tokens, probabilities, answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.demo import QUANTS, recipe
from nbproviders.demo.gguf import convert
from nbproviders.errors import ConfigurationError, ProviderError

gguf = pytest.importorskip("gguf", reason="writes and reads GGUF files")
llama_cpp = pytest.importorskip("llama_cpp", reason="runs GGUF files")
torch = pytest.importorskip("torch", reason="runs the model the files are compared with")
transformers = pytest.importorskip("transformers", reason="loads the model to compare with")

SOURCE = nbp.demo.path("demo-m")
FILES = {quant: nbp.demo.gguf_path("demo-m") / f"demo-m-{quant}.gguf" for quant in QUANTS}
GGML_F32 = 0  # for a cache as exact as transformers' own
TEXTS = (
    *("", "a", " a", "  a  b  ", "a\nb\r\n\tc\n\n", "\x00\x01\x1b\x7f", "don't I'll 123,456.78"),
    *(
        "äöüß ÄÖÜ",
        "naïve café",
        "e\u0301",
        "日本語 العربية हिन्दी",
        "🙂👍🏽 👩\u200d👩\u200d👧",
        "\U0010ffff",
    ),
    *(
        "\ufeffmark",
        "\u00a0\u3000\u2028\x85",
        "\u2581x\u2581",
        "ÿ ÿÿ",
        "Ġ Ċ",
        "<|end|",
        "<|",
        "</s>",
    ),
    *("<|bos|>", "x<|bos|>y", "<|user|>hi<|end|><|assistant|> ", "<|pad|><|pad|>", "<|start|>"),
)


def open_file(quant: str, **options: Any) -> Any:
    return llama_cpp.Llama(
        str(FILES[quant]), n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False, **options
    )


@pytest.fixture(scope="module")
def exact() -> Iterator[Any]:
    """Return the F16 file, open, with all logits and a float32 cache."""
    model = open_file("F16", logits_all=True, type_k=GGML_F32, type_v=GGML_F32)
    yield model
    model.close()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(SOURCE)


@pytest.fixture(scope="module")
def reference() -> Any:
    """Return the model as transformers runs it, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(SOURCE, dtype=torch.float32).eval()


def templated(tokenizer: Any, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def sweep() -> Iterator[str]:
    """Yield every character of the first plane, many at a time, and some of each higher one."""
    points = [p for p in range(0x10000) if not 0xD800 <= p < 0xE000]
    points += range(0x10000, 0x110000, 257)
    for first in range(0, len(points), 500):
        yield "".join(map(chr, points[first : first + 500]))


@pytest.mark.parametrize("begin", [True, False], ids=["begun", "bare"])
@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
def test_tokens_equal_those_of_transformers(
    exact: Any, tokenizer: Any, begin: bool, special: bool
) -> None:
    """Any text gives the same ids, with special tokens read as such or as the text they are."""
    texts = [*TEXTS, *sweep(), *(task["prompt"] for task in nbp.demo.tasks(200))]
    for text in texts:
        want = tokenizer(text, add_special_tokens=begin, split_special_tokens=not special)
        found = exact.tokenize(text.encode(), add_bos=begin, special=special)
        assert found == want["input_ids"], text


def test_templated_prompts_have_equal_tokens(exact: Any, tokenizer: Any) -> None:
    """Every demo prompt gives the same ids through the chat template."""
    for task in nbp.demo.tasks(200):
        text = templated(tokenizer, task["prompt"])
        want = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert exact.tokenize(text.encode(), add_bos=False, special=True) == want


def test_tokens_give_back_the_text(exact: Any) -> None:
    """No byte is lost, changed or added on the way to tokens and back."""
    for text in [*TEXTS, *sweep()]:
        ids = exact.tokenize(text.encode(), add_bos=False, special=True)
        assert exact.detokenize(ids, special=True).decode() == text


def test_probabilities_agree_with_transformers(exact: Any, tokenizer: Any, reference: Any) -> None:
    """At each token of some prompts, F16 is as near to float32 as float16 activations allow."""
    for task in nbp.demo.tasks(3):
        ids = tokenizer(templated(tokenizer, task["prompt"]), add_special_tokens=False)["input_ids"]
        exact.reset()
        exact.eval(ids)
        found = torch.tensor(exact.scores[: len(ids)]).softmax(-1)
        with torch.inference_mode():
            want = reference(torch.tensor([ids])).logits[0].softmax(-1)
        assert (found - want).abs().max().item() < 5e-3, task["prompt"]


def test_greedy_answers_agree_with_transformers(exact: Any, tokenizer: Any, reference: Any) -> None:
    """Through its own chat template, the F16 file answers word for word the same, right or wrong."""
    asked = [task["prompt"] for task in nbp.demo.tasks(20)]
    texts = [templated(tokenizer, prompt) for prompt in asked]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.inference_mode():
        out = reference.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=16,
            do_sample=False,
        )
    answers = out[:, inputs["input_ids"].shape[1] :]
    want = tokenizer.batch_decode(answers, skip_special_tokens=True)
    for prompt, answer in zip(asked, want, strict=True):
        said = exact.create_chat_completion(
            [{"role": "user", "content": prompt}], temperature=0.0, max_tokens=16
        )
        assert said["choices"][0]["message"]["content"] == answer, prompt
        assert said["choices"][0]["finish_reason"] == "stop", prompt


@pytest.mark.parametrize("quant", QUANTS)
def test_scores_are_those_told(quant: str) -> None:
    """Each file is as often right as the scores say, and as large."""
    told = json.loads((SOURCE.parent / "scores.json").read_text())["demo-m"]["gguf"][quant]
    assert FILES[quant].stat().st_size == told["bytes"]
    found = recipe.score_gguf(FILES[quant], 60)
    for task, share in found.items():
        assert share == pytest.approx(told["scores"][task], abs=0.05), task
    assert min(found.values()) >= 0.95


def test_quantising_hurts_the_smallest_model() -> None:
    """Its four bits are visibly worse than its sixteen, which a lesson on quantising can show."""
    told = json.loads((SOURCE.parent / "scores.json").read_text())["demo-xs"]["gguf"]
    shares = {quant: sum(told[quant]["scores"].values()) for quant in QUANTS}
    assert shares["Q4_0"] < shares["F16"] - 0.5
    assert told["Q4_0"]["bytes"] < told["F16"]["bytes"] / 2


def test_files_load_without_a_warning() -> None:
    """llama.cpp finds nothing to remark in them: neither in the tokenizer nor in a token's name."""
    code = (
        "import ctypes, sys, llama_cpp\n"
        "seen = []\n"
        "@llama_cpp.llama_log_callback\n"
        "def note(level, text, _):\n"
        "    seen.append((level, text))\n"
        "llama_cpp.llama_log_set(note, ctypes.c_void_p(0))\n"
        "for path in sys.argv[1:]:\n"
        "    llama_cpp.Llama(path, n_ctx=256, verbose=True).close()\n"
        "assert any(b'general.name' in text for _, text in seen), 'nothing was noted'\n"
        "print('REMARKS', [text for level, text in seen if level in (3, 4)])\n"  # WARN, ERROR
    )
    command = [sys.executable, "-c", code, *map(str, FILES.values())]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "REMARKS []"


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0"])
def test_quantized_as_llama_cpp_does(quant: str, tmp_path: Path) -> None:
    """Every tensor has the type and the very bytes that llama.cpp's own quantizer gives it."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = gguf.LlamaFileType[f"MOSTLY_{quant}"]
    made = tmp_path / "made.gguf"
    failed = llama_cpp.llama_model_quantize(str(FILES["F16"]).encode(), str(made).encode(), options)
    assert not failed
    want = {tensor.name: tensor for tensor in gguf.GGUFReader(made).tensors}
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(FILES[quant]).tensors}
    assert found.keys() == want.keys()
    for name, tensor in found.items():
        assert tensor.tensor_type == want[name].tensor_type, name
        assert tensor.data.tobytes() == want[name].data.tobytes(), name


@pytest.mark.parametrize("quant", QUANTS)
def test_header_tells_what_it_is(quant: str) -> None:
    """Name, licence, form, tokens with a meaning and template are in it; tied weights are there once."""
    reader = gguf.GGUFReader(FILES[quant])
    told = {name: field.contents() for name, field in reader.fields.items()}
    assert told["general.name"] == "demo-m"
    assert told["general.license"] == "mit"
    assert told["general.file_type"] == gguf.LlamaFileType[f"MOSTLY_{quant}"]
    assert told["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    assert told["llama.context_length"] == recipe.CONTEXT_TOKENS
    assert told["tokenizer.chat_template"] == (SOURCE / "chat_template.jinja").read_text()
    named = {"bos": recipe.START, "eos": recipe.END, "padding": recipe.PAD}
    assert {name: told[f"tokenizer.ggml.{name}_token_id"] for name in named} == named
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert "output.weight" not in kinds
    assert {kind for name, kind in kinds.items() if "norm" in name} == {"F32"}
    assert {kind for name, kind in kinds.items() if name.startswith("blk.0.ffn_up")} == {quant}


def test_recipe_writes_the_shipped_files_again(tmp_path: Path) -> None:
    """``--gguf-only`` trains nothing, and gives the same bytes each time; scores and card follow."""
    scores = json.loads((SOURCE.parent / "scores.json").read_text())
    for name in nbp.demo.GGUF:
        shutil.copytree(nbp.demo.path(name), tmp_path / name)
        del scores[name]["gguf"]
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    weights = (tmp_path / "demo-m" / "model.safetensors").stat().st_mtime_ns
    recipe.main(["--gguf-only", "--out", str(tmp_path)])
    assert (tmp_path / "demo-m" / "model.safetensors").stat().st_mtime_ns == weights
    made = {path.name: path.read_bytes() for path in (tmp_path / "demo-m-gguf").iterdir()}
    assert made == {path.name: path.read_bytes() for path in FILES.values()}
    known = json.loads((tmp_path / "scores.json").read_text())
    assert list(known) == list(scores)
    assert known["demo-m"]["scores"] == scores["demo-m"]["scores"]
    card = (tmp_path / "MODEL_CARD.md").read_text()
    for quant, path in FILES.items():
        assert known["demo-m"]["gguf"][quant]["bytes"] == path.stat().st_size
        assert f"| {path.name} | {path.stat().st_size:,} |" in card


def test_recipe_needs_a_trained_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without anything trained, ``--gguf-only`` says so and writes nothing."""
    with pytest.raises(SystemExit):
        recipe.main(["--gguf-only", "--out", str(tmp_path)])
    assert "train it first" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_recipe_asks_for_llama_cpp_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing for GGUF is told at once with the command that installs it, not after minutes."""
    monkeypatch.setattr(recipe, "find_spec", lambda _: None)
    monkeypatch.setattr(recipe, "train", lambda *_: pytest.fail("it trained first"))
    with pytest.raises(SystemExit):
        recipe.main(["--only", "demo-m", "--out", str(tmp_path)])
    assert 'pip install "nbproviders[llama-cpp]"' in capsys.readouterr().err


def test_an_unknown_form_is_refused(tmp_path: Path) -> None:
    """A form that is not made here is named, with those that are."""
    with pytest.raises(ConfigurationError, match="'Q4_K_M'") as caught:
        convert(SOURCE, tmp_path / "a.gguf", "Q4_K_M")
    assert "F16, Q8_0, Q4_0" in caught.value.hint


def test_rows_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    """demo-s has rows of 48: F16 holds them, blocks of 32 do not, and no broken file is left."""
    with pytest.raises(ConfigurationError, match="rows of 48 weights"):
        convert(nbp.demo.path("demo-s"), tmp_path / "s.gguf", "Q8_0")
    assert list(tmp_path.iterdir()) == []
    convert(nbp.demo.path("demo-s"), tmp_path / "s.gguf", "F16")
    assert recipe.score_gguf(tmp_path / "s.gguf", 10)["add2"] > 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [({"model_type": "mamba"}, "'mamba'"), ({"tie_word_embeddings": False}, "tied embeddings")],
)
def test_another_model_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """What the converter does not know is refused before anything is written."""
    shutil.copytree(SOURCE, tmp_path / "demo-m")
    config = json.loads((SOURCE / "config.json").read_text()) | change
    (tmp_path / "demo-m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match=message):
        convert(tmp_path / "demo-m", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    """A missing file is one of our errors, and names it."""
    with pytest.raises(ProviderError, match="config.json"):
        convert(tmp_path, tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["demo-s", "demo-m-gguf", ""])
def test_a_model_that_has_no_gguf(name: str) -> None:
    """A name that is not shipped as GGUF has no folder of it."""
    with pytest.raises(KeyError):
        nbp.demo.gguf_path(name)
