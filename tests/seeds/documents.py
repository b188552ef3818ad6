"""The five documents that teach people to write providers: their code blocks, imports pointed here.

`BLOCKS` accounts for every block: how it runs, or why it cannot, and the test that shows it.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("NBPROVIDERS_TEST_SEEDS") or REPOSITORY.parent / "shared" / "seeds")
NAMES = (
    "dotevals-create-a-plugin",
    "doteval-provider-pattern",
    "dotevals-providers-api",
    "orchestrator-custom-provider",
    "modelforge-custom-providers",
)
FOUND = {name: path for name in NAMES for path in sorted(FOLDER.glob(f"{name}*"))[:1]}

IMPORTS = {
    r"from doteval(s\.providers)? import ModelProvider, ModelHandle": (
        "from nbproviders.abc import ModelProvider, ModelHandle, ResourceHandle"
    ),
    r"from \.provider import": "from provider import",
    r"from mypackage import": "from provider import",
    r"from \.\.logging_config import": "from nbproviders.abc import",
    r"from \.\.exceptions import": "from nbproviders.errors import",
    r"from \.custom_provider import CustomProvider\n": "",
}


class Told(NamedTuple):
    """How a block is accounted for.

    Attributes
    ----------
    words
        A line of it that no other block of the document has.
    how
        ``as it is``, ``import changed``, ``with stand-ins`` for names that it never defines,
        ``corrected``, or ``no code``.
    why
        What is added or corrected, or why there is nothing to run.
    test
        The test that runs it, as ``module::function`` below ``tests``; empty where nothing can run.
    """

    words: str
    how: str
    why: str
    test: str = ""


_DOTEVALS = "pytest_plugin.test_dotevals"
_GUIDES = "seeds.test_guides"
_ORCHESTRATOR = "seeds.test_orchestrator"
_MODELFORGE = "seeds.test_modelforge"

BLOCKS: dict[str, list[Told]] = {
    "dotevals-create-a-plugin": [
        Told("mkdir my-model-provider", "no code", "a shell command"),
        Told("├── pyproject.toml", "no code", "a tree of files; new-provider writes it"),
        Told(
            "class MyModelProvider(ModelProvider):",
            "import changed",
            "",
            f"{_DOTEVALS}::test_create_a_plugin",
        ),
        Told(
            "def my_model_provider():", "import changed", "", f"{_DOTEVALS}::test_create_a_plugin"
        ),
        Told("my_model = ", "as it is", "", f"{_GUIDES}::test_entry_points_are_read"),
        Told(
            "# Install in development mode",
            "no code",
            "shell commands; the last one names a module that no dotevals has",
            f"{_GUIDES}::test_what_is_available_is_listed",
        ),
        Told("pip install my-model-provider", "no code", "a shell command"),
        Told(
            "def eval_with_my_provider(",
            "with stand-ins",
            "test_data",
            f"{_DOTEVALS}::test_create_a_plugin",
        ),
    ],
    "doteval-provider-pattern": [
        Told(
            "async def client(request, model_providers):",
            "as it is",
            "",
            f"{_DOTEVALS}::test_provider_pattern",
        ),
        Told(
            "class MyModelProvider(ModelProvider):",
            "import changed",
            "and a stand-in for MyClient",
            f"{_DOTEVALS}::test_provider_pattern",
        ),
        Told(
            "class VLLMProvider:",
            "with stand-ins",
            "VLLMClient and _start_server",
            f"{_GUIDES}::test_the_class_without_a_base",
        ),
        Told(
            "# Session-scoped provider",
            "with stand-ins",
            "config",
            f"{_DOTEVALS}::test_provider_pattern",
        ),
        Told(
            'project.entry-points."doteval.model_providers"',
            "as it is",
            "",
            f"{_GUIDES}::test_entry_points_are_read",
        ),
        Told(
            "def eval_with_discovery(model_providers):",
            "corrected",
            "it awaits in a plain function",
            f"{_DOTEVALS}::test_provider_pattern",
        ),
        Told(
            "async def eval_models(prompt, model_client):",
            "with stand-ins",
            "dataset",
            f"{_DOTEVALS}::test_provider_pattern",
        ),
        Told("async def eval_with_control(", "as it is", "", f"{_DOTEVALS}::test_provider_pattern"),
        Told(
            "def application(request, vllm_provider):",
            "with stand-ins",
            "tasks",
            f"{_DOTEVALS}::test_provider_pattern",
        ),
        Told(
            "class CachingManager:",
            "with stand-ins",
            "_make_key and _create_client",
            f"{_GUIDES}::test_caching",
        ),
        Told(
            "def my_manager(request):",
            "with stand-ins",
            "MyManager, and the option itself",
            f"{_GUIDES}::test_options_of_the_command_line",
        ),
        Told(
            "async def setup(self, spec: str) -> ResourceHandle:",
            "with stand-ins",
            "a class around the method",
            f"{_GUIDES}::test_failures_of_a_setup",
        ),
        Told(
            '"""Resource manager for X service.',
            "as it is",
            "",
            f"{_GUIDES}::test_promises_in_words",
        ),
        Told("# Bad - confusing", "as it is", "", f"{_GUIDES}::test_one_pattern_and_not_three"),
        Told(
            "# Good - one way",
            "with stand-ins",
            "the name ResourceHandle",
            f"{_GUIDES}::test_one_pattern_and_not_three",
        ),
    ],
    "dotevals-providers-api": [
        Told(
            "from abc import ABC, abstractmethod",
            "import changed",
            "",
            f"{_GUIDES}::test_the_classes_it_defines",
        ),
        Told("class ModelHandle:", "as it is", "", f"{_GUIDES}::test_the_classes_it_defines"),
        Told(
            '"""Provider for OpenAI models."""',
            "import changed",
            "ResourceHandle is never defined",
            f"{_DOTEVALS}::test_providers_api",
        ),
        Told(
            '"""Provider for vLLM server instances."""',
            "import changed",
            "_wait_for_server has no body; a stand-in for vLLM",
            f"{_GUIDES}::test_a_server_for_each_model",
        ),
        Told("def openai_provider():", "import changed", "", f"{_DOTEVALS}::test_providers_api"),
        Told(
            "async def eval_gpt4(", "with stand-ins", "dataset", f"{_DOTEVALS}::test_providers_api"
        ),
        Told(
            "async def eval_models(prompt, model_client):",
            "with stand-ins",
            "prompts",
            f"{_DOTEVALS}::test_providers_api",
        ),
        Told(
            'anthropic = "mypackage:AnthropicProvider"',
            "as it is",
            "",
            f"{_GUIDES}::test_entry_points_are_read",
        ),
    ],
    "orchestrator-custom-provider": [
        Told(
            "class YourProvider(BaseProvider):",
            "import changed",
            "",
            f"{_ORCHESTRATOR}::test_the_provider_answers",
        ),
        Told(
            "from .your_provider import YourProvider",
            "import changed",
            "",
            f"{_ORCHESTRATOR}::test_its_registration_names_it",
        ),
        Told(
            'router = Router(strategy="round-robin")',
            "import changed",
            "",
            f"{_ORCHESTRATOR}::test_the_router_routes",
        ),
        Told(
            "async def test_generate_success():",
            "import changed",
            "",
            f"{_ORCHESTRATOR}::test_its_tests_pass",
        ),
        Told(
            'raise AuthenticationError("Invalid credentials")',
            "with stand-ins",
            "a fragment of a method",
            f"{_ORCHESTRATOR}::test_errors_are_mapped_as_it_says",
        ),
        Told(
            "result = await self._retry_with_backoff(make_request)",
            "with stand-ins",
            "a fragment of a method",
            f"{_ORCHESTRATOR}::test_its_retry_logic",
        ),
        Told(
            'self.logger.info("Making request to API")',
            "with stand-ins",
            "a fragment of a method",
            f"{_ORCHESTRATOR}::test_its_logging",
        ),
        Told(
            'config.custom_field = "value"  # Won\'t work with Pydantic',
            "with stand-ins",
            "config",
            f"{_ORCHESTRATOR}::test_its_configuration",
        ),
        Told(
            ") -> str:\n    ...",
            "with stand-ins",
            "a fragment of a class",
            f"{_ORCHESTRATOR}::test_its_type_hints",
        ),
        Told(
            "async def test_generate_with_mock():",
            "import changed",
            "",
            f"{_ORCHESTRATOR}::test_its_tests_pass",
        ),
        Told(
            "async def test_generate_real():",
            "import changed",
            "",
            f"{_ORCHESTRATOR}::test_its_tests_pass",
        ),
        Told("# Your Provider\n\nBrief description", "no code", "the outline of a page to write"),
    ],
    "modelforge-custom-providers": [
        Told("class ModelProvider(Protocol):", "as it is", "", f"{_GUIDES}::test_the_protocol"),
        Told(
            "# ModelForge/providers/custom_provider.py",
            "import changed",
            "",
            f"{_MODELFORGE}::test_the_custom_provider_is_used_like_ours",
        ),
        Told(
            "PROVIDER_REGISTRY = {",
            "import changed",
            "HuggingFaceProvider and UnslothProvider are never defined; registering takes the table's place",
            f"{_GUIDES}::test_the_table_of_providers",
        ),
        Told(
            "VALID_PROVIDERS = [",
            "as it is",
            "list_available takes its place",
            f"{_GUIDES}::test_the_table_of_providers",
        ),
        Told(
            "# test_custom_provider.py",
            "import changed",
            "",
            f"{_MODELFORGE}::test_the_documents_test_script_as_written",
        ),
        Told(
            "class CloudAPIProvider:",
            "with stand-ins",
            "CloudModelWrapper, and the methods it leaves out",
            f"{_MODELFORGE}::test_a_cloud_wrapper",
        ),
        Told(
            "class OptimizedLocalProvider:",
            "with stand-ins",
            "the methods it leaves out",
            f"{_MODELFORGE}::test_an_optimized_local_provider",
        ),
        Told(
            "class GGUFProvider:",
            "with stand-ins",
            "the methods it leaves out",
            f"{_MODELFORGE}::test_a_gguf_provider",
        ),
        Told(
            "self.config = config or {",
            "with stand-ins",
            "the methods it leaves out",
            f"{_MODELFORGE}::test_the_configuration_block",
        ),
        Told(
            '"provider": "custom",', "as it is", "", f"{_MODELFORGE}::test_the_configuration_block"
        ),
        Told("custom-library>=1.0.0", "as it is", "", f"{_GUIDES}::test_extras"),
        Told(
            'logger.debug(f"Loading with kwargs',
            "with stand-ins",
            "a fragment of a method",
            f"{_GUIDES}::test_what_it_logs",
        ),
    ],
}


def blocks(name: str) -> list[tuple[str, str]]:
    """Return all code blocks of a document: language and text, as they stand."""
    text = FOUND[name].read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def block(name: str, words: str) -> str:
    """Return the one block of a document that holds these words, its imports pointed here."""
    [found] = [text for _, text in blocks(name) if words in text]
    for old, new in IMPORTS.items():
        found = re.sub(old, new, found)
    return found


def run(code: str, **names: Any) -> dict[str, Any]:
    """Execute a block with the names it takes for granted; return what it defines."""
    # A module that exists: dataclasses look up their own.
    namespace: dict[str, Any] = {"__name__": __name__, **names}
    compiled = compile(code, "document", "exec", dont_inherit=True)
    assert not compiled.co_flags & (inspect.CO_COROUTINE | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    exec(compiled, namespace)
    return namespace
