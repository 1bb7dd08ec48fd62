"""The byte-level BPE tokenizer: trained here, or taken from a tokenizer.json and checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from common.errors import UserError
from common.files import printable, read_text
from corpus.manifest import MOST_TOKENIZER_BYTES

PAD, BEGIN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (PAD, BEGIN, END)  # ids 0, 1, 2; each begins with "<|"
_MARKS = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
MAX_ENTRIES = 65_536  # ids are stored as uint16
MIN_ENTRIES = 256 + len(SPECIAL_TOKENS)

# A token is at most 16 bytes, five Chinese characters: without a bound, a small uniform corpus gets whole clauses as
# tokens, and a model that only has to name the clause looks as if it had learned the language.
MAX_TOKEN_BYTES = 16

# What a corpus may hold and a tokenizer may lose. Each probe must come back from encode and decode as it was.
PROBES = {
    "Chinese characters": "天地玄黄，宇宙洪荒。「繁體字」與简体字",
    "rare characters": "𠮷野家 龘靐 㐂 𰻝",
    "emoji": "你好😀👍🏽👨‍👩‍👧",
    "full-width forms": "ＡＢＣ１２３　（全角）",
    "capital letters and accents": "Ångström Ça va",
    "runs of spaces": "  if x:\n        return  1  ",
    "newlines and tabs": "第一行\n\n第二行\r\n\t末行\n",
    "control and combining characters": "a\u0301\u200b\ufeffe\x00\x7f",
}

# Marks of other tokenizers around a document, in the order they are looked for.
FOREIGN_MARKS = (
    (BEGIN, END),
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    ("<s>", "</s>"),
    ("<bos>", "<eos>"),
    ("[BOS]", "[EOS]"),
    ("[CLS]", "[SEP]"),
    (PAD, PAD),
)
FOREIGN_PADS = (PAD, "<pad>", "<|pad|>", "[PAD]")


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE with at most `vocab_size` entries; ids 0, 1, 2 are the special tokens.

    A small text may not have enough repeated pairs for that many entries: then there are fewer. UserError if
    `vocab_size` is outside 259 to 65,536.
    """
    if not MIN_ENTRIES <= vocab_size <= MAX_ENTRIES:
        raise UserError(f"--vocab_size {vocab_size}: must be from {MIN_ENTRIES:,} to {MAX_ENTRIES:,}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        # All 256 bytes, seen or not: this is what makes every string round-trip.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=MAX_TOKEN_BYTES,
        show_progress=False,
    )
    # Marks left in would spend entries on "im", "start", "|>".
    tokenizer.train_from_iterator((piece for text in texts for piece in between_marks(text)), trainer)
    return tokenizer


def between_marks(text: str) -> list[str]:
    """What stands between the marks written in a text: those are special ids later, no letters of its language."""
    return _MARKS.split(text)


def without_marks(text: str) -> str:
    """A text without the marks written in it."""
    return "".join(between_marks(text)) if "<|" in text else text


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json; UserError if it is none, has over 65,536 entries or does not give every text back."""
    try:
        text = read_text(path, MOST_TOKENIZER_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a tokenizer.json") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a Hugging Face tokenizer.json ({error})") from None
    _check_parts(path, text)
    with library_errors(f"{path}: not a Hugging Face tokenizer.json"):
        tokenizer = Tokenizer.from_str(text)
    _make_lossless(tokenizer)
    entries = vocab_size(tokenizer)
    if entries > MAX_ENTRIES:
        raise UserError(f"{path}: {entries:,} entries, but ids are stored in 16 bits; at most {MAX_ENTRIES:,} go in")
    with library_errors(f"{path}: cannot encode every text, take a byte-level BPE tokenizer"):
        lost = [name for name, probe in PROBES.items() if _round_trip(tokenizer, probe) != probe]
    if lost:
        raise UserError(f"{path}: encoding and decoding loses {', '.join(lost)}; take a byte-level BPE tokenizer")
    return tokenizer


@contextmanager
def library_errors(message: str) -> Iterator[None]:
    """Whatever the tokenizers library raises inside becomes a UserError: bare Exceptions, and the panics of its Rust
    code, which are no Exceptions at all.
    """
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # somebody wants to stop
        if str(error).startswith(KeyboardInterrupt.__name__):  # as the library wraps one met while it reads its texts
            raise KeyboardInterrupt from error
        raise UserError(f"{message} ({printable(error)})") from None


def _check_parts(path: Path, text: str) -> None:
    """Refuse what the library would answer with a panic, or with as much memory as the file asks for.

    A normalizer is run on every text: `Replace` that makes it longer can be put behind itself a dozen times.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a Hugging Face tokenizer.json ({printable(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a Hugging Face tokenizer.json")
    for part in ("normalizer", "pre_tokenizer", "decoder", "model"):
        for block in _blocks(content.get(part)):
            if not _harmless(block):
                raise UserError(
                    f"{path}: its {part} has a {printable(block['type'], 40)} that no lossless tokenizer "
                    "needs; take a byte-level BPE tokenizer"
                )


def _blocks(part: object) -> Iterator[dict[str, Any]]:
    """A part and those that it is a sequence of. Not deeper than the JSON: the library reads 128 levels."""
    waiting = [part]
    while waiting:
        block = waiting.pop()
        if isinstance(block, list):
            waiting += [inner for inner in block if isinstance(inner, dict)]
        elif isinstance(block, dict):
            waiting += [inner for inner in block.values() if isinstance(inner, list)]
            if "type" in block:
                yield block


def _harmless(block: dict[str, Any]) -> bool:
    kind = block["type"]
    if kind == "Replace":
        pattern, content = block.get("pattern"), block.get("content")
        old = pattern.get("String") if isinstance(pattern, dict) else pattern
        return isinstance(old, str) and isinstance(content, str) and 0 < len(old) >= len(content)
    if kind == "Prepend":
        return isinstance(block.get("prepend"), str) and len(block["prepend"]) == 1
    if kind == "Strip":  # as a decoder; the normalizer of that name has no such keys
        return all(block.get(key) in (None, 0, 1) for key in ("start", "stop"))
    if kind == "FixedLength":
        return block.get("length", 1) != 0
    if kind == "BPE":
        return not block.get("continuing_subword_prefix") and not block.get("end_of_word_suffix")
    return kind != "Precompiled"


def _make_lossless(tokenizer: Tokenizer) -> None:
    """Switch off what a tokenizer.json may carry from its training: cutting, filling up and random merges."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None


def _round_trip(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)


def vocab_size(tokenizer: Tokenizer) -> int:
    """The number of ids a model needs: the highest id plus one (a foreign vocabulary may have holes)."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def special_ids(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """(begin, end, pad) of a document; UserError if the tokenizer has no marks that could serve."""
    for begin, end in FOREIGN_MARKS:
        begin_id, end_id = tokenizer.token_to_id(begin), tokenizer.token_to_id(end)
        if begin_id is not None and end_id is not None:
            pads = (tokenizer.token_to_id(pad) for pad in FOREIGN_PADS)
            return begin_id, end_id, next((pad for pad in pads if pad is not None), end_id)
    known = ", ".join(f"{begin} {end}" for begin, end in FOREIGN_MARKS)
    raise UserError(f"the tokenizer has no marks for the begin and end of a document; add a pair of these: {known}")


def write_hf_tokenizer(tokenizer_json: Path, out_folder: Path) -> None:
    """Write the three files from which transformers.AutoTokenizer makes the same ids as the packed corpus has."""
    tokenizer = load_tokenizer(tokenizer_json)
    begin, end, pad = (tokenizer.id_to_token(i) for i in special_ids(tokenizer))
    # A post-processor would put marks around every text that a user encodes, which the packer does by itself.
    content = json.loads(tokenizer.to_str())
    content["post_processor"] = None
    marks = {"bos_token": begin, "eos_token": end, "pad_token": pad}
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        **marks,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    out_folder.mkdir(parents=True, exist_ok=True)
    for name, data in (
        ("tokenizer.json", content),
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", marks),
    ):
        (out_folder / name).write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
