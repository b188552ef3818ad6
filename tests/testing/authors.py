"""Small providers that keep every promise, one in each of the three styles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

from nbproviders.abc import (
    BaseProvider,
    Finish,
    GenerationParams,
    Model,
    ModelHandle,
    ModelInfo,
    ModelProvider,
    Option,
    Progress,
    Request,
    ResidentProvider,
    ResourceKey,
    Stream,
    Usage,
    WeightsProvider,
    as_request,
)
from nbproviders.core.params import Messages
from nbproviders.errors import ModelAccessError

KNOWN = ("tiny", "small")
PROMPT = "one two three four"
REFUSED = "refuse this"
LOAD_S = 0.002


def check(name: str) -> None:
    """Refuse a name that nobody knows, as a library does."""
    if name not in KNOWN:
        raise FileNotFoundError(f"there is no model {name!r}")


def words(prompt: object, most: int | None) -> list[str]:
    """Return what is answered, in pieces; one prompt is refused, as a library does."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]  # type: ignore[index]
    if text == REFUSED:
        raise ZeroDivisionError("a library's own error")
    found = text.split()[:most]
    return [f" {word}" if count else word for count, word in enumerate(found)]


class Words(Model):
    """Writes the prompt back, a word at a time."""

    def __init__(self, **info: Any) -> None:
        self.info = ModelInfo("words", **{"memory_bytes": {"cpu": 8}, **info})

    def stream(self, request: str | Messages | Request) -> Stream:
        asked = as_request(request)
        return Stream(self._run(asked), asked, self.info.spec)

    async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        pieces = words(request.prompt, request.params.max_tokens)
        for piece in pieces:
            await asyncio.sleep(0)
            yield piece
        yield Finish(usage=Usage(len(str(request.prompt).split()), len(pieces)))

    async def aclose(self) -> None:
        """Nothing to free."""


class Resident(ResidentProvider):
    """Writes `load`."""

    options: ClassVar[dict[str, Option]] = {"width": Option((int,), 1, "How wide.")}
    model_type: ClassVar[type[Words]] = Words
    load_s: ClassVar[float] = LOAD_S

    async def load(self, key: ResourceKey, progress: Progress) -> Model:
        check(key.model)
        await asyncio.sleep(self.load_s)
        return self.model_type()


class Thing:
    """What a `Resource` sets up: it has nothing of a `Model`."""

    async def stream(self, prompt: str, max_tokens: int | None = None) -> AsyncGenerator[str, None]:
        for piece in words(prompt, max_tokens):
            await asyncio.sleep(0)
            yield piece


class Resource(ModelProvider):
    """Writes `setup` and `teardown`."""

    def __init__(self) -> None:
        self.things: dict[str, Thing] = {}

    async def setup(self, resource_spec: str, **config: Any) -> ModelHandle:
        check(resource_spec)
        await asyncio.sleep(LOAD_S)
        resource_id = f"{resource_spec}-{len(self.things)}-{id(config)}"
        self.things[resource_id] = Thing()
        return ModelHandle(resource_id, self.things[resource_id], self)

    async def teardown(self, resource_id: str) -> None:
        self.things.pop(resource_id, None)


class Service(BaseProvider):
    """Writes `generate` and `health_check`."""

    async def generate(self, prompt: str, params: GenerationParams | None = None) -> str:
        await asyncio.sleep(0)
        return "".join(words(prompt, params.max_tokens if params else None))

    async def health_check(self) -> bool:
        return True

    async def __aenter__(self) -> Any:
        if self.config.model not in KNOWN:
            raise ModelAccessError(f"no model {self.config.model!r}", hint="Ask for another.")
        return self


class Weights(WeightsProvider):
    """Writes the four methods about weights."""

    def load_model(
        self,
        model_id: str,
        model_class: str,
        quantization_config: Any = None,
        device_map: Any = "auto",
        **kwargs: Any,
    ) -> Any:
        check(model_id)
        return Thing()

    def load_tokenizer(self, model_id: str, **kwargs: Any) -> Any:
        return None

    def validate_model_access(self, model_id: str, model_class: str) -> bool:
        return model_id in KNOWN

    def get_provider_name(self) -> str:
        return "weights"


class Duck:
    """Four methods about weights, and no base class."""

    load_model, load_tokenizer = Weights.load_model, Weights.load_tokenizer
    validate_model_access = Weights.validate_model_access
    get_provider_name = Weights.get_provider_name
