"""Transformers models that sleep and wake: each bit, each tie, and each text as before."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.providers.transformers import TransformersProvider
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import slabbed, staging, transfers, virtual
from nbproviders.runtimes.threads import Worker
from nbproviders.runtimes.transformers import TransformersModel
from tests.tiny import write_llama

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MIB = 2**20
PROMPTS = ("12+30=", "reverse otter:")
Load = Callable[..., Awaitable[TransformersModel]]


@pytest.fixture
async def load(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Load]:
    """Loads as the residency does, and closes; ``host`` is what it grants for a copy."""
    monkeypatch.setenv(virtual.VARIABLE, "virtual:0=64MiB")
    provider, loaded, workers = TransformersProvider(), [], []

    async def load(
        reference: object, *, host: int = 0, progress: Progress | None = None
    ) -> TransformersModel:
        progress = progress or Progress()
        progress.host_bytes = host
        workers.append(Worker("test"))
        key = provider.resolve(str(reference))
        model = await workers[-1].run(provider.load, key, progress)
        loaded.append(model)
        return model

    yield load
    for model in loaded:
        await model.aclose()
    for worker in workers:
        await worker.close()
    gc.collect()
    assert virtual.taken_bytes("virtual:0") == 0


def digest(model: TransformersModel) -> str:
    """Return a digest of every tensor's name, dtype, shape and bytes."""
    found = hashlib.sha256()
    module: Any = model.raw
    for named in (module.named_parameters, module.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
            found.update(flat.clone().numpy().tobytes())
    return found.hexdigest()


async def texts(model: TransformersModel) -> list[str]:
    return [str(await model.generate(p, max_tokens=6)) for p in PROMPTS]


KINDS = {
    "llama, tied": lambda c: c.LlamaConfig(tie_word_embeddings=True, num_attention_heads=2),
    "llama, untied": lambda c: c.LlamaConfig(tie_word_embeddings=False, num_attention_heads=2),
    "gpt-neox": lambda c: c.GPTNeoXConfig(num_attention_heads=2),
    "gpt-2": lambda c: c.GPT2Config(n_head=2, n_embd=64, n_layer=2, n_positions=256),
    "gemma": lambda c: c.GemmaConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=32),
    "mixtral": lambda c: c.MixtralConfig(
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=3
    ),
    "t5": lambda c: c.T5Config(
        d_model=64, d_kv=32, d_ff=96, num_layers=2, num_heads=2, decoder_start_token_id=0
    ),
}


def write(folder: Path, kind: str, dtype: str = "float32") -> Path:
    """Write a random model of a kind with the demo family's tokenizer."""
    from nbproviders.demo.recipe import END, PAD, START, build_tokenizer

    torch.manual_seed(0)
    config = KINDS[kind](transformers)
    config.update({"vocab_size": 262, "pad_token_id": PAD, "bos_token_id": START})
    config.eos_token_id = END
    if kind not in ("t5", "gpt-2"):
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
        config.update({**sizes, "max_position_embeddings": 256})
    auto = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
    auto.from_config(config).to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
async def test_a_model_in_a_slab_writes_what_it_writes_on_the_cpu(
    kind: str, tmp_path: Path, load: Load
) -> None:
    """Through a slab, asleep and awake again, each kind of model is bit for bit what the CPU has."""
    folder = write(tmp_path, kind)
    plain = await load(f"{folder}?device=cpu")
    want = await texts(plain)
    for host in (0, 64 * MIB):
        model = await load(f"{folder}?device=virtual:0", host=host)
        assert "sleep" in model.info.can
        assert digest(model) == digest(plain)
        assert await texts(model) == want
        await model.sleep(Progress())
        told = await model.wake(Progress())
        assert told.source == ("host copy" if host else "files")
        assert digest(model) == digest(plain)
        assert await texts(model) == want
        await model.aclose()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
async def test_a_model_on_the_cpu_sleeps_by_its_files(
    kind: str, stored: str, tmp_path: Path, load: Load
) -> None:
    """A CPU model, as stored or cast, has given its memory back, and wakes bit for bit."""
    model = await load(f"{write(tmp_path, kind, stored)}?device=cpu&dtype=float32")
    if kind == "mixtral":  # merged at the load: no file holds what the model has
        assert "sleep" not in model.info.can
        assert any("as the files hold them" in note for note in model.info.notes)
        return
    before, want = digest(model), await texts(model)
    for turn in range(2):
        slept = await model.sleep(Progress())
        assert (slept.moved_bytes > 0) is (turn == 0)  # compared with the files, once
        assert sum(slept.held.values()) < 10_000
        weights = {t.untyped_storage().nbytes() for t in model.raw.parameters()}
        assert weights == {0}
        woken = await model.wake(Progress())
        assert woken.source == "files"
        assert digest(model) == before
        assert await texts(model) == want
    assert model.info.memory_bytes == woken.held


async def test_parameters_stay_who_they_are(tmp_path: Path, load: Load) -> None:
    """Parameters keep identity, ties and hooks over sleep and wake, wherever they are."""
    write_llama(tmp_path)
    for device in ("cpu", "virtual:0"):
        model = await load(f"{tmp_path}?device={device}")
        module: Any = model.raw
        before = dict(module.named_parameters())
        called: list[object] = []
        module.lm_head.register_forward_hook(lambda *_, seen=called: seen.append(1))
        await model.sleep(Progress())
        await model.wake(Progress())
        assert all(dict(module.named_parameters())[n] is p for n, p in before.items())
        assert module.lm_head.weight is module.model.embed_tokens.weight
        await texts(model)
        assert called


@pytest.mark.parametrize("host", [0, 64 * MIB])
async def test_sleep_moves_nothing_and_gives_everything_back(
    host: int, tmp_path: Path, load: Load
) -> None:
    """Asleep, the device has all its bytes back, none were moved, and what is held is told."""
    model = await load(f"{write_llama(tmp_path)}?device=virtual:0", host=host)
    held = dict(model.info.memory_bytes)
    assert held["virtual:0"] == virtual.taken_bytes("virtual:0") > 400_000
    copied = {"host": held["virtual:0"]} if host else {}
    assert held == {"virtual:0": held["virtual:0"]} | copied
    slept = await model.sleep(Progress())
    assert slept.moved_bytes == virtual.taken_bytes("virtual:0") == 0
    assert dict(slept.held) == model.info.memory_bytes == copied
    assert {t.untyped_storage().nbytes() for t in model.raw.parameters()} == {0}
    assert await model.sleep(Progress()) == slept
    woken = await model.wake(Progress())
    assert dict(woken.held) == model.info.memory_bytes == held
    assert woken.moved_bytes == held["virtual:0"]
    assert (await model.wake(Progress())).moved_bytes == 0


async def test_a_sleeping_model_refuses_to_compute(tmp_path: Path, load: Load) -> None:
    """A request to a sleeping model is refused in words; it computes again once it is awake."""
    model = await load(f"{write_llama(tmp_path)}?device=virtual:0")
    await model.sleep(Progress())
    with pytest.raises(nbp.ClosedError, match="asleep"):
        await model.generate("a", max_tokens=1)
    await model.wake(Progress())
    await model.generate("a", max_tokens=1)


async def test_progress_tells_phases_and_bytes(tmp_path: Path, load: Load) -> None:
    """A load goes from its weights to the device, a wake is waking; both end at all their bytes."""

    class Noting(Progress):
        def report(self, done_bytes: int, total_bytes: int = 0, phase: str = "") -> None:
            super().report(done_bytes, total_bytes, phase)
            seen.append((self.phase, self.done_bytes, self.total_bytes))

    seen: list[tuple[str, int, int]] = []
    model = await load(f"{write_llama(tmp_path)}?device=virtual:0", progress=Noting())
    size = model.info.memory_bytes["virtual:0"]
    assert list(dict.fromkeys(phase for phase, _, _ in seen)) == ["weights", "to the device"]
    assert seen[-1] == ("to the device", size, size)
    await model.sleep(Progress())
    seen.clear()
    await model.wake(Noting())
    assert [seen[0], seen[-1]] == [("waking", 0, size), ("waking", size, size)]


@pytest.mark.parametrize("host", [0, 64 * MIB])
async def test_a_cancelled_wake_leaves_it_asleep(
    host: int, tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits is cancelled: the copying ends, the device is empty, and the next wake succeeds."""
    model = await load(f"{write_llama(tmp_path)}?device=virtual:0", host=host)
    before = digest(model)
    await model.sleep(Progress())
    monkeypatch.setenv(virtual.VARIABLE, "virtual:0=64MiB@100KiB/s")  # five seconds
    progress = Progress()
    waking = asyncio.ensure_future(model.wake(progress))
    while not progress.done_bytes:
        assert not waking.done()
        await asyncio.sleep(0.001)
    assert virtual.taken_bytes("virtual:0") > 0
    waking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waking
    assert virtual.taken_bytes("virtual:0") == 0
    assert {t.numel() for t in model.raw.parameters()} == {0}
    monkeypatch.setenv(virtual.VARIABLE, "virtual:0=64MiB")
    await model.wake(Progress())
    assert digest(model) == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_a_cancelled_wake_on_the_cpu(dtype: str, tmp_path: Path, load: Load) -> None:
    """On the CPU a wake can be cancelled up to its last report; then everything is as it was asleep."""
    model = await load(f"{write_llama(tmp_path)}?device=cpu&dtype={dtype}")
    before = digest(model)
    await model.sleep(Progress())

    class Stopping(Progress):
        def report(self, done_bytes: int, total_bytes: int = 0, phase: str = "") -> None:
            if done_bytes and done_bytes == self.total_bytes:
                self.cancel()
            super().report(done_bytes, total_bytes, phase)

    with pytest.raises(nbp.ClosedError):
        await model.wake(Stopping())
    assert {t.numel() for t in model.raw.parameters()} == {0}
    with pytest.raises(nbp.ClosedError, match="asleep"):
        await model.generate("a", max_tokens=1)
    await model.wake(Progress())
    assert digest(model) == before


async def test_a_cancelled_load_leaves_nothing(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that is cancelled on its way to the device holds neither slab nor host copy."""
    copies = []
    real = slabbed.HostBuffer
    monkeypatch.setattr(
        slabbed, "HostBuffer", lambda *a, **k: copies.append(real(*a, **k)) or copies[-1]
    )

    class Stopping(Progress):
        def report(self, done_bytes: int, total_bytes: int = 0, phase: str = "") -> None:
            if phase == "to the device":
                self.cancel()
            super().report(done_bytes, total_bytes, phase)

    with pytest.raises(nbp.ClosedError):
        await load(f"{write_llama(tmp_path)}?device=virtual:0", host=64 * MIB, progress=Stopping())
    assert virtual.taken_bytes("virtual:0") == 0
    assert [copy.size_bytes for copy in copies] == [0]


async def test_a_load_that_fails_after_its_weights_were_placed(tmp_path: Path, load: Load) -> None:
    """Without a tokenizer the load fails, and its slab is given back at once."""
    write_llama(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(nbp.ProviderError):
        await load(f"{tmp_path}?device=virtual:0")
    assert virtual.taken_bytes("virtual:0") == 0


async def test_a_slab_that_does_not_fit(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load and a wake that find no room say so as such, and a wake can be tried again."""
    model = await load(f"{write_llama(tmp_path)}?device=virtual:0")
    await model.sleep(Progress())
    monkeypatch.setenv(virtual.VARIABLE, "virtual:0=400KiB")
    for attempt in (load(f"{tmp_path}?device=virtual:0"), model.wake(Progress())):
        with pytest.raises(nbp.InsufficientMemoryError, match="virtual:0 is out of memory"):
            await attempt
    monkeypatch.setenv(virtual.VARIABLE, "virtual:0=2MiB")
    await model.wake(Progress())


@pytest.mark.parametrize("device", ["cpu", "virtual:0"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
async def test_a_file_that_changed_is_not_woken_from(
    device: str, damage: str, tmp_path: Path, load: Load
) -> None:
    """A changed, cut or missing file is told with what to do; restored, the model wakes from it."""
    model = await load(f"{write_llama(tmp_path)}?device={device}")
    before = digest(model)
    await model.sleep(Progress())
    path = tmp_path / "model.safetensors"
    told, raw = path.stat(), path.read_bytes()
    inode = path.with_suffix(".kept")
    if damage == "gone":
        path.rename(inode)
    else:
        os.truncate(path, len(raw) // 2 if damage == "cut" else len(raw))
        os.utime(path, ns=(1, 1))
    with pytest.raises(nbp.ProviderError, match=r"model\.safetensors") as caught:
        await model.wake(Progress())
    assert "load it again" in caught.value.hint
    assert virtual.taken_bytes("virtual:0") == 0
    if damage == "gone":
        inode.rename(path)
    else:
        with path.open("r+b") as file:
            file.write(raw)
        os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    await model.wake(Progress())
    assert digest(model) == before


async def test_a_host_copy_needs_no_files(tmp_path: Path, load: Load) -> None:
    """With a copy in main memory a model wakes though its files are gone."""
    model = await load(f"{write_llama(tmp_path)}?device=virtual:0", host=64 * MIB)
    before = digest(model)
    await model.sleep(Progress())
    (tmp_path / "model.safetensors").unlink()
    await model.wake(Progress())
    assert digest(model) == before


@pytest.mark.parametrize("device", ["cpu", "virtual:0"])
async def test_changed_weights_are_not_lost_by_sleeping(
    device: str, tmp_path: Path, load: Load
) -> None:
    """A model whose weights somebody changed does not sleep, and keeps what was changed."""
    model = await load(f"{write_llama(tmp_path)}?device={device}")
    module: Any = model.raw
    with torch.no_grad():
        module.model.norm.weight[0] = 7.0
    with pytest.raises(nbp.UnsupportedError, match="changed"):
        await model.sleep(Progress())
    assert module.model.norm.weight[0] == 7.0
    await model.generate("a", max_tokens=1)


async def test_cast_weights_on_the_cpu_that_no_counter_tells_of(tmp_path: Path, load: Load) -> None:
    """The comparison with the files before the first sleep sees a change that no counter shows."""
    model = await load(f"{write_llama(tmp_path)}?device=cpu")
    module: Any = model.raw
    module.model.layers[1].mlp.up_proj.weight.data[3, 7] = 7.0  # not counted, and in no sample
    with pytest.raises(nbp.UnsupportedError, match="up_proj"):
        await model.sleep(Progress())
    assert module.model.layers[1].mlp.up_proj.weight[3, 7] == 7.0


async def test_added_weights_are_not_left_behind(tmp_path: Path, load: Load) -> None:
    """Whoever adds much to a sleeping-capable model has it stay: its memory would not come back."""
    model = await load(f"{write_llama(tmp_path)}?device=virtual:0")
    model.raw.register_buffer("added", torch.zeros(5 * MIB))  # type: ignore[attr-defined]
    with pytest.raises(nbp.UnsupportedError):
        await model.sleep(Progress())


@pytest.mark.parametrize("word", ["nf4", "int8"])
async def test_a_quantized_model_does_not_offer_sleep(word: str, load: Load) -> None:
    """Quantized layers stay as the library made them; the notes say why and what happens instead."""
    pytest.importorskip("bitsandbytes")
    model = await load(f"demo-xs?device=cpu&quantization={word}")
    assert "sleep" not in model.info.can
    assert model.info.notes == (
        "leaves memory by being freed and is loaded again: its weights are quantized",
    )
    with pytest.raises(nbp.UnsupportedError, match="quantized"):
        await model.sleep(Progress())
    with pytest.raises(nbp.ConfigurationError, match="virtual:0"):
        await load(f"demo-xs?device=virtual:0&quantization={word}")


async def test_converted_weights_sleep_by_a_copy_only(tmp_path: Path, load: Load) -> None:
    """Experts that were merged at the load come back from a host copy; without one there is no sleep."""
    folder = write(tmp_path, "mixtral")
    limited = slabbed.allowance
    try:
        slabbed.allowance = lambda entries: 1000  # type: ignore[assignment]
        model = await load(f"{folder}?device=virtual:0")
        assert "sleep" not in model.info.can
        assert any("keeps no copy" in note and "experts" in note for note in model.info.notes)
        copied = await load(f"{folder}?device=virtual:0", host=64 * MIB)
    finally:
        slabbed.allowance = limited
    assert "sleep" in copied.info.can
    want = digest(copied)
    await copied.sleep(Progress())
    await copied.wake(Progress())
    assert digest(copied) == want == digest(model)


async def test_closing_frees_though_the_module_is_held(tmp_path: Path, load: Load) -> None:
    """Awake or asleep, closing gives slab and host copy back while a traceback holds the module."""
    write_llama(tmp_path)

    def fail(module: object) -> None:
        raise LookupError("planted")

    for asleep in (False, True):
        model = await load(f"{tmp_path}?device=virtual:0", host=64 * MIB)
        try:
            fail(model.raw)
        except LookupError as error:
            kept = error
        if asleep:
            await model.sleep(Progress())
        placement: Any = model._placement
        await model.aclose()
        assert virtual.taken_bytes("virtual:0") == 0
        assert placement.held == {}
        assert "fail" in "".join(traceback.format_exception(kept))
        assert sum(t.numel() for t in model.raw.parameters()) == 0
        with pytest.raises(nbp.ClosedError):
            await model.wake(Progress())


async def test_a_model_that_no_provider_loaded_cannot_sleep(tmp_path: Path) -> None:
    """A model handed over as it is offers no sleep, and says so when asked."""
    write_llama(tmp_path)
    module = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model = TransformersModel(module, tokenizer, Worker("test"))
    assert "sleep" not in model.info.can
    with pytest.raises(nbp.UnsupportedError):
        await model.sleep(Progress())
    await model.aclose()


async def test_customized_models_are_judged_as_they_became(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a subclass makes of a placed model counts: a replaced weight takes the sleep away."""
    real = staging.Loading.place

    def placed(self: staging.Loading, model: Any, *arguments: Any) -> None:
        real(self, model, *arguments)
        model.model.norm.weight.data = model.model.norm.weight.data * 2

    monkeypatch.setattr(staging.Loading, "place", placed)
    model = await load(f"{write_llama(tmp_path)}?device=virtual:0", host=64 * MIB)
    assert "sleep" not in model.info.can
    assert list(model.info.memory_bytes) == ["virtual:0"]  # a copy to wake from would be idle
    assert any("changed after they were loaded" in note for note in model.info.notes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("host", [0, 2**30])
async def test_a_cuda_device_has_its_bytes_back(host: int, tmp_path: Path, load: Load) -> None:
    """On a GPU the driver itself sees the memory free while a model sleeps, and each bit again after."""
    folder = write_llama(tmp_path, hidden=1024, layers=4)
    model = await load(f"{folder}?device=cuda:0", host=host)
    before = [t.cpu() for t in model.raw.parameters()]
    size, awake = model.info.memory_bytes["cuda:0"], torch.cuda.mem_get_info(0)[0]
    await model.sleep(Progress())
    assert torch.cuda.mem_get_info(0)[0] - awake >= size
    await model.wake(Progress())
    after = [t.cpu() for t in model.raw.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    await texts(model)


def test_small_chunks_would_be_slow() -> None:
    """Chunks are large enough for a bus, and a multiple of what aligns entries."""
    assert transfers.CHUNK >= 4 * MIB
    assert transfers.CHUNK % 256 == 0
