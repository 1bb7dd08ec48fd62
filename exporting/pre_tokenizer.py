"""How a tokenizer.json cuts text before it merges, under the name that llama.cpp has for it.

llama.cpp has the cutting rules built in, and a GGUF file names one. Its converter knows vocabularies by a hash over
some token ids, and so refuses every one that was newly trained; here the rule itself is compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from common.errors import UserError
from common.files import printable

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_GPT2_BYTES, _BYTES = ("ByteLevel", True), ("ByteLevel", False)  # with the pattern of GPT-2, or bytes alone

Step = tuple[str, Any]
KNOWN: dict[tuple[Step, ...], str] = {
    (_GPT2_BYTES,): "gpt-2",
    (("Split", _QWEN2), _BYTES): "qwen2",
    (("Split", _LLAMA3), _BYTES): "llama-bpe",
    (("Digits", True), _GPT2_BYTES): "smollm",
}
_IGNORES_MERGES = ("llama-bpe",)  # a piece that is a token as a whole is taken as it is


def llama_cpp_name(tokenizer_json: str, source: str) -> str:
    """Return llama.cpp's name of the pre-tokenizer; UserError, naming `source`, if it would make other ids."""
    content = json.loads(tokenizer_json)
    name = KNOWN.get(tuple(_steps(content.get("pre_tokenizer"))))
    if reason := _reason(content, name):
        raise UserError(
            f"{source}: llama.cpp would make other tokens of the same text, since {reason}; use the folder with "
            "transformers or vLLM"
        )
    return str(name)


def _reason(content: dict[str, Any], name: str | None) -> str:
    """Return why llama.cpp cannot do what this tokenizer does, empty if it can."""
    model = content.get("model") or {}
    if model.get("type") != "BPE":
        return f"it is no byte-level BPE but {printable(model.get('type'), 40)}"
    if content.get("normalizer"):
        return f"it normalizes text first ({printable(content['normalizer'].get('type'), 40)})"
    if name is None:
        cuts = "; ".join(f"{kind} {value}" for kind, value in _steps(content.get("pre_tokenizer"))) or "nothing"
        known = ", ".join(KNOWN.values())
        return f"it cuts text by {printable(cuts, 300)}, which is none of the rules known here ({known})"
    if bool(model.get("ignore_merges")) != (name in _IGNORES_MERGES):
        return f"its ignore_merges is {bool(model.get('ignore_merges'))} and that of {name!r} is not"
    if model.get("byte_fallback") or model.get("unk_token"):
        return "it has an unknown token or a byte fallback"
    for token in content.get("added_tokens", []):
        if any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
            return f"its token {printable(token.get('content'), 40)} takes spaces with it or matches whole words only"
    return ""


def _steps(part: Any) -> Iterator[Step]:
    """Yield the steps of a pre-tokenizer, each with what decides where it cuts."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "Sequence":
        for inner in part.get("pretokenizers", []):
            yield from _steps(inner)
    elif kind == "ByteLevel" and not part.get("add_prefix_space"):
        yield "ByteLevel", part.get("use_regex", True)
    elif kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
        pattern = part.get("pattern")
        yield "Split", pattern.get("Regex") if isinstance(pattern, dict) else pattern
    elif kind == "Digits":
        yield "Digits", part.get("individual_digits")
    elif kind:
        yield kind, json.dumps({key: value for key, value in part.items() if key != "type"})
