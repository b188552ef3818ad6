"""Run as a program: a small server that speaks chat completions, in place of a real one.

It takes the arguments and environment that the real ones take, answers with what the user said last, and
does what its own arguments (before the provider's) and its prompts say. Of the standard library alone, so
that it starts at once.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

SLOW_S = 0.05


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", default="")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--note", type=Path, help="where each start leaves a line")
    parser.add_argument("--flood", type=int, default=0, help="megabytes said before it is ready")
    parser.add_argument("--end", type=int, help="exit status with which it ends at once")
    parser.add_argument("--load-s", type=float, default=0.0)
    parser.add_argument("--context", type=int, default=1000)
    return parser.parse_known_args()[0]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    key = os.environ.get("VLLM_API_KEY") or os.environ.get("API_KEY") or ""
    context = 1000

    def do_GET(self) -> None:
        if self.path == "/health" or self._let_in():
            self._say(200, {"data": [{"id": "standin", "max_model_len": self.context}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._let_in():
            return
        chat = "messages" in body
        text = body["messages"][-1]["content"] if chat else body["prompt"]
        if len(text.split()) > self.context:
            told = f"This model's maximum context length is {self.context} tokens"
            self._say(400, {"error": {"message": told, "code": "context_length_exceeded"}})
            return
        words = text.split()[: body.get("max_tokens") or 1000] or [""]
        usage = {"prompt_tokens": len(text.split()), "completion_tokens": len(words)}
        usage["total_tokens"] = sum(usage.values())
        if not body.get("stream"):
            self._die_if("die", text)
            self._say(200, self._piece(chat, " ".join(words), "stop", usage, "message"))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number, word in enumerate(words):
            self._event(self._piece(chat, f" {word}" if number else word, None, None, "delta"))
            self._die_if("die", text)
            if "slow" in text:
                time.sleep(SLOW_S)
        self._event(self._piece(chat, "", "stop", usage, "delta"))
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _piece(self, chat: bool, text: str, finish: str | None, usage: Any, where: str) -> Any:
        said = {where: {"role": "assistant", "content": text}} if chat else {"text": text}
        return {
            "object": "chat.completion",
            "model": "standin",
            "choices": [{"index": 0, **said, "finish_reason": finish}],
            "usage": usage,
        }

    def _event(self, value: Any) -> None:
        try:
            self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
            self.wfile.flush()
        except OSError:
            print("the client went away", flush=True)
            sys.exit()  # of this thread alone

    def _die_if(self, word: str, text: str) -> None:
        if word in text:
            print("CUDA error: out of memory", self.key, flush=True)
            os._exit(3)

    def _let_in(self) -> bool:
        if self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            self._say(401, {"error": {"message": "Invalid API key."}})
            return False
        return True

    def _say(self, status: int, body: Any) -> None:
        told = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_: Any) -> None:
        """Say nothing of requests."""


def main() -> None:
    options = parsed()
    if options.note is not None:
        with options.note.open("a") as file:
            file.write(json.dumps({"pid": os.getpid(), "argv": sys.argv, "port": options.port}))
            file.write("\n")
    if options.end is not None:
        print("no such model:", options.model, Handler.key, flush=True)
        sys.exit(options.end)
    for _ in range(options.flood * 10):
        print("x" * 99_999)
    print("loading shard 1 of 2", Handler.key, flush=True)
    time.sleep(options.load_s)
    Handler.context = options.context
    http.server.ThreadingHTTPServer.request_queue_size = 128
    server = http.server.ThreadingHTTPServer((options.host, options.port), Handler)
    threading.Thread(target=server.serve_forever).start()


if __name__ == "__main__":
    main()
