"""A tokenizer's way to cut text, under llama.cpp's name for it, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from exporting.pre_tokenizer import KNOWN, llama_cpp_name

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = BYTES | {"use_regex": True}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def tokenizer(*steps: dict[str, Any], **parts: Any) -> str:
    pre = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": list(steps)}
    model = {"type": "BPE", "vocab": {}, "merges": []} | parts.pop("model", {})
    return json.dumps({"pre_tokenizer": pre, "model": model, "normalizer": None, "added_tokens": []} | parts)


def pattern_of(name: str) -> str:
    return next(steps[0][1] for steps, known in KNOWN.items() if known == name)


def test_the_tokenizer_that_is_trained_here_is_gpt_2(tokenizer_json: Path) -> None:
    assert llama_cpp_name(tokenizer_json.read_text(encoding="utf-8"), "tokenizer.json") == "gpt-2"


def test_those_of_others_are_known_by_what_they_do() -> None:
    assert llama_cpp_name(tokenizer(split(pattern_of("qwen2")), BYTES), "t") == "qwen2"
    assert llama_cpp_name(tokenizer({"type": "Digits", "individual_digits": True}, GPT2), "t") == "smollm"
    llama = tokenizer(split(pattern_of("llama-bpe")), BYTES, model={"ignore_merges": True})
    assert llama_cpp_name(llama, "t") == "llama-bpe"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tokenizer(split(r"\w+"), BYTES), r"it cuts text by Split \\w\+; ByteLevel False, which is none of the rules"),
        (tokenizer({"type": "Metaspace", "replacement": "_"}), "it cuts text by Metaspace"),
        (tokenizer(GPT2 | {"add_prefix_space": True}), "it cuts text by ByteLevel"),
        (tokenizer(GPT2, normalizer={"type": "NFC"}), "it normalizes text first"),
        (tokenizer(GPT2, model={"type": "Unigram"}), "it is no byte-level BPE but Unigram"),
        (tokenizer(GPT2, model={"ignore_merges": True}), "its ignore_merges is True"),
        (tokenizer(split(pattern_of("llama-bpe")), BYTES), "its ignore_merges is False"),
        (tokenizer(GPT2, added_tokens=[{"content": "<x>", "lstrip": True}]), "its token <x> takes spaces with it"),
    ],
)
def test_what_llama_cpp_would_cut_differently_is_refused_with_the_reason(content: str, reason: str) -> None:
    with pytest.raises(
        UserError, match=rf"^t.json: llama.cpp would make other tokens .*since {reason}.*; use the folder"
    ):
        llama_cpp_name(content, "t.json")
