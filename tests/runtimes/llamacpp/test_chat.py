"""Chat templates by themselves: the file's own in its sandbox, llama.cpp's by name."""

from __future__ import annotations

from typing import Any

import pytest

from nbproviders.errors import ConfigurationError, InvalidRequestError
from nbproviders.runtimes.llamacpp import chat
from nbproviders.runtimes.llamacpp.chat import Template, builtin, builtin_formats

pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")


TURNS: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi <b> 'x' é\u2028"},
]


def own(source: str, turns: list[Any] = TURNS) -> str:
    """What a file's template makes of turns."""
    return Template(source, None, "<s>", "</s>").render(turns, "llama-cpp:m")


def named(name: str, turns: list[Any] = TURNS) -> str:
    """What a template of llama.cpp's makes of turns."""
    return Template("", name, "<s>", "</s>").render(turns, "llama-cpp:m")


def test_a_template_is_there_or_not() -> None:
    """The file's, or one by name; with neither there is no chat."""
    assert not Template("", None, "", "")
    assert Template("x", None, "", "")
    assert Template("", "chatml", "", "")


def test_the_files_own_is_rendered_as_transformers_does() -> None:
    """Without escaping, with blocks trimmed, in the same words as the reference."""
    source = (
        "{{ bos_token }}\n"
        "{% for message in messages %}\n"
        "  {%- if message['role'] == 'system' %}[{{ message.content | trim }}]{% else %}\n"
        "{{ message['content'] }}{{ eos_token }}\n"
        "  {% endif %}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}A:{% endif %}{{ messages | tojson }}{{ messages | tojson(indent=1) }}"
    )
    formatter = pytest.importorskip("llama_cpp.llama_chat_format").Jinja2ChatFormatter
    reference = formatter(template=source, eos_token="</s>", bos_token="<s>")(messages=TURNS)
    assert own(source) == reference.prompt
    assert "[Be brief.]" in own(source)
    assert "<b> 'x' é" in own(source)


def test_loops_are_what_they_were() -> None:
    """Counting them leaves conditions, else, recursion, macros, break and continue alone."""
    source = (
        "{% for i in range(6) if i is odd %}{{ loop.index }}{{ i }},{% else %}none{% endfor %}"
        "{% for i in [] %}{% else %}empty{% endfor %};"
        "{%- for i in [1, [2, [3]]] recursive %}{% if i is iterable %}({{ loop(i) }})"
        "{% else %}{{ i }}{% endif %}{% endfor -%};"
        "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}"
        "{{ i }}{% endfor %};{% macro f(x) %}{% for i in x %}<{{ i }}>{% endfor %}{% endmacro %}{{ f('ab') }}"
        "{% set s %}{% for i in 'xy' %}{{ i }}{% endfor %}{% endset %}{{ s }}{{ 'for' }}{# for #}"
    )
    assert own(source) == "11,23,35,empty;1(2(3));02;<a><b>xyfor"


def test_every_loop_is_stopped_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a macro, a block, a condition, a capture: no place hides one."""
    monkeypatch.setattr(chat, "_LONGEST_S", 0.05)
    inner = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    for source in (
        inner,
        f"{{% macro f() %}}{inner}{{% endmacro %}}{{{{ f() }}}}",
        f"{{% set s %}}{inner}{{% endset %}}",
        f"{{% if true %}}{{% generation %}}{inner}{{% endgeneration %}}{{% endif %}}",
        f"{{% filter upper %}}{inner}{{% endfilter %}}",
        inner.replace("{% for", "{%- for"),
        inner.replace("{% for", "{%\n for"),
        inner.replace("{% for i", "{% for (i)"),
    ):
        with pytest.raises(InvalidRequestError, match=r"longer than 0\.05 s"):
            own(source)


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("{{ 3 * 4 }}", "12"),
        ("{{ 'ab' * 2 }}", "abab"),
        ("{{ 2 ** 10 }}", "1024"),
        ("{{ [0] * 2 }}", "[0, 0]"),
    ],
)
def test_small_products_are_computed(source: str, result: str) -> None:
    """Only those that fill the memory are refused."""
    assert own(source) == result


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 9 }}",
        "{{ 10 ** 9 * 'a' }}",
        "{{ [0] * 10 ** 9 }}",
        "{{ (9 ** 999) ** 9999 }}",
    ],
)
def test_large_ones_are_refused(source: str) -> None:
    """Before they are computed."""
    with pytest.raises(InvalidRequestError, match="more than"):
        own(source)


def test_the_turns_are_not_changed() -> None:
    """A template gets copies: what it sets is gone."""
    turns = [dict(turn) for turn in TURNS]
    with pytest.raises(InvalidRequestError):
        own("{% set _ = messages[0].update({'role': 'x'}) %}", turns)
    assert turns == TURNS


def test_a_damaged_template_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails when it is used, so that plain text still works; with what to do."""
    with pytest.raises(InvalidRequestError, match=r"llama-cpp:m.*endfor") as told:
        own("{% for x in y %}")
    assert "raw=True" in str(told.value)
    assert "chat_format" in str(told.value)


# llama.cpp's own


def test_chatml_by_name() -> None:
    """As everybody writes it."""
    assert named("chatml") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi <b> 'x' é\u2028<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_all_of_them_take_a_chat() -> None:
    """Or refuse it by our error; none ends the process, however odd the turns."""
    long = [{"role": "user", "content": "x" * 20_000}]
    odd = [{"role": "nobody", "content": "a\0b\ud800"}, {"role": "", "content": ""}]
    formats = builtin_formats()
    assert len(formats) > 20
    for name in formats:
        assert "hi <b> 'x' é" in named(name), name
        assert "x" * 20_000 in named(name, long), name
        named(name, odd)


def test_names_are_found_in_several_spellings() -> None:
    """Those of llama-cpp-python too; another is refused with the list."""
    assert builtin("Llama-2") == builtin("llama2") == "llama2"
    with pytest.raises(ConfigurationError, match="'nope'") as told:
        builtin("nope")
    assert "chatml" in str(told.value)
    with pytest.raises(ConfigurationError):
        Template("x", "nope", "", "")
