"""The access check of Hub ids, against a local server that answers as the Hub does, and without any."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("huggingface_hub")
pytest.importorskip("transformers")

BOUND_S = 0.8  # what the check is given here in place of its 10 s
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
WHOLE = ["config.json", "model.safetensors", "tokenizer.json"]

# What the Hub tells of each model: files, config, whether it is gated.
MODELS: dict[str, tuple[list[str], dict[str, Any], Any]] = {
    "good": (WHOLE, LLAMA, False),
    "sharded": (["config.json", "model-00001-of-00002.safetensors"], LLAMA, False),
    "gated": (WHOLE, LLAMA, "manual"),
    "granted": (WHOLE, LLAMA, "auto"),
    "empty": (["config.json", "README.md"], LLAMA, False),
    "pickled": (["config.json", "pytorch_model-00001-of-00002.bin"], LLAMA, False),
    "gguf": (["model.Q4_K_M.gguf", "README.md"], {}, False),
    "adapter": (["adapter_config.json", "adapter_model.safetensors"], {}, False),
    "dataset": (["data.csv"], {}, False),
    "t5": (WHOLE, {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}, False),
    "bert": (WHOLE, {"architectures": ["BertForMaskedLM"], "model_type": "bert"}, False),
    "new": (WHOLE, {"architectures": ["TomorrowForCausalLM"], "model_type": "tomorrow"}, False),
}
# Status and error code of those that it tells nothing of.
REFUSALS = {
    "missing": (404, "RepoNotFound"),
    "private": (401, "RepoNotFound"),
    "expired": (401, ""),
    "failing": (503, ""),
    "busy": (429, ""),
}


class Hub(BaseHTTPRequestHandler):
    """Answers like https://huggingface.co/api/models."""

    ended: ClassVar[threading.Event] = threading.Event()
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        parts = self.path.split("?")[0].split("/")
        name = parts[4] if len(parts) > 4 else ""
        if name in REFUSALS:
            self._answer(REFUSALS[name][0], {"error": "no"}, REFUSALS[name][1])
        elif name == "slow":
            self.ended.wait(30)
        elif name == "dripping":
            self._drip()
        elif name == "garbled":
            self._answer(200, "<html>")
        elif parts[-1] == "auth-check":
            refused = name == "gated"
            self._answer(403 if refused else 200, {}, "GatedRepo" if refused else "")
        elif "revision" in parts and parts[-1] != "main":
            self._answer(404, {"error": "no"}, "RevisionNotFound")
        else:
            files, config, gated = MODELS[name]
            told = {"id": f"org/{name}", "siblings": [{"rfilename": file} for file in files]}
            self._answer(200, {**told, "config": config, "gated": gated, "tags": []})

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        self._answer(404, {}, "EntryNotFound")

    def _answer(self, status: int, told: object, code: str = "") -> None:
        body = json.dumps(told).encode() if not isinstance(told, str) else told.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(body)

    def _drip(self) -> None:
        """Send a byte now and then: never silent for long, never done."""
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        try:
            while not self.ended.wait(0.1):
                self.wfile.write(b" ")
        except OSError:  # nobody listens any more
            return

    def log_message(self, *_: object) -> None: ...


ASK = """
import json, sys, time
import nbproviders as nbp
from nbproviders.providers.transformers import TransformersProvider
from nbproviders.runtimes import hub
hub._TIMEOUT_S = {bound}
import huggingface_hub, transformers.models.auto.modeling_auto
for name, model_class, options in json.loads(sys.argv[1]):
    began_s = time.perf_counter()
    try:
        if model_class == "load":
            told = nbp.load_sync(f"transformers:org/{{name}}", **options).spec
        elif model_class == "access":
            told = hub.require_access(f"org/{{name}}", whole=True) is None
        else:
            told = TransformersProvider(**options).validate_model_access(f"org/{{name}}", model_class)
    except nbp.ModelAccessError as error:
        told = str(error)
    print("told:" + json.dumps([told, time.perf_counter() - began_s]))
"""

CAUSAL, SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"
Case = tuple[str, str, dict[str, Any]]

ALLOWED: list[Case] = [
    ("good", CAUSAL, {}),
    ("good", CAUSAL, {"revision": "main"}),
    ("sharded", CAUSAL, {}),
    ("granted", CAUSAL, {}),
    ("pickled", CAUSAL, {"allow_pickle": True}),
    ("t5", SEQ2SEQ, {}),
    ("new", CAUSAL, {}),
    *((name, "access", {}) for name in ("good", "granted", "pickled", "bert", "adapter")),
]
REFUSED: list[tuple[Case, str]] = [
    (("missing", CAUSAL, {}), "has no model 'org/missing'"),
    (("private", CAUSAL, {}), "or it is private"),
    (("expired", CAUSAL, {}), "Is HF_TOKEN out of date?"),
    (("gated", CAUSAL, {}), "is gated"),
    (("good", CAUSAL, {"revision": "v9"}), "no revision 'v9'"),
    (("empty", CAUSAL, {}), "holds no weights"),
    (("pickled", CAUSAL, {}), "?allow_pickle=true"),
    (("gguf", CAUSAL, {}), "the provider llama-cpp"),
    (("adapter", CAUSAL, {}), "is an adapter"),
    (("dataset", CAUSAL, {}), "no config.json"),
    (("t5", CAUSAL, {}), "?model_class=AutoModelForSeq2SeqLM"),
    (("bert", CAUSAL, {}), "BertForMaskedLM, which AutoModelForCausalLM cannot load"),
    (("good", SEQ2SEQ, {}), "?model_class=AutoModelForCausalLM"),
    (("failing", CAUSAL, {}), "HTTP 503"),
    (("busy", CAUSAL, {}), "HTTP 429"),
    (("garbled", CAUSAL, {}), "cannot be reached"),
    (("slow", CAUSAL, {}), "did not answer within"),
    (("dripping", CAUSAL, {}), "did not answer within"),
    (("gated", "load", {}), "is gated"),
    (("gated", "access", {}), "is gated"),
    (("missing", "access", {}), "has no model 'org/missing'"),
    (("dripping", "access", {}), "did not answer within"),
    (("bert", "load", {}), "BertForMaskedLM"),
    (("t5", "load", {"model_class": CAUSAL}), "?model_class=AutoModelForSeq2SeqLM"),
]


def ask(cases: list[Case], home: Path, **variables: str) -> list[list[Any]]:
    """Return what each case is told, and the seconds it took, in a process of its own."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
    }
    environment |= {
        "HF_HOME": str(home),
        "NBPROVIDERS_CONFIG": str(home / "none.toml"),
        **variables,
    }
    ran = subprocess.run(
        [sys.executable, "-c", ASK.format(bound=BOUND_S), json.dumps(cases)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    told = [line[5:] for line in ran.stdout.splitlines() if line.startswith("told:")]
    assert len(told) == len(cases), ran.stderr[-2000:]
    return [json.loads(line) for line in told]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What the check says of every case, asked in one process."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    cases = [*ALLOWED, *(case for case, _ in REFUSED)]
    try:
        answers = ask(
            cases,
            tmp_path_factory.mktemp("hub"),
            HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
        )
    finally:
        Hub.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
    return dict(zip(map(str, cases), answers, strict=True))


@pytest.mark.parametrize("case", ALLOWED, ids=str)
def test_what_can_be_loaded(case: Case, told: dict[str, list[Any]]) -> None:
    """A model that is there, of the right class, with weights, and not barred, is True."""
    assert told[str(case)][0] is True


@pytest.mark.parametrize(("case", "words"), REFUSED, ids=str)
def test_what_cannot(case: Case, words: str, told: dict[str, list[Any]]) -> None:
    """Every reason is told as what it is, soon, and by a load before any weights are asked for."""
    answer, seconds = told[str(case)]
    assert words in str(answer)
    assert seconds < BOUND_S + 5
    assert not any(path.endswith(".safetensors") for path in Hub.asked)


def test_without_a_network(tmp_path: Path) -> None:
    """A Hub that nobody answers for, and one that may not be asked, are told apart."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        place = f"http://127.0.0.1:{unused.getsockname()[1]}"
        [(dead, seconds)] = ask([("good", CAUSAL, {})], tmp_path, HF_ENDPOINT=place)
    assert "the Hub cannot be reached (ConnectError)" in dead
    assert seconds < BOUND_S + 5
    [(offline, _)] = ask([("good", CAUSAL, {})], tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in offline


def test_a_download_that_stopped_is_not_the_model(tmp_path: Path) -> None:
    """With its config alone in the cache a model is not here; with its weights it is, network or not."""
    from tests.tiny import write_llama

    repo = tmp_path / "hub" / "models--org--half"
    snapshot = repo / "snapshots" / "abc"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    write_llama(snapshot)
    cases: list[Case] = [("half", CAUSAL, {}), ("half", "access", {})]
    assert [told for told, _ in ask(cases, tmp_path, HF_HUB_OFFLINE="1")] == [True, True]
    (snapshot / "model.safetensors").unlink()
    for half, _ in ask(cases, tmp_path, HF_HUB_OFFLINE="1"):
        assert "only in part in the local cache" in half


def test_the_time_it_is_given() -> None:
    """It takes 10 s at most, unless a test says less."""
    from nbproviders.runtimes import hub

    assert hub._TIMEOUT_S <= 10
