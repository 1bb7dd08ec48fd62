"""The byte-level BPE tokenizer: trained here, or taken from a tokenizer.json and checked."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from common import chat_template
from common.errors import UserError
from common.files import LFS_HINT, LFS_MARK, printable, read_text
from corpus.workers import PARALLELISM

PAD, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (PAD, BOS, EOS)  # ids 0, 1, 2; each begins with "<|"
_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
MOST_TOKENIZER_BYTES = 64 * 2**20  # 65,536 entries and their merges take a tenth of it
MAX_ENTRIES = 65_536  # ids are stored as uint16
MIN_ENTRIES = 256 + len(SPECIAL_TOKENS)

# A token is at most 16 bytes, five Chinese characters: without a bound, a small uniform corpus gets whole clauses as
# tokens, and a model that only has to name the clause looks as if it had learned the language.
MAX_TOKEN_BYTES = 16

# Characters that have every byte of UTF-8 between them: all first bytes, and all bytes that may follow.
_EVERY_BYTE = (*range(0x100), *range(0x100, 0x800, 0x40), 0x800, *range(0x1000, 0x10000, 0x1000))
_EVERY_BYTE += (*range(0x10000, 0x100000, 0x40000), 0x100000)

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
    "some bytes of UTF-8": "".join(map(chr, _EVERY_BYTE)),
}

# BOS and EOS by name, those of other tokenizers too, in the order they are looked for.
BOS_EOS_NAMES = (
    (BOS, EOS),
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    ("<s>", "</s>"),
    ("<bos>", "<eos>"),
    ("[BOS]", "[EOS]"),
    ("[CLS]", "[SEP]"),
    (PAD, PAD),
)
PAD_NAMES = (PAD, "<pad>", "<|pad|>", "[PAD]")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
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
    # Special tokens that are written in a text would spend entries on "im", "start", "|>".
    tokenizer.train_from_iterator((part for text in texts for part in _SPECIAL.split(text)), trainer)
    return tokenizer


def train_tokenizer_json(texts: list[str], vocab_size: int, parallel: bool) -> str:
    """Return the JSON of a tokenizer trained on `texts`. Runs in a worker, with all cores if `parallel`."""
    if parallel:
        os.environ[PARALLELISM] = "true"
    try:
        return train_tokenizer(texts, vocab_size).to_str(pretty=True)
    finally:
        os.environ[PARALLELISM] = "false"


def without_special_tokens(text: str) -> str:
    """Return a text without the special tokens written in it."""
    return _SPECIAL.sub("", text) if "<|" in text else text


def tokenizer_file(path: Path) -> Path:
    """Return the tokenizer.json that `path` stands for: the file itself, or the one in a folder of Hugging Face."""
    return path / "tokenizer.json" if path.is_dir() else path


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json; UserError if it is none, has over 65,536 entries or does not give every text back.

    It may normalize to NFC, as Qwen's does: then it gives back the normalized text.
    """
    try:
        text = read_text(path, MOST_TOKENIZER_BYTES)
    except OSError as error:
        hint = "the path of a tokenizer.json, or of a folder with one"
        raise UserError(f"{path}: cannot be read ({error.strerror}); give {hint}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a Hugging Face tokenizer.json ({error})") from None
    if text.startswith(LFS_MARK.decode()):
        raise UserError(f"{path}: {LFS_HINT}")
    content = _checked_parts(path, text)
    with library_errors(f"{path}: not a Hugging Face tokenizer.json"):
        tokenizer = Tokenizer.from_str(json.dumps(content))
    # What a file may carry from its training: cutting, filling up and random merges.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    entries = vocab_size(tokenizer)
    if entries > MAX_ENTRIES:
        raise UserError(f"{path}: {entries:,} entries, but ids are stored in 16 bits; at most {MAX_ENTRIES:,} go in")
    with library_errors(f"{path}: cannot encode every text, take a byte-level BPE tokenizer"):
        lost = [name for name, probe in PROBES.items() if _round_trip(tokenizer, probe) != normalized(tokenizer, probe)]
    if lost:
        raise UserError(f"{path}: encoding and decoding loses {', '.join(lost)}; take a byte-level BPE tokenizer")
    return tokenizer


@contextmanager
def library_errors(message: str) -> Iterator[None]:
    """Turn what the tokenizers library raises into a UserError: bare Exceptions, and the panics of its Rust code, which
    are no Exceptions at all.
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


def _checked_parts(path: Path, text: str) -> dict[str, Any]:
    """Return the content of a tokenizer.json, without added tokens that take the spaces beside them away.

    Refuse what the library would answer with a panic, or with as much memory as the file asks for. A normalizer is run
    on every text: `Replace` that makes it longer can be put behind itself a dozen times.
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
    added = content.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict):
            token.update(lstrip=False, rstrip=False)
    return content


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Return whether every character of an entry stands for a byte."""
    return isinstance(tokenizer.decoder, decoders.ByteLevel)


@lru_cache(maxsize=1)
def bytes_to_characters() -> list[str]:
    """Return the character by which byte-level vocabularies write each byte (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def normalized(tokenizer: Tokenizer, text: str) -> str:
    """Return the text that a tokenizer gives back: NFC where it normalizes to that, else the text as it is."""
    if isinstance(tokenizer.normalizer, normalizers.NFC):
        return tokenizer.normalizer.normalize_str(text)
    return text


def _blocks(part: object) -> Iterator[dict[str, Any]]:
    """Yield a part and those that it is a sequence of. Without recursion: the library reads 128 levels."""
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


def _round_trip(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)


def vocab_size(tokenizer: Tokenizer) -> int:
    """Return the number of ids a model needs: the highest id plus one (a foreign vocabulary may have holes)."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def entry_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that the vocabulary has, in order."""
    return sorted(set(tokenizer.get_vocab(with_added_tokens=True).values()))


def special_ids(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """Return the ids of BOS, EOS and padding; UserError if the tokenizer has no BOS and EOS."""
    for bos, eos in BOS_EOS_NAMES:
        bos_id, eos_id = tokenizer.token_to_id(bos), tokenizer.token_to_id(eos)
        if bos_id is not None and eos_id is not None:
            pads = (tokenizer.token_to_id(pad) for pad in PAD_NAMES)
            return bos_id, eos_id, next((pad for pad in pads if pad is not None), eos_id)
    known = ", ".join(f"{bos} {eos}" for bos, eos in BOS_EOS_NAMES)
    raise UserError(f"the tokenizer has no BOS and EOS tokens; add a pair of these: {known}")


def write_hf_tokenizer(tokenizer_json: Path, out_folder: Path) -> None:
    """Write the files from which transformers.AutoTokenizer makes the ids of the packed corpus, but for the last EOS.

    BOS is put in front by the post-processor, since every document was trained behind one; EOS is what the model
    writes. The code of this project encodes without the post-processor and adds BOS by itself.
    """
    # Imported here: the workers do without pydantic.
    from common.training_text import TrainingText

    tokenizer = load_tokenizer(tokenizer_json)
    bos_id, *_ = ids = special_ids(tokenizer)
    bos, eos, pad = (str(tokenizer.id_to_token(i)) for i in ids)
    special = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    files = {
        "tokenizer.json": json.loads(tokenizer.to_str()) | {"post_processor": _bos_in_front(bos, bos_id)},
        "tokenizer_config.json": {
            "add_bos_token": True,
            "add_eos_token": False,
            "add_prefix_space": False,
            **special,
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        "special_tokens_map.json": special,
    }
    texts = {name: json.dumps(data, ensure_ascii=False, indent=2) + "\n" for name, data in files.items()}
    out_folder.mkdir(parents=True, exist_ok=True)
    if known := TrainingText.read(tokenizer_json.parent):
        known.write(out_folder)
    for name, text in (texts | {chat_template.FILE_NAME: chat_template.chatml(bos, eos)}).items():
        (out_folder / name).write_text(text, encoding="utf-8")


def _bos_in_front(bos: str, bos_id: int) -> dict[str, Any]:
    """Return the post-processor of a tokenizer.json that puts BOS in front of a text and of each of a pair."""
    single, pair = (
        [{"SpecialToken": {"id": bos, "type_id": i}}, {"Sequence": {"id": name, "type_id": i}}]
        for i, name in enumerate("AB")
    )
    tokens = {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": single, "pair": single + pair, "special_tokens": tokens}
