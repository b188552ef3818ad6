"""The provider ``llama-cpp``: from a reference and its options to a model in memory, and out of it again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.providers.llamacpp import LlamaCppProvider
from nbproviders.residency.memory import size_text
from tests.gguf_files import CHATML, write_llama_gguf

pytest.importorskip("llama_cpp")

DOGS = "the dog and the girl "


@pytest.fixture(autouse=True)
def _nothing_left() -> object:
    yield
    nbp.unload_all(force=True)
    assert nbp.residents() == []


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without template, its heads 32 wide, trained for 512 tokens."""
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    return write_llama_gguf(path, hidden=128, heads=4, context=512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two quantizations of a model."""
    folder = tmp_path_factory.mktemp("two")
    for quant in ("Q8_0", "Q4_0"):
        write_llama_gguf(folder / f"m-{quant}.gguf", dtype=quant)
    return folder


def resident() -> Any:
    """The one model in memory."""
    [one] = nbp.residents()
    return one


# Options


def test_n_ctx_is_the_context(small: Path) -> None:
    """A prompt longer than it is refused with both numbers; without it, it is what was trained for."""
    with nbp.model(f"llama-cpp:{small}?n_ctx=64") as m:
        with pytest.raises(nbp.InvalidRequestError, match=r"\b\d{3} tokens.*context of 64") as told:
            m.generate(DOGS * 20, raw=True)
        assert "larger n_ctx" in str(told.value)
        done = m.generate("the", raw=True)
        assert done.usage.prompt_tokens + done.usage.completion_tokens <= 64
    with nbp.model(f"llama-cpp:{small}") as m:
        assert m.generate(DOGS * 20, raw=True, max_tokens=1).usage.prompt_tokens > 64
        with pytest.raises(nbp.InvalidRequestError, match="context of 512"):
            m.generate(DOGS * 200, raw=True)


def test_an_n_ctx_beyond_the_training_is_noted(small: Path) -> None:
    """It is done as asked, and said."""
    with nbp.model(f"llama-cpp:{small}?n_ctx=600") as m:
        assert m.generate(DOGS * 105, raw=True, max_tokens=1).usage.prompt_tokens > 512
        assert any("trained for 512" in note for note in resident().notes)


@pytest.mark.parametrize(
    "options",
    [
        "type_k=f32&type_v=f32",
        "type_k=bf16&type_v=bf16",
        "type_k=q8_0",
        "type_k=q8_0&type_v=q8_0",
        "type_v=q8_0&flash_attn=true",
        "flash_attn=true",
        "flash_attn=false",
        "n_batch=1",
        "n_batch=7&parallel=5",
        "n_batch=100000",
        "n_threads=1",
        "parallel=1",
        "n_gpu_layers=0",
    ],
)
def test_how_it_is_computed_changes_the_numbers_a_little(small: Path, options: str) -> None:
    """Whatever the cache is stored in and however evaluations are cut, the model is the same."""
    prompt, more = DOGS * 6, "on the ball she"
    with nbp.model(f"llama-cpp:{small}") as m:
        usual = m.score(prompt, more, raw=True)
    with nbp.model(f"llama-cpp:{small}?{options}") as m:
        score = m.score(prompt, more, raw=True)
        together = m.generate_many([prompt] * 7, raw=True, max_tokens=4)
        assert all(len(text) for text in together)
    for one, other in zip(score.tokens, usual.tokens, strict=True):
        assert one.id == other.id
        assert one.logprob == pytest.approx(other.logprob, abs=0.2)
    assert [one.notes for one in nbp.residents()] == [(), ()]


def test_a_float32_cache_gives_the_same_text_alone_and_in_a_batch(small: Path) -> None:
    """With float32 weights that is promised, and told; with the usual cache it is not."""
    with nbp.model(f"llama-cpp:{small}?type_k=f32&type_v=f32") as m:
        assert m.generate("the", raw=True, max_tokens=2).batch_invariant
    with nbp.model(f"llama-cpp:{small}") as m:
        assert not m.generate("the", raw=True, max_tokens=2).batch_invariant


def test_a_smaller_cache_takes_less_memory(small: Path) -> None:
    """Eight bits, in blocks of 32 with a scale, take about half of sixteen, and those half of 32."""
    taken = []
    for kind in ("q8_0", "f16", "f32"):
        options = f"n_ctx=8192&parallel=1&n_batch=1&flash_attn=true&type_k={kind}&type_v={kind}"
        with nbp.model(f"llama-cpp:{small}?{options}"):
            taken.append(resident().bytes["cpu"])
        nbp.unload_all()
    numbers = 8192 * 2 * 2 * 64  # tokens, layers, keys and values, width of two heads
    assert taken[1] - taken[0] == pytest.approx(numbers * (2 - 34 / 32), rel=0.02)
    assert taken[2] - taken[1] >= numbers * (4 - 2)


def test_parallel_is_how_many_compute_together(small: Path) -> None:
    """Each with a whole context, which is charged."""
    sizes = {}
    for count in (1, 4):
        with nbp.model(f"llama-cpp:{small}?parallel={count}&n_batch=4") as m:
            assert m.info.parallel == count
            assert len(m.generate_many(["the"] * 9, raw=True, max_tokens=2)) == 9
            sizes[count] = resident().bytes["cpu"]
        nbp.unload_all()
    # Two layers, 32 numbers of two heads, keys and values, two bytes each, for 512 tokens.
    assert sizes[4] - sizes[1] == pytest.approx(3 * 512 * 2 * 64 * 2 * 2, rel=0.05)


@pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="a GPU may take the layers")
@pytest.mark.parametrize("layers", [-1, 1, 99])
def test_layers_for_a_gpu_that_is_not_there_are_noted(small: Path, layers: int) -> None:
    """The model computes on the CPU and says so, in the table of residents."""
    with nbp.model(f"llama-cpp:{small}?n_gpu_layers={layers}") as m:
        assert m.generate("the", raw=True, max_tokens=2)
        [note] = resident().notes
    assert f"n_gpu_layers={layers}" in note
    assert "CPU" in note


def test_a_seed_is_for_requests_that_give_none(small: Path) -> None:
    """It changes no key; a request's own goes before."""
    provider = nbp.create_provider("llama-cpp")
    assert provider.resolve(f"{small}?seed=5") == provider.resolve(str(small))
    how = {"raw": True, "temperature": 1.5, "max_tokens": 16}
    with nbp.model(f"llama-cpp:{small}?seed=5") as m:
        first, second = m.generate("the", **how), m.generate("the", **how)
        assert first == second
        assert first.params.seed == 5
        assert m.generate("the", seed=6, **how).params.seed == 6


@pytest.mark.parametrize("name", ["chatml", "ChatML", "llama2", "llama-2"])
def test_a_chat_format_gives_a_model_a_template(small: Path, name: str) -> None:
    """One of llama.cpp's own, in its spelling or llama-cpp-python's."""
    with nbp.model(f"llama-cpp:{small}?chat_format={name}") as m:
        done = m.chat([{"role": "user", "content": "the dog"}], system="be red", max_tokens=2)
        assert done.chat
        plain = m.generate("the dog", raw=True, max_tokens=2)
        assert done.usage.prompt_tokens > plain.usage.prompt_tokens + 5


def test_a_chat_format_goes_before_the_files_own(tmp_path: Path) -> None:
    """It is another model for the table; the file's own is used without it."""
    path = write_llama_gguf(tmp_path / "m.gguf", chat_template=CHATML)
    tokens = {}
    for options in ("", "?chat_format=gemma"):
        with nbp.model(f"llama-cpp:{path}{options}") as m:
            tokens[options] = m.generate("the dog", max_tokens=1).usage.prompt_tokens
    assert len(nbp.residents()) == 2
    assert tokens[""] != tokens["?chat_format=gemma"]


WRONG = {
    "n_ctx=0": "n_ctx=0 must be at least 1",
    "n_ctx=-5": "n_ctx=-5",
    "n_ctx=true": "n_ctx=True",
    "n_ctx=many": "n_ctx='many'",
    "n_batch=0": "n_batch=0",
    "n_threads=0": "n_threads=0",
    "parallel=0": "parallel=0",
    "parallel=257": "at most 256",
    "parallel=8&n_batch=7": "parallel=8 is more than n_batch=7",
    "n_gpu_layers=-2": "n_gpu_layers=-2",
    "type_k=int3": "type_k='int3' is not one of f32, f16",
    "type_v=Q8_0": "type_v='Q8_0' is not one of f32, f16",
    "type_v=q8_0&flash_attn=false": "needs flash attention",
    "seed=-1": "seed=-1",
    "flash_attn=yes": "flash_attn='yes'",
    "n_ctxt=5": "Did you mean 'n_ctx'",
    "chat_format=nonsense": "chatml",
    "quant=Q2_K": None,
}


@pytest.mark.parametrize(("options", "words"), WRONG.items(), ids=str)
def test_a_wrong_option_is_refused_with_its_value(
    small: Path, folder: Path, options: str, words: str | None
) -> None:
    """Whether it is misspelt, out of range, or names what there is not; nothing stays in memory."""
    if words is None:
        with pytest.raises(nbp.ModelAccessError, match="Q4_0, Q8_0"):
            nbp.load_sync(f"llama-cpp:{folder}?{options}")
        return
    with pytest.raises(nbp.ConfigurationError) as told:
        nbp.load_sync(f"llama-cpp:{small}?{options}")
    assert words in str(told.value)
    assert nbp.residents() == []


def test_a_cache_type_that_does_not_fit_the_heads_is_refused(tmp_path: Path) -> None:
    """With the numbers that do not go together, not as a lack of memory."""
    path = write_llama_gguf(tmp_path / "m.gguf", hidden=64, heads=4)
    with pytest.raises(nbp.ConfigurationError, match=r"type_k='q8_0'.*32.*16 numbers"):
        nbp.load_sync(f"llama-cpp:{path}?type_k=q8_0")


def test_another_quantization_than_the_file_named_is_refused(folder: Path) -> None:
    """A file that is asked for by name has one, and it is told."""
    with pytest.raises(nbp.ModelAccessError, match="'Q8_0'"):
        nbp.load_sync(f"llama-cpp:{folder / 'm-Q4_0.gguf'}?quant=Q8_0")
    with nbp.model(f"llama-cpp:{folder / 'm-Q4_0.gguf'}?quant=q4_0"):
        pass


def test_setup_wins_over_the_constructor(small: Path) -> None:
    """Also where it gives what would have been the default anyway."""
    provider = LlamaCppProvider(n_ctx=64, n_batch=32)
    assert provider.resolve(str(small)) == LlamaCppProvider().resolve(
        f"{small}?n_ctx=64&n_batch=32"
    )
    assert provider.resolve(str(small), n_ctx=128).values["n_ctx"] == 128
    assert provider.resolve(f"{small}?n_batch=512").values["n_batch"] == 512
    with pytest.raises(nbp.ConfigurationError, match="n_ctx=0"):
        LlamaCppProvider(n_ctx=0)
    with pytest.raises(nbp.ConfigurationError, match="Did you mean 'n_ctx'"):
        LlamaCppProvider(n_cxt=5)


# Keys


def test_the_demo_model_is_one_under_all_its_names() -> None:
    """Its alias, its folder with a quantization, its path, and a link to it."""
    from nbproviders import demo

    home = demo.gguf_path("demo-m")
    provider = nbp.create_provider("llama-cpp")
    path = home / f"demo-m-{demo.QUANTS[0]}.gguf"
    names = ["demo-m", f"{home}:{demo.QUANTS[0]}", f"{home}?quant={demo.QUANTS[0]}", str(path)]
    keys = {provider.resolve(name) for name in names}
    assert len(keys) == 1
    with nbp.model(f"llama-cpp:{names[0]}"), nbp.model(f"llama-cpp:{names[3]}?chat=false"):
        resident()


def test_a_link_is_the_file_it_leads_to(small: Path, tmp_path: Path) -> None:
    """And so is a path with detours."""
    (tmp_path / "link.gguf").symlink_to(small)
    (tmp_path / "inner").mkdir()
    provider = LlamaCppProvider()
    assert provider.resolve(str(tmp_path / "link.gguf")) == provider.resolve(str(small))
    detour = tmp_path / "inner" / ".." / "link.gguf"
    assert provider.resolve(str(detour)) == provider.resolve(str(small))


def test_a_file_replaced_on_disk_is_another_model(tmp_path: Path) -> None:
    """The next opening loads the new file; who holds the old one keeps it."""
    path = write_llama_gguf(tmp_path / "m.gguf", seed=1)
    with nbp.model(f"llama-cpp:{path}") as old:
        was = old.score("the", " dog", raw=True).total
        other = write_llama_gguf(tmp_path / "other.gguf", seed=2)
        other.replace(path)
        with nbp.model(f"llama-cpp:{path}") as new:
            assert new.score("the", " dog", raw=True).total != was
            assert old.score("the", " dog", raw=True).total == was
            assert len(nbp.residents()) == 2


def test_a_later_part_replaced_is_another_model_too(tmp_path: Path) -> None:
    """All parts of a split model decide what it is; any of them names it."""
    first = write_llama_gguf(tmp_path / "m.gguf", split_tensors=12)
    last = sorted(tmp_path.glob("m-*.gguf"))[-1]
    assert first != last
    provider = nbp.create_provider("llama-cpp")
    before = provider.resolve(str(first))
    assert provider.resolve(str(last)) == before
    os.utime(last, ns=(1, 1))
    assert provider.resolve(str(first)) != before
    with nbp.model(f"llama-cpp:{last}") as m:
        assert m.generate("the", raw=True, max_tokens=2)


def test_teardown_all_frees_the_providers_models(small: Path) -> None:
    """Of whichever provider built alike they were opened by."""
    nbp.load_sync(f"llama-cpp:{small}")
    import asyncio

    asyncio.run(LlamaCppProvider(n_ctx=64).teardown_all())
    assert nbp.residents() == []


async def test_a_handle_gives_back_and_the_id_frees(small: Path) -> None:
    """`setup` twice is one model; `teardown` by id, with no lease left, frees it."""
    provider = nbp.create_provider("llama-cpp")
    one = await provider.setup(str(small), n_ctx=64)
    other = await LlamaCppProvider(n_ctx=64).setup(str(small))
    assert one.model.raw is other.model.raw
    assert len(nbp.residents()) == 1
    await one.teardown()
    assert await other.model.generate("the", raw=True, max_tokens=1) is not None
    await other.teardown()
    assert len(nbp.residents()) == 1
    await provider.teardown(one.resource_id)
    assert nbp.residents() == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{tmp}/none.gguf", "There is no file or folder"),
        ("{tmp}/none", "There is no file or folder"),
        ("none.gguf", "There is no file or folder"),
        ("{tmp}/empty", "no GGUF model among the 0 files"),
        ("{tmp}/text.gguf", "text.gguf"),
        ("ollama://none:7b", "none"),
    ],
)
def test_what_is_not_there(tmp_path: Path, name: str, words: str) -> None:
    """A missing path, an empty folder, something else than GGUF: each is told, with its name."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(nbp.ModelAccessError) as told:
        nbp.load_sync(f"llama-cpp:{name.format(tmp=tmp_path)}")
    assert words in str(told.value)


# Templates

TEMPLATES = {
    "{{ raise_exception('only cats') }}": "only cats",
    "{{ messages.__class__.__mro__ }}": "__class__",
    "{{ ''.__class__.__base__.__subclasses__() }}": "__class__",
    "{% for i in range(10 ** 9) %}x{% endfor %}": "ange",
    "{{ messages[0]['content'] * 10 ** 9 }}": "more than",
    "{{ (10 ** 1000) ** 1000 ** 3 }}": "bits",
    "{% for message in messages %}{{ message.nothing.at.all }}{% endfor %}": "nothing",
    "{% for message in messages %}": "endfor",
    "{{ 1 / 0 }}": "division",
    "{{ messages | nofilter }}": "nofilter",
    "{{ messages[99].content }}": "",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}": "recursion",
    "{{ 'a'.encode().decode('utf-99') }}": "utf-99",
    "{% include 'etc/passwd' %}": "",
    "{% set _ = messages.append({}) %}": "append",
}


@pytest.mark.parametrize(("template", "words"), TEMPLATES.items(), ids=str)
def test_a_hostile_template_is_an_error_of_ours(tmp_path: Path, template: str, words: str) -> None:
    """It runs in a sandbox, comes to an end, and harms neither the model nor plain text."""
    path = write_llama_gguf(tmp_path / "m.gguf", chat_template=template)
    with nbp.model(f"llama-cpp:{path}") as m:
        with pytest.raises(nbp.InvalidRequestError, match="chat template") as told:
            m.generate("the dog", max_tokens=1)
        assert words in str(told.value)
        assert "raw=True" in str(told.value)
        assert m.generate("the dog", max_tokens=1, raw=True).usage.completion_tokens == 1


ENDLESS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)


def test_a_template_that_does_not_end_is_stopped(tmp_path: Path) -> None:
    """After a few seconds, with the reason; the next request is answered."""
    path = write_llama_gguf(tmp_path / "m.gguf", chat_template=ENDLESS)
    with nbp.model(f"llama-cpp:{path}") as m:
        with pytest.raises(nbp.InvalidRequestError, match="longer than"):
            m.generate("the dog", max_tokens=1)
        assert m.generate("the dog", max_tokens=1, raw=True).usage.completion_tokens == 1


def test_what_templates_of_published_models_use(tmp_path: Path) -> None:
    """Today's date, JSON, the beginning and end tokens, loop controls, the generation tag."""
    template = (
        "{{ bos_token }}{{ strftime_now('%Y') | length }}{{ messages | tojson }}{{ eos_token }}"
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        "{% if add_generation_prompt %}{% endif %}{{ tools is none }}"
    )
    path = write_llama_gguf(tmp_path / "m.gguf", chat_template=template)
    with nbp.model(f"llama-cpp:{path}") as m:
        done = m.generate("the dog", max_tokens=1)
    text = '4[{"role": "user", "content": "the dog"}]the dogTrue'
    with nbp.model(f"llama-cpp:{path}?chat=false") as m:
        plain = m.generate(text, max_tokens=1)
    # The beginning token comes once, from the template; the end token is one token, not its letters.
    assert (
        plain.usage.prompt_tokens - 6 <= done.usage.prompt_tokens <= plain.usage.prompt_tokens + 6
    )


def test_without_a_template_messages_are_refused(small: Path) -> None:
    """With what to do; a text is plain text then."""
    with nbp.model(f"llama-cpp:{small}") as m:
        with pytest.raises(nbp.InvalidRequestError, match="no chat template") as told:
            m.chat([{"role": "user", "content": "the dog"}])
        assert "plain text" in str(told.value)
        assert not m.generate("the dog", max_tokens=1).chat


# Memory


BIG = {
    "llama-F16": {"dtype": "F16", "hidden": 512, "layers": 8, "heads": 8, "context": 2048},
    "llama-Q8_0": {"dtype": "Q8_0", "hidden": 1024, "layers": 4, "heads": 16, "context": 2048},
    "gpt2-F16": {"arch": "gpt2", "vocab": "bpe", "dtype": "F16", "hidden": 512, "layers": 10},
    "gemma3-F16": {"arch": "gemma3", "dtype": "F16", "hidden": 512, "layers": 10, "context": 4096},
    "mamba-F16": {"arch": "mamba", "dtype": "F16", "hidden": 512, "layers": 10, "context": 2048},
}


@pytest.mark.parametrize("name", BIG)
def test_the_estimate_is_what_is_measured(tmp_path: Path, name: str) -> None:
    """Within 10 %, whatever the options: weights, cache and the space to compute in."""
    path = write_llama_gguf(tmp_path / "m.gguf", **BIG[name])
    assert path.stat().st_size > 30e6
    provider = nbp.create_provider("llama-cpp")
    for options in ("", "?parallel=1", "?flash_attn=false", "?n_ctx=128&n_batch=64"):
        expected = provider.estimate(provider.resolve(f"{path}{options}"))
        with nbp.model(f"llama-cpp:{path}{options}") as m:
            measured = resident().bytes
            assert measured == m.info.memory_bytes
        nbp.unload_all()
        assert expected["cpu"] == pytest.approx(measured["cpu"], rel=0.1), options


def test_an_estimate_tells_how_many_texts_its_cache_is_for(small: Path) -> None:
    """Of a small model it is that of many texts at once, which is told; with parallel=1 it is one's."""
    provider = nbp.create_provider("llama-cpp")
    many, one = (
        provider.estimate(provider.resolve(f"{small}{options}")) for options in ("", "?parallel=1")
    )
    assert many.cache["cpu"] == 16 * one.cache["cpu"]
    [note] = many.notes
    assert f"16 texts at once, {16 * many.context_tokens:,} tokens" in note
    assert size_text(one.cache["cpu"]) in note
    assert one.notes == ()


def test_no_more_than_the_budget(
    small: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is larger than it is refused before it is read, with the table; a smaller one is not."""
    monkeypatch.setenv("NBPROVIDERS_BUDGET", "cpu=8MiB")
    with nbp.model(f"llama-cpp:{folder / 'm-Q4_0.gguf'}?parallel=1&n_ctx=64") as m:
        held = resident().bytes["cpu"]
        assert held < 2 * 2**20
        with pytest.raises(nbp.InsufficientMemoryError) as told:
            nbp.load_sync(f"llama-cpp:{small}?parallel=1&n_ctx=32768")
        assert m.generate("the", raw=True, max_tokens=1)
    text = str(told.value)
    assert "m-Q4_0.gguf" in text
    assert "too much" in text
    assert "NBPROVIDERS_BUDGET" in text
    assert [one for one in nbp.residents() if "small" in one.spec] == []


def test_an_idle_model_makes_room(
    small: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And comes back by itself at its next use."""
    monkeypatch.setenv("NBPROVIDERS_BUDGET", "cpu=5MiB")
    first = nbp.load_sync(f"llama-cpp:{small}?parallel=1&n_ctx=256&n_batch=8")
    other = nbp.load_sync(f"llama-cpp:{small}?parallel=1&n_ctx=4096&n_batch=8")
    assert "n_ctx=4096" in resident().spec
    assert first.generate("the", raw=True, max_tokens=1)
    assert "n_ctx=256" in resident().spec
    other.close()


GONE = """
import gc, json, os, psutil, threading, time, sys
import nbproviders as nbp
path, small = sys.argv[1:]
me = psutil.Process()
def load(name, rounds=1):
    for _ in range(rounds):
        with nbp.model(f"llama-cpp:{name}") as m:
            m.generate("the dog", raw=True, max_tokens=2)
            m.generate_many(["the dog and"] * 4, raw=True, max_tokens=2)
            held = me.memory_info().rss
        nbp.unload_all()
    gc.collect()
    return held
def counted():
    # The least of some: what is there for a moment, such as a file that another thread reads, is no leak.
    return [min(one) for one in zip(*(counted_once() for _ in range(20)))]
def counted_once():
    time.sleep(0.01)
    # Asyncio's own pool starts a further worker when two files are asked at once: it has a bound of its own.
    pooled = sum(one.name.startswith("asyncio_") for one in threading.enumerate())
    return me.memory_info().rss, me.num_fds(), threading.active_count() - pooled, me.num_threads() - pooled
load(path)
base = me.memory_info().rss
held = load(path)
left = me.memory_info().rss
names = [one.path for one in me.memory_maps()]
load(small, 20)
before = counted()
load(small, 20)
after = counted()
print(json.dumps([base, held, left, path in names, before, after]))
"""


def test_memory_comes_back_and_nothing_leaks(small: Path, tmp_path: Path) -> None:
    """The pages of a freed model leave the process; twenty loads leave no thread and no file open."""
    path = write_llama_gguf(
        tmp_path / "m.gguf", dtype="F16", hidden=1024, layers=14, heads=16, context=512
    )
    size = path.stat().st_size
    assert size > 200e6
    ran = subprocess.run(
        [sys.executable, "-c", GONE, str(path), str(small)],
        capture_output=True,
        text=True,
        timeout=120,
        # A thread's own heap takes up to 10 MB when that thread first allocates, whatever was freed.
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    base, held, left, mapped, before, after = json.loads(ran.stdout)
    assert held - base > 0.9 * size, "it was never in memory: this measures nothing"
    assert held - left > 0.9 * size
    assert not mapped
    assert after[0] - before[0] < 2e6
    assert all(now <= was for now, was in zip(after[1:], before[1:], strict=True))


# A Llama of somebody else's


ADOPTED = """
import json, sys
import nbproviders as nbp
import llama_cpp

class Files:
    def load_model(self, model_id, model_class, quantization_config=None, device_map="auto", **kw):
        return llama_cpp.Llama(model_path=model_id, n_ctx=256, verbose=False, **kw)
    def load_tokenizer(self, model_id, **kw):
        return None
    def validate_model_access(self, model_id, model_class):
        return True
    def get_provider_name(self):
        return "files"

path = sys.argv[1]
nbp.register_provider("files", Files())
assert "files" in nbp.list_available()
with nbp.model(f"files:{path}") as m, nbp.model(f"llama-cpp:{path}?n_ctx=256") as own:
    assert isinstance(m.raw, llama_cpp.Llama)
    both = [one.generate("12+30=", max_tokens=6, raw=True, temperature=0) for one in (m, own)]
    assert both[0] == both[1], both
    many = m.generate_many(["12+30=", "reverse otter:"] * 6, max_tokens=6, raw=True, temperature=0)
    assert many[0] == both[0]
    # Its own context stays its owner's, and answers meanwhile.
    mine = m.raw.create_completion("12+30=", max_tokens=6, temperature=0)["choices"][0]["text"]
    assert mine == both[0], (mine, both)
    assert m.generate("12+30=", max_tokens=6, raw=True, temperature=0) == both[0]
    kept, kept_method = m.raw, m.raw.create_completion
result = nbp.compare_sync([f"files:{path}", f"llama-cpp:{path}?n_ctx=256"], ["12+30=", "reverse otter:"])
assert len(result.frame) == 4, result.frame
for rows in result.frame.groupby("prompt"): assert rows[1]["text"].nunique() == 1, rows
assert not result.frame["error"].astype(bool).any(), result.frame["error"]
nbp.unload_all()
told = {}
for name, use in {
    "call": lambda: kept("x"),
    "completion": lambda: kept.create_completion("x"),
    "method": lambda: kept_method("x"),
    "tokenize": lambda: kept.tokenize(b"x"),
    "eval": lambda: kept.eval([1]),
    "n_ctx": lambda: kept.n_ctx(),
    "close": lambda: kept.close(),
    "model": lambda: kept._model,
    "reset": lambda: kept.reset(),
    "tokenizer": lambda: kept.tokenizer(),
    "state": lambda: kept.save_state(),
    "pickled": lambda: kept.__getstate__(),
}.items():
    try:
        use()
        told[name] = "no error"
    except BaseException as error:
        told[name] = type(error).__name__
assert repr(kept)
del kept, kept_method
import gc; gc.collect()
with nbp.model(f"files:{path}") as m:
    assert m.generate("12+30=", max_tokens=6, raw=True, temperature=0) == both[0]
print("told:" + json.dumps(told))
"""


def test_a_llama_of_ones_own_is_a_model_like_any() -> None:
    """Registered as the four methods it is compared with others; used after it is freed, it is an error."""
    from nbproviders import demo

    path = demo.gguf_path("demo-m") / f"demo-m-{demo.QUANTS[0]}.gguf"
    ran = subprocess.run(
        [sys.executable, "-c", ADOPTED, str(path)], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    [line] = [line for line in ran.stdout.splitlines() if line.startswith("told:")]
    assert set(json.loads(line[5:]).values()) == {"ClosedError"}, line


def test_load_model_gives_a_llama_of_a_checked_file(small: Path, tmp_path: Path) -> None:
    """For code that wants one; a damaged file is an error, and so is a quantization config."""
    provider = LlamaCppProvider()
    llama = provider.load_model(str(small), n_ctx=256)
    try:
        assert llama.n_ctx() == 256
        assert llama.create_completion("the", max_tokens=1)["choices"]
    finally:
        llama.close()
    words = provider.load_tokenizer(str(small))
    try:
        assert words.detokenize(words.tokenize(b" the dog")) == b" the dog"
    finally:
        words.close()
    short = tmp_path / "short.gguf"
    short.write_bytes(small.read_bytes()[:-1000])
    with pytest.raises(nbp.ModelAccessError, match="short.gguf"):
        provider.load_model(str(short))
    with pytest.raises(nbp.ConfigurationError, match="quantization_config"):
        provider.load_model(str(small), quantization_config={"load_in_4bit": True})


def test_access_to_a_file_is_checked_by_its_header(small: Path, tmp_path: Path) -> None:
    """True for a good one; the reason for another."""
    provider = LlamaCppProvider()
    assert provider.validate_model_access(str(small)) is True
    (tmp_path / "no.gguf").write_bytes(b"no")
    with pytest.raises(nbp.ModelAccessError, match="no.gguf"):
        provider.validate_model_access(str(tmp_path / "no.gguf"))
    with pytest.raises(nbp.ModelAccessError, match="There is no file"):
        provider.validate_model_access(str(tmp_path / "gone.gguf"))


# Without the package


WITHOUT = """
import sys
sys.modules["llama_cpp"] = sys.modules["gguf"] = None  # as if they were not installed
import nbproviders as nbp
info = nbp.list_available()["llama-cpp"]
print(info.available, info.reason)
for use in (lambda: nbp.create_provider("llama-cpp"), lambda: nbp.load_sync("llama-cpp:demo-m")):
    try:
        use()
    except nbp.ConfigurationError as error:
        print(error)
"""


def test_without_llama_cpp_it_says_what_to_install() -> None:
    """In the list, and when it is asked for; never by an ImportError."""
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    listed, *errors = ran.stdout.strip().split("\n", 1)
    assert listed.startswith("False")
    assert 'pip install "nbproviders[llama-cpp]"' in listed
    assert errors[0].count('pip install "nbproviders[llama-cpp]"') == 2


WITHOUT_HUB = """
import sys
sys.modules["huggingface_hub"] = None
import nbproviders as nbp
with nbp.model("llama-cpp:demo-m") as m:
    print(m.generate("12+30="))
for use in (lambda: nbp.load_sync("llama-cpp:org/name"), lambda: nbp.load_sync("llama-cpp:none")):
    try:
        use()
    except nbp.ProviderError as error:
        print(type(error).__name__, error)
"""


def test_without_the_hubs_library_files_are_loaded() -> None:
    """It is needed for models of the Hub alone, and asked for by name there."""
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_HUB], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.startswith("42\n")
    assert ran.stdout.count("ConfigurationError") == 2
    assert "pip install huggingface_hub" in ran.stdout


# In a notebook


QUIET = """
import logging, sys
import nbproviders as nbp
heard = []
class Ear(logging.Handler):
    def emit(self, record): heard.append(record.getMessage())
log = logging.getLogger("nbproviders.llamacpp")
log.addHandler(Ear()); log.setLevel(logging.DEBUG); log.propagate = False
"""
LOAD = """
with nbp.model("llama-cpp:{path}") as m:
    m.generate("the dog", raw=True, max_tokens=3)
    m.generate_many(["the dog"] * 5, raw=True, max_tokens=3)
freed = nbp.unload_all()
"""
NO_FILENO = """
import io, os
class Plain(io.StringIO):
    def fileno(self): raise io.UnsupportedOperation("fileno")
kept = sys.stdout, sys.stderr
sys.stdout, sys.stderr = Plain(), Plain()
try:
{load}
    printed = sys.stdout.getvalue(), sys.stderr.getvalue()
finally:
    sys.stdout, sys.stderr = kept
print(printed)
"""


def test_a_notebook_shows_nothing_of_the_library(small: Path) -> None:
    """No line of llama.cpp's, with a kernel's streams or such without a file; its log is in ours."""
    from tests.kernel.driver import kernel

    load = LOAD.format(path=small)
    with kernel() as running:
        assert running.run(QUIET).status == "ok"
        for code in (load, load):
            cell = running.run(code)
            assert (cell.status, cell.text, cell.outputs) == ("ok", "", []), cell
        cell = running.run(NO_FILENO.format(load=textwrap.indent(load, "    ")))
        assert (cell.status, cell.text.strip()) == ("ok", "('', '')"), cell
        cell = running.run("print(sum('model buffer size' in line for line in heard))")
        assert int(cell.text) >= 3


def test_a_short_name_takes_a_quantization_after_a_colon() -> None:
    """As a Hub id does; the option does the same, and both are one resource."""
    provider = nbp.create_provider("llama-cpp")
    assert provider.resolve("demo-m:Q8_0") == provider.resolve("demo-m?quant=Q8_0")
    assert provider.resolve("demo-m:Q8_0") != provider.resolve("demo-m")


def test_a_demo_model_without_gguf_is_told() -> None:
    """With those that have it, not as a Hub id that cannot be reached."""
    with pytest.raises(nbp.ModelAccessError, match="demo-s is not shipped as GGUF") as told:
        nbp.create_provider("llama-cpp").resolve("demo-s")
    assert "demo-xs, demo-m" in told.value.hint
