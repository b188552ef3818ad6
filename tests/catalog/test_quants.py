"""Names of GGUF files: which quantization they tell, and which file is meant."""

from __future__ import annotations

import pytest

from nbproviders.catalog.quants import choose, is_model, quant_of, split_quant, stem
from nbproviders.errors import ModelAccessError

REPO = [
    "README.md",
    "Small-F16.gguf",
    "Small-Q2_K.gguf",
    "Small-Q4_K_M.gguf",
    "Small-Q5_K_S.gguf",
    "Small-Q8_0.gguf",
    "Small-UD-Q4_K_XL.gguf",
    "mmproj-Small-F16.gguf",
    "Small-imatrix.gguf",
]
SPLIT = [f"Q4_K_M/Big-Q4_K_M-0000{i}-of-00003.gguf" for i in (3, 1, 2)] + [
    f"BF16/Big-BF16-0000{i}-of-00002.gguf" for i in (2, 1)
]


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Model.Q4_K_M.gguf", "Q4_K_M"),
        ("model-q4_k_m-00001-of-00003.gguf", "Q4_K_M"),
        ("model_q5_0.gguf", "Q5_0"),
        ("Model-IQ2_XS.gguf", "IQ2_XS"),
        ("Model-IQ3_XXS.GGUF", "IQ3_XXS"),
        ("Model.i1-IQ4_NL.gguf", "IQ4_NL"),
        ("Model-fp16.gguf", "F16"),
        ("Model-BF16.gguf", "BF16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("Model-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("Model-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Model-UD-TQ1_0-00001-of-00002.gguf", "UD-TQ1_0"),
        ("Model-Q4_0_4_8.gguf", "Q4_0_4_8"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Q4"),
        ("Q6_K.gguf", "Q6_K"),
        ("Model-IQ4_KSS.gguf", "IQ4_KSS"),
        ("UD-IQ1_S/Model-00001-of-00004.gguf", "UD-IQ1_S"),
        (r"C:\models\Q8_0\model.gguf", "Q8_0"),
        ("Model-f16-Q6_K.gguf", "Q6_K"),
        ("Model-Q6_K-f32.gguf", "Q6_K"),
        ("Q8_0/Model-Q4_K_S.gguf", "Q4_K_S"),
        ("stories260k.gguf", ""),
        ("Qwen3-4B-Q.gguf", ""),
        ("IQ4XSmodel.gguf", ""),
        ("", ""),
    ],
)
def test_quantization_of_a_name(name: str, quant: str) -> None:
    """It is read whatever the case and the punctuation around it, and only where it stands for itself."""
    assert quant_of(name) == quant


def test_what_is_a_model() -> None:
    """A projector, an importance matrix, a later part and another kind of file are none."""
    kept = [name for name in [*REPO, *SPLIT] if is_model(name)]
    assert kept == [*REPO[1:7], SPLIT[1], SPLIT[4]]
    assert stem(SPLIT[1]) == "Big-Q4_K_M"


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("Q2_K", "Small-Q2_K.gguf"),
        ("q5_k_s", "Small-Q5_K_S.gguf"),
        ("fp16", "Small-F16.gguf"),
        ("small-q8_0.gguf", "Small-Q8_0.gguf"),
        ("Small-Q8_0", "Small-Q8_0.gguf"),
        ("UD-Q4_K_XL", "Small-UD-Q4_K_XL.gguf"),
        ("Q4_K_XL", "Small-UD-Q4_K_XL.gguf"),
        (None, "Small-Q4_K_M.gguf"),
    ],
)
def test_choice(wanted: str | None, chosen: str) -> None:
    """A quantization, a file's name or its stem finds its file; without a wish it is Q4_K_M."""
    assert choose(REPO, wanted) == chosen


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("bf16", SPLIT[4]),
        ("Big-BF16", SPLIT[4]),
        ("Big-BF16-00002-of-00002.gguf", SPLIT[4]),
        (SPLIT[1].lower(), SPLIT[1]),
        (None, SPLIT[1]),
    ],
)
def test_of_several_parts_the_first(wanted: str | None, chosen: str) -> None:
    """A model in parts is given by its first, however it is asked for."""
    assert choose(SPLIT, wanted) == chosen


@pytest.mark.parametrize(
    ("quants", "best"),
    [
        ("Q8_0 Q5_K_M Q4_0 Q2_K F16", "Q4_0"),
        ("Q8_0 Q5_K_M IQ4_XS Q2_K F16", "IQ4_XS"),
        ("F16 Q8_0 Q2_K Q6_K", "Q8_0"),
        ("F32 Q3_K_M F16", "Q3_K_M"),
        ("F32 BF16 F16", "F16"),
        ("UD-Q4_K_M Q4_K_M", "Q4_K_M"),
        ("UD-Q4_K_XL Q5_K_M", "UD-Q4_K_XL"),
        ("IQ5_KS F32", "F32"),
        ("IQ6_K", "IQ6_K"),
    ],
)
def test_best_default(quants: str, best: str) -> None:
    """Without Q4_K_M it is another of four to five bits, then eight, then what there is."""
    assert choose([f"m-{quant}.gguf" for quant in quants.split()], None) == f"m-{best}.gguf"


def test_default_does_not_hang_on_the_order() -> None:
    """The order in which a server or a disk lists the files changes nothing."""
    assert choose(REPO[::-1], None) == choose(REPO, None)


@pytest.mark.parametrize(
    ("names", "wanted", "said"),
    [
        (["a.txt", "mmproj-F16.gguf"], None, "no GGUF model among the 2 files: a.txt, mmproj"),
        ([], "Q4_0", "no GGUF model among the 0 files: none"),
        (REPO, "Q3_K_M", "no 'Q3_K_M' among the GGUF files: F16, Q2_K, Q4_K_M, Q5_K_S, Q8_0"),
        (REPO, "mmproj-Small-F16.gguf", "no 'mmproj-Small-F16.gguf' among"),
        (["a.Q4_0.gguf", "b.Q4_0.gguf"], "Q4_0", "could be any of .*: a.Q4_0.gguf, b.Q4_0.gguf"),
        (["a.Q4_K_M.gguf", "b.Q8_0.gguf"], None, "several GGUF models: a.Q4_K_M.gguf, b.Q8_0"),
        (["a.gguf", "b.gguf"], None, "several GGUF models: a.gguf, b.gguf"),
        (["x/m.Q4_0.gguf", "y/m.Q4_0.gguf"], None, "could be any of .*: x/m.Q4_0.gguf, y/m"),
        (["a.gguf", "b.gguf"], "c", "no 'c' among the GGUF files: a.gguf, b.gguf"),
    ],
)
def test_no_choice_is_told(names: list[str], wanted: str | None, said: str) -> None:
    """What is not there, or could be several, is an error with what there is and what to write."""
    with pytest.raises(ModelAccessError, match=said) as caught:
        choose(names, wanted)
    assert caught.value.hint


@pytest.mark.parametrize(
    "names",
    [["a.Q4_0.gguf", "b.Q4_0.gguf"], ["x/m.Q4_0.gguf", "y/m.Q4_0.gguf"], ["a.gguf", "b.gguf"]],
)
def test_the_hint_is_an_answer(names: list[str]) -> None:
    """What the hint of an ambiguous wish says to write finds one file."""
    with pytest.raises(ModelAccessError) as caught:
        choose(names, None)
    assert choose(names, caught.value.hint.rpartition(" :")[2].removesuffix(".")) == names[0]


def test_a_long_list_is_cut() -> None:
    """An error over a folder of thousands of files stays readable."""
    with pytest.raises(ModelAccessError, match="and 960 more") as caught:
        choose([f"m{i}.gguf" for i in range(1000)], "x")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("org/name:Q4_K_M", ("org/name", "Q4_K_M")),
        ("org/name:file-stem", ("org/name", "file-stem")),
        ("org/name:sub/file.gguf", ("org/name", "sub/file.gguf")),
        ("org/name", ("org/name", None)),
        ("org/name:", ("org/name:", None)),
        ("repo:Q4_K_M", ("repo", "Q4_K_M")),
        ("demo-m:q8_0", ("demo-m", "q8_0")),
        ("/models/small:Q8_0", ("/models/small", "Q8_0")),
        ("./small:stem", ("./small", "stem")),
        (r"C:\models:Q8_0", (r"C:\models", "Q8_0")),
        ("/a/b.gguf", ("/a/b.gguf", None)),
        ("/a:b/c.gguf", ("/a:b/c.gguf", None)),
        (r"C:\m.gguf", (r"C:\m.gguf", None)),
        ("C:/m.gguf", ("C:/m.gguf", None)),
        ("C:m.gguf", ("C:m.gguf", None)),
        ("llama3:8b", ("llama3:8b", None)),
        ("llama3.2:3b-instruct-q4_K_M", ("llama3.2:3b-instruct-q4_K_M", None)),
        ("ollama://x:tag", ("ollama://x:tag", None)),
        ("ollama://hf.co/org/name:Q4_K_M", ("ollama://hf.co/org/name:Q4_K_M", None)),
        ("", ("", None)),
        (":", (":", None)),
    ],
)
def test_split(model: str, parts: tuple[str, str | None]) -> None:
    """A quantization or file's name is split off a Hub id or a path, and nothing else is touched."""
    assert split_quant(model) == parts
