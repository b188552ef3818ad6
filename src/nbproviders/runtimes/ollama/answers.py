"""What is asked of an Ollama server for a request, and what the lines of its answer say."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from nbproviders.core.completion import Finish, FinishReason, Usage
from nbproviders.core.params import Request
from nbproviders.core.tokens import Token
from nbproviders.errors import InvalidRequestError, UnsupportedError
from nbproviders.runtimes.http import values

_NS = 1e-9


def body(
    request: Request, model: str, *, num_ctx: int | None, think: bool | str | None
) -> tuple[str, dict[str, Any]]:
    """Return where to send a request, and what.

    Always for a stream: a whole answer would leave the wire silent for as long as it takes.

    Parameters
    ----------
    num_ctx
        Most tokens of prompt and answer; another one than before makes Ollama load the model anew.
    think
        Whether, or how hard, to think; None leaves it to the model.

    Raises
    ------
    InvalidRequestError
        For an empty plain text, which Ollama takes for a wish to load the model.
    """
    told: dict[str, Any] = {"model": model, "stream": True}
    prompt = request.prompt
    if not isinstance(prompt, str):
        told["messages"] = list(prompt)
    elif request.chat is not False:
        told["messages"] = [{"role": "user", "content": prompt}]
    elif prompt:
        told |= {"prompt": prompt, "raw": True}
    else:
        raise InvalidRequestError(
            "Ollama continues no empty text.", hint="Give a prompt of at least one character."
        )
    if options := _options(request, num_ctx):
        told["options"] = options
    if think is not None:
        told["think"] = think
    if request.logprobs:
        told["logprobs"] = True
    return ("api/chat" if "messages" in told else "api/generate"), told


def _options(request: Request, num_ctx: int | None) -> dict[str, Any]:
    params = request.params
    named = {
        "num_ctx": num_ctx,
        "temperature": params.temperature,
        "num_predict": params.max_tokens,
        "top_p": params.top_p,
        "stop": list(params.stop) or None,
        "seed": params.seed,
    }
    return {name: value for name, value in named.items() if value is not None}


@dataclass(slots=True)
class Answer:
    """An answer while it comes: give it each line by `take`, and ask for its `finish` at the end.

    Attributes
    ----------
    what
        Who answers, for errors.
    began_s
        When it was asked, by the same clock as in `take`.
    reason
        Why it ended; None while it goes on.
    """

    what: str
    began_s: float
    reason: FinishReason | None = None
    _usage: Usage = field(default_factory=Usage)
    _thoughts: list[str] = field(default_factory=list)
    _tokens: list[Token] = field(default_factory=list)
    _first_s: float | None = None
    _load_s: float = 0.0
    _total_s: float = 0.0

    def take(self, value: Any, now_s: float) -> str:
        """Take in a line, and return its text.

        Parameters
        ----------
        value
            The parsed JSON.
        now_s
            When it came.

        Raises
        ------
        ServiceUnavailableError
            If it is of another form.
        """
        with values.of_form("Ollama's", self.what):
            said = value.get("message")
            text = values.text(value["response"] if said is None else said.get("content"))
            self._thoughts.append(values.text((value if said is None else said).get("thinking")))
            if text:  # the tokens of a thought are no part of the answer
                self._first_s = self._first_s or now_s
                told = value.get("logprobs") or ()
                self._tokens += [
                    Token(values.text(one["token"]), -1, values.logprob(one["logprob"]))
                    for one in told
                ]
            if value.get("done"):
                self._end(value)
        return text

    def _end(self, value: Any) -> None:
        why = value.get("done_reason")
        if why in ("load", "unload"):
            raise ValueError("it answered another question")
        self.reason = "length" if why == "length" else "stop"
        self._usage = Usage(
            values.count(value.get("prompt_eval_count")), values.count(value.get("eval_count"))
        )
        self._total_s = values.count(value.get("total_duration")) * _NS
        self._load_s = values.count(value.get("load_duration")) * _NS

    def finish(self, request: Request, *, chat: bool) -> Finish:
        """Return the end of the answer to a request.

        Raises
        ------
        ServiceUnavailableError
            If it has not ended.
        UnsupportedError
            If the request asked for probabilities, and none came.
        """
        if self.reason is None:
            raise values.cut_off(self.what)
        if request.logprobs and self._first_s is not None and not self._tokens:
            raise UnsupportedError(
                f"{self.what} told no probabilities.", hint="Ollama does from 0.12.11 on."
            )
        end = Finish(
            self.reason,
            self._usage,
            request.params,
            chat=chat,
            batch_invariant=False,
            reasoning="".join(self._thoughts),
            tokens=tuple(self._tokens),
        )
        return self._timed(end) if self._total_s else end

    def _timed(self, end: Finish) -> Finish:
        """Tell the waiting for a model to be loaded apart from its work; both by the server's clock."""
        work_s = max(self._total_s - self._load_s, 0.0)
        ttft_s = work_s
        if self._first_s is not None:
            ttft_s = min(max(self._first_s - self.began_s - self._load_s, 0.0), work_s)
        return replace(end, queue_s=self._load_s, ttft_s=ttft_s, total_s=work_s)
