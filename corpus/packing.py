"""Documents of a chunk to token ids: what the workers do in the second pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from common.errors import UserError
from corpus.cleaning.language import FORMS, SCRIPTS, count_scripts, languages
from corpus.conversations.encoding import ConversationEncoder
from corpus.conversations.figures import AnswerFigures, Figures
from corpus.conversations.records import Conversation
from corpus.encoding import ID_TYPE, RoundTrip, as_documents, encode_texts
from corpus.reader import Chunk, parse_chunk
from corpus.split import LEFT_OUT, TRAIN, VAL
from corpus.tokenizer import load_tokenizer, special_ids, without_special_tokens

EXAMPLE_CHARACTERS = 120
SPLIT_NAMES = {TRAIN: "train", VAL: "val"}


@dataclass(frozen=True)
class Packed:
    """The documents that a chunk gives to one split: their ids (of ID_TYPE) and their sizes together.

    Where there are conversations in the corpus, `mask` has a byte an id, 1 on targets, and `answers` what is counted.
    """

    ids: bytes
    documents: int
    bytes: int
    characters: int
    mask: bytes
    answers: AnswerFigures


@dataclass
class TextFigures(Figures):
    """What the report says of texts: tokens of each document (of LENGTH_TYPE), characters by script, languages.

    Of those that are left out, bytes by their assignment; of those that are packed, how many the tokenizer does not
    give back as they were, with the beginning of one, and the special tokens that stand in the texts themselves.
    `characters` are those of the training texts, `examples` the beginnings of documents that are asked for, by place.
    """

    lengths: bytearray = field(default_factory=bytearray)
    scripts: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    left_out_bytes: Counter[int] = field(default_factory=Counter)
    changed: int = 0
    changed_example: str = ""
    special_tokens: int = 0
    characters: set[str] = field(default_factory=set)
    examples: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PackedChunk:
    """A chunk's documents by split, and what is counted of them."""

    splits: dict[str, Packed]
    figures: TextFigures


def pack_chunk(
    tokenizer_path: Path,
    tokenizer_sha256: str,
    chunk: Chunk,
    assignment: bytes,
    masked: bool,
    examples: Mapping[int, int],
) -> PackedChunk:
    """Parse and encode a chunk, given the split assignment of each of its documents. Runs in a worker.

    `masked`: there are conversations in the corpus, so every id gets a mask. `examples` are documents whose beginnings
    are asked for: their numbers in the chunk by their places in the corpus.
    """
    parsed = parse_chunk(chunk)
    if len(parsed.texts) != len(assignment):
        raise UserError(f"{chunk.file.name}: changed while it was read; run again when nothing writes to it")
    packer = _packer(tokenizer_path, tokenizer_sha256)
    figures = TextFigures(examples={place: parsed.texts[i][:EXAMPLE_CHARACTERS] for place, i in examples.items()})
    packed = {}
    for side, name in SPLIT_NAMES.items():
        chosen = [i for i, assigned in enumerate(assignment) if assigned == side]
        texts = [parsed.texts[i] for i in chosen]
        turns = {place: parsed.conversations[i] for place, i in enumerate(chosen) if i in parsed.conversations}
        size = sum(len(parsed.encoded[i]) for i in chosen)
        packed[name] = packer.pack(texts, size, turns, masked, figures)
        if side == TRAIN:
            figures.characters.update(*texts)
    for encoded, assigned in zip(parsed.encoded, assignment, strict=True):
        if assigned in LEFT_OUT:
            figures.left_out_bytes[assigned] += len(encoded)
    return PackedChunk(packed, figures)


@lru_cache(maxsize=1)
def _packer(tokenizer_path: Path, sha256: str) -> _Packer:
    """Return the packer of a tokenizer; `sha256` is there since a path can get another content."""
    return _Packer(tokenizer_path)


class _Packer:
    """A tokenizer, and what packs documents with it."""

    def __init__(self, tokenizer_path: Path) -> None:
        self.tokenizer = load_tokenizer(tokenizer_path)
        self.bos_id, self.eos_id, self.pad_id = special_ids(self.tokenizer)
        self.round_trip = RoundTrip(self.tokenizer)
        self.encoder = ConversationEncoder(self.tokenizer)

    def pack(
        self,
        texts: Sequence[str],
        size: int,
        conversations: Mapping[int, Conversation],
        masked: bool,
        figures: TextFigures,
    ) -> Packed:
        """Return the documents of one split, of `size` bytes, and count in `figures` what the report says of them.

        `conversations` has the turns of those texts that are one, by place. Of a plain text every id is a target.
        """
        plain = [text for place, text in enumerate(texts) if place not in conversations]
        turns = [turn.content for turns in conversations.values() for turn in turns]
        contents, said = encode_texts(self.tokenizer, plain), self.encoder.contents(turns)
        ids, lengths = as_documents(*contents, self.bos_id, self.eos_id)
        mask, answers = b"\1" * len(ids) if masked else b"", AnswerFigures()
        if masked:
            answers.add_texts(plain, len(ids))
        if conversations:
            chats = list(self.encoder.lay_out(list(conversations.values()), *said))
            for chat, (_, counted) in zip(conversations.values(), chats, strict=True):
                answers.add_conversation(chat, counted)
            ids, lengths, mask = _in_order(ids, lengths, dict(zip(conversations, chats, strict=True)))
        for changed in self.round_trip.changed(plain, *contents) + self.round_trip.changed(turns, *said):
            figures.changed += 1
            figures.changed_example = figures.changed_example or changed[:EXAMPLE_CHARACTERS]
        marks = 2 * (len(plain) + len(turns))  # that were put there
        figures.special_tokens += int(np.isin(ids, (self.bos_id, self.eos_id, self.pad_id)).sum()) - marks
        counts = count_scripts([without_special_tokens(text) for text in texts])
        scripts = Counter(dict(zip((*SCRIPTS, *FORMS), counts.sum(axis=0).tolist(), strict=True)))
        figures.add(TextFigures(bytearray(lengths.tobytes()), scripts, languages(counts)))
        return Packed(ids.tobytes(), len(texts), size, sum(map(len, texts)), mask, answers)


def _in_order(
    ids: np.ndarray, lengths: np.ndarray, chats: Mapping[int, tuple[list[int], list[int]]]
) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Return ids, lengths and mask of plain documents and of conversations (ids and mask by place) in their order."""
    plain = iter(np.split(ids, np.cumsum(lengths)[:-1]))
    parts, mask = [], bytearray()
    for place in range(len(lengths) + len(chats)):
        found, counted = chats[place] if place in chats else (document := next(plain), [1] * len(document))
        parts.append(np.asarray(found, ID_TYPE))
        mask += bytes(counted)
    return np.concatenate(parts), np.array([len(part) for part in parts], lengths.dtype), bytes(mask)
