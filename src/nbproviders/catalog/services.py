"""Services that speak HTTP: where each is, where its key is looked for, and where it leaves the common way.

A row is data. One of the chat-completions protocol needs no more than a row here and an entry point to
`nbproviders.providers.openai`. Addresses and spellings are those of the services' own documentation.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Service:
    """One service.

    Attributes
    ----------
    name
        Of its provider: what stands before the colon of a reference.
    title
        As people know it.
    base_url
        Where it is, unless told otherwise.
    key_variables
        Environment variables that may hold its key, the first is the one to recommend; none: it takes no key.
    protocol
        What it speaks.
    url_variable
        Environment variable that may hold another base URL.
    max_tokens, seed
        How its chat completions spell these parameters; empty: it does not take it.
    stream_usage
        Whether a stream has to be asked for its count of tokens.
    """

    name: str
    title: str
    base_url: str
    key_variables: tuple[str, ...] = ()
    protocol: str = "chat-completions"
    url_variable: str = ""
    max_tokens: str = "max_tokens"
    seed: str = "seed"
    stream_usage: bool = True


_ROWS = (
    Service(
        "openai",
        "OpenAI",
        "https://api.openai.com/v1",
        ("OPENAI_API_KEY",),
        url_variable="OPENAI_BASE_URL",
        max_tokens="max_completion_tokens",  # max_tokens is refused by its reasoning models
    ),
    Service(
        "anthropic",
        "Anthropic",
        "https://api.anthropic.com",
        ("ANTHROPIC_API_KEY",),
        url_variable="ANTHROPIC_BASE_URL",
        protocol="anthropic",
    ),
    Service("cerebras", "Cerebras", "https://api.cerebras.ai/v1", ("CEREBRAS_API_KEY",)),
    Service(
        "deepinfra", "DeepInfra", "https://api.deepinfra.com/v1/openai", ("DEEPINFRA_API_KEY",)
    ),
    Service("deepseek", "DeepSeek", "https://api.deepseek.com/v1", ("DEEPSEEK_API_KEY",), seed=""),
    Service(
        "fireworks", "Fireworks", "https://api.fireworks.ai/inference/v1", ("FIREWORKS_API_KEY",)
    ),
    Service(
        "gemini",
        "Google Gemini",
        "https://generativelanguage.googleapis.com/v1beta/openai",
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        seed="",
    ),
    Service(
        "gigachat",
        "GigaChat",
        "https://gigachat.devices.sberbank.ru/api/v1",
        ("GIGACHAT_CREDENTIALS",),
        url_variable="GIGACHAT_BASE_URL",
        protocol="gigachat",
    ),
    Service("groq", "Groq", "https://api.groq.com/openai/v1", ("GROQ_API_KEY",)),
    Service("huggingface", "Hugging Face", "https://router.huggingface.co/v1", ("HF_TOKEN",)),
    Service("lmstudio", "LM Studio", "http://localhost:1234/v1"),
    Service(
        "mistral",
        "Mistral",
        "https://api.mistral.ai/v1",
        ("MISTRAL_API_KEY",),
        seed="random_seed",
        stream_usage=False,  # it tells of itself, and refuses to be asked
    ),
    Service("nvidia", "NVIDIA", "https://integrate.api.nvidia.com/v1", ("NVIDIA_API_KEY",)),
    Service(
        "ollama", "Ollama", "http://localhost:11434", url_variable="OLLAMA_HOST", protocol="ollama"
    ),
    Service("openrouter", "OpenRouter", "https://openrouter.ai/api/v1", ("OPENROUTER_API_KEY",)),
    Service(
        "perplexity", "Perplexity", "https://api.perplexity.ai", ("PERPLEXITY_API_KEY",), seed=""
    ),
    Service(
        "sambanova", "SambaNova", "https://api.sambanova.ai/v1", ("SAMBANOVA_API_KEY",), seed=""
    ),
    Service("together", "Together", "https://api.together.xyz/v1", ("TOGETHER_API_KEY",)),
    Service("xai", "xAI", "https://api.x.ai/v1", ("XAI_API_KEY",)),
    Service(
        "yandexgpt",
        "YandexGPT",
        "https://llm.api.cloud.yandex.net",
        ("YANDEX_API_KEY", "YC_API_KEY"),
        seed="",
        protocol="yandexgpt",
    ),
)
SERVICES = {row.name: row for row in _ROWS}
