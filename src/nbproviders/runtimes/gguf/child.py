"""Load a GGUF file with llama.cpp and use all of it once: run as a script, in a process that may die.

Imports nothing of this package and, of llama_cpp, only its bindings: it starts in a tenth of a second.
Its output is read by `trial`: lines ``@stage <what>`` before each step, ``@failed <why>``, ``@done``.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib.util
import json
import os
import sys
import types
from pathlib import Path
from typing import Any, NoReturn

FAILED = 3
_ERROR, _CONTINUED = 4, 5  # ggml_log_level
_CONTEXT_TOKENS = 32


def trial_text() -> bytes:
    """Return UTF-8 text in which each byte occurs that can occur in such text."""
    chars = [chr(point) for point in range(0x80 + 0x40)]
    chars += [chr(lead << 6) for lead in range(2, 32)]
    chars += [chr(lead << 12) for lead in range(1, 16) if lead != 13]
    chars += [
        chr(0x800),
        chr(0xD000),
        *(chr((lead << 18) + 0x10000 * (lead == 0)) for lead in range(5)),
    ]
    words = "The quick brown fox, 12345 times: don't!\n\n\t   你好 мир <s> </s> <|im_start|> <0x0A>"
    return "".join([*chars, words]).encode()


def main(order: dict[str, Any]) -> int:
    """Try the file of an order; what it returns is the exit status."""
    _become_harmless(order["seconds"])
    sys.path[:] = order["sys_path"]
    _stage("importing llama_cpp")
    lib = _bindings()
    last = [0]

    def log(level: int, text: bytes, _: object) -> None:
        last[0] = last[0] if level == _CONTINUED else level
        if last[0] == _ERROR:
            os.write(2, text)

    keep = lib.llama_log_callback(log)
    lib.llama_log_set(keep, ctypes.c_void_p(0))
    lib.llama_backend_init()
    path = os.fsencode(order["path"])
    _stage("reading the vocabulary")
    model = _load(lib, path, vocab_only=True)
    _stage("using the vocabulary")
    _use_vocabulary(lib, model)
    lib.llama_model_free(model)
    _stage("loading the tensors")
    model = _load(lib, path, vocab_only=False)
    if order["decode"] and not lib.llama_model_has_encoder(model):
        _decode(lib, model)
    print("@done", flush=True)
    return 0


def _become_harmless(seconds: float) -> None:
    """Die at the latest after so many seconds, before others when memory is short, and without a trace."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        try:
            score.write_text("1000")
        except OSError:  # not everyone may; then it is killed in its turn
            return


def _bindings() -> Any:
    """Return llama_cpp's bindings without its package's own imports, numpy among them."""
    found = importlib.util.find_spec("llama_cpp")
    if found is not None and found.submodule_search_locations:
        package = types.ModuleType("llama_cpp")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["llama_cpp"] = package
        try:
            return importlib.import_module("llama_cpp.llama_cpp")
        except ImportError:  # the bindings now need the package
            del sys.modules["llama_cpp"]
    return importlib.import_module("llama_cpp")


def _load(lib: Any, path: bytes, *, vocab_only: bool) -> Any:
    params = lib.llama_model_default_params()
    params.vocab_only = vocab_only
    params.n_gpu_layers = 0
    if hasattr(params, "use_extra_bufts"):
        params.use_extra_bufts = False  # repacking for this processor takes time and proves nothing
    model = lib.llama_model_load_from_file(path, params)
    if not model:
        _fail("llama.cpp refused it")
    return model


def _use_vocabulary(lib: Any, model: Any) -> None:
    """Tokenize all kinds of text, write out each token, and read the metadata as Python will."""
    vocab = lib.llama_model_get_vocab(model)
    text = trial_text()
    for special in (False, True):
        room = len(text) + 64
        tokens = (ctypes.c_int32 * room)()
        if lib.llama_tokenize(vocab, text, len(text), tokens, room, special, special) < 0:
            _fail("a text has more tokens than bytes")
    piece = ctypes.create_string_buffer(1 << 16)
    for token in range(lib.llama_vocab_n_tokens(vocab)):
        lib.llama_vocab_is_eog(vocab, token)
        lib.llama_token_to_piece(vocab, token, piece, len(piece), 0, True)
    value = ctypes.create_string_buffer(1 << 20)
    for index in range(lib.llama_model_meta_count(model)):
        for read in (lib.llama_model_meta_key_by_index, lib.llama_model_meta_val_str_by_index):
            read(model, index, value, len(value))
            try:
                value.value.decode()
            except UnicodeDecodeError:
                _fail("a text in its metadata is no UTF-8")


def _decode(lib: Any, model: Any) -> None:
    _stage("making a context")
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = _CONTEXT_TOKENS
    params.n_threads = params.n_threads_batch = 1
    context = lib.llama_init_from_model(model, params)
    if not context:
        _fail("llama.cpp made no context")
    _stage("computing")
    vocab = lib.llama_model_get_vocab(model)
    # One token, then two at once: generating and reading a prompt take different ways.
    for count in (1, 2):
        tokens = (ctypes.c_int32 * count)(*[max(lib.llama_vocab_bos(vocab), 0)] * count)
        if lib.llama_decode(context, lib.llama_batch_get_one(tokens, count)):
            _fail("llama.cpp could not compute with it")
    lib.llama_free(context)
    lib.llama_model_free(model)


def _stage(name: str) -> None:
    print(f"@stage {name}", flush=True)


def _fail(why: str) -> NoReturn:
    print(f"@failed {why}", flush=True)
    sys.exit(FAILED)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
