"""Documents of a chunk to token ids: what the workers do in the second pass."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from common.errors import UserError
from corpus.cleaning.language import FORMS, SCRIPTS, count_scripts, languages
from corpus.conversations.encoding import ConversationEncoder
from corpus.conversations.figures import AnswerFigures, add_fields
from corpus.conversations.records import Conversation
from corpus.reader import Chunk, parse_chunk
from corpus.split import LEFT_OUT, TRAIN, VAL
from corpus.tokenizer import (
    is_byte_level,
    library_errors,
    load_tokenizer,
    normalized,
    special_ids,
    without_special_tokens,
)

ID_TYPE = np.dtype("<u2")
LENGTH_TYPE = np.dtype("<u4")
MASK_TYPE = np.dtype("u1")
# Documents: the library keeps some 100 bytes a token, and a small batch gets those of the last one, still in the cache.
ENCODED_AT_ONCE = 32
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
    mask: bytes = b""
    answers: AnswerFigures | None = None


@dataclass
class TextFigures:
    """What the report says of texts: tokens of each document (of LENGTH_TYPE), characters by script, languages.

    Of those that are left out, documents and bytes by reason; of those that are packed, how many the tokenizer does not
    give back as they were, with the beginning of one, and the special tokens that stand in the texts themselves.
    `characters` are those of the training texts.
    """

    lengths: bytearray = field(default_factory=bytearray)
    scripts: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    left_out_documents: Counter[str] = field(default_factory=Counter)
    left_out_bytes: Counter[str] = field(default_factory=Counter)
    changed: int = 0
    changed_example: str = ""
    special_tokens: int = 0
    characters: set[str] = field(default_factory=set)

    def add(self, other: TextFigures) -> None:
        """Take in the figures of other texts."""
        example = self.changed_example or other.changed_example
        add_fields(self, other)
        self.changed_example = example


@dataclass(frozen=True)
class PackedChunk:
    """A chunk's documents by split, what is counted of them, and the beginnings of those that are asked for."""

    splits: dict[str, Packed]
    figures: TextFigures
    examples: dict[int, str]


class RoundTrip:
    """Tells which documents a tokenizer does not give back as they were."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._sizes = _entry_bytes(tokenizer)

    def changed(
        self, texts: Sequence[str], encoded: Sequence[bytes], ids: np.ndarray, lengths: np.ndarray
    ) -> list[int]:
        """Return the places of the texts that their `ids` (of all texts, `lengths` of each) do not decode to.

        Bytes are counted first, which costs next to nothing; only where they differ, the ids are decoded.
        """
        if not len(lengths):
            return []
        ends = np.cumsum(lengths.astype(np.int64))
        starts = ends - lengths
        if self._sizes is None:
            suspects = range(len(texts))
        else:
            inner = self._sizes[ids]
            inner[starts] = inner[ends - 1] = 0
            sizes = np.array([len(data) for data in encoded])
            suspects = np.flatnonzero(np.add.reduceat(inner, starts) != sizes).tolist()
        return [i for i in suspects if not self._comes_back(texts[i], ids[starts[i] : ends[i]].tolist())]

    def _comes_back(self, text: str, ids: list[int]) -> bool:
        text = normalized(self.tokenizer, text)
        # A BOS or EOS of the text's own is not doubled.
        parts = (ids[1:-1], ids[:-1], ids[1:], ids)
        return any(self.tokenizer.decode(part, skip_special_tokens=False) == text for part in parts)


def _entry_bytes(tokenizer: Tokenizer) -> np.ndarray | None:
    """Return the bytes of text that each entry stands for, int64 (entries,); None if only decoding can tell."""
    if not is_byte_level(tokenizer):
        return None
    sizes = np.zeros(2**16, dtype=np.int64)
    for entry, place in tokenizer.get_vocab(with_added_tokens=False).items():
        sizes[place] = len(entry)
    for place, token in tokenizer.get_added_tokens_decoder().items():
        sizes[place] = len(token.content.encode())
    return sizes


def pack_chunk(
    tokenizer_path: Path,
    tokenizer_sha256: str,
    chunk: Chunk,
    assignment: bytes,
    masked: bool = False,
    examples: Sequence[int] = (),
) -> PackedChunk:
    """Parse and encode a chunk, given the split assignment of each of its documents. Runs in a worker.

    `masked`: there are conversations in the corpus, so every id gets a mask. `examples` are documents of the chunk.
    """
    parsed = parse_chunk(chunk)
    if len(parsed.texts) != len(assignment):
        raise UserError(f"{chunk.source.name}: changed while it was read; run again when nothing writes to it")
    tokenizer, (bos_id, eos_id, pad_id), round_trip = _loaded(tokenizer_path, tokenizer_sha256)
    packed, figures = {}, TextFigures()
    for side, name in SPLIT_NAMES.items():
        chosen = [i for i, assigned in enumerate(assignment) if assigned == side]
        texts = [parsed.texts[i] for i in chosen]
        encoded = [parsed.encoded[i] for i in chosen]
        sizes = len(texts), sum(map(len, encoded)), sum(map(len, texts))
        turns = {place: parsed.conversations[i] for place, i in enumerate(chosen) if i in parsed.conversations}
        if masked:
            ids, mask, lengths, answers = encode_masked(tokenizer, texts, turns, bos_id, eos_id)
            packed[name] = Packed(ids.tobytes(), *sizes, mask.tobytes(), answers)
        else:
            ids, lengths = encode_documents(tokenizer, texts, bos_id, eos_id)
            packed[name] = Packed(ids.tobytes(), *sizes)
        spoken, spoken_bytes, pieces, sizes_of_pieces = _turn_by_turn(
            texts, encoded, ids, lengths, turns, (bos_id, eos_id)
        )
        changed = [spoken[i] for i in round_trip.changed(spoken, spoken_bytes, pieces, sizes_of_pieces)]
        figures.changed += len(changed)
        figures.changed_example = figures.changed_example or "".join(changed[:1])[:EXAMPLE_CHARACTERS]
        marks = 2 * (len(texts) - len(turns) + sum(map(len, turns.values())))  # that were put there
        figures.special_tokens += int(np.isin(ids, (bos_id, eos_id, pad_id)).sum()) - marks
        counts = count_scripts([without_special_tokens(text) for text in texts])
        scripts = dict(zip((*SCRIPTS, *FORMS), counts.sum(axis=0).tolist(), strict=True))
        figures.add(TextFigures(bytearray(lengths.tobytes()), Counter(scripts), languages(counts)))
        if side == TRAIN:
            figures.characters.update(*texts)
    for encoded, assigned in zip(parsed.encoded, assignment, strict=True):
        if why := LEFT_OUT.get(assigned):
            figures.left_out_documents[why] += 1
            figures.left_out_bytes[why] += len(encoded)
    return PackedChunk(packed, figures, {i: parsed.texts[i][:EXAMPLE_CHARACTERS] for i in examples})


@lru_cache(maxsize=1)
def _loaded(path: Path, sha256: str) -> tuple[Tokenizer, tuple[int, int, int], RoundTrip]:
    """Return the tokenizer with its BOS, EOS and padding; `sha256` is there since a path can get another content."""
    tokenizer = load_tokenizer(path)
    return tokenizer, special_ids(tokenizer), RoundTrip(tokenizer)


def encode_documents(
    tokenizer: Tokenizer, texts: Sequence[str], bos_id: int, eos_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of all texts, each between BOS and EOS, as uint16, and the number of ids of each text.

    A BOS or EOS that a text already has is not doubled.
    """
    # The fast variant leaves out the offsets of every token in the text, which nobody asks for here.
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    # Ids come as lists: to append each to an array takes a third of the time of joining them and converting the whole.
    stream = array("I")
    ends = []
    for start in range(0, len(texts), ENCODED_AT_ONCE):
        with library_errors("the tokenizer cannot encode the text; take another, or the one that is trained here"):
            encodings = encode(texts[start : start + ENCODED_AT_ONCE], add_special_tokens=False)
        for encoding in encodings:
            ids = encoding.ids
            if not ids or ids[0] != bos_id:
                stream.append(bos_id)
            stream.fromlist(ids)
            if not ids or ids[-1] != eos_id:
                stream.append(eos_id)
            ends.append(len(stream))
    return np.asarray(stream).astype(ID_TYPE), np.diff(ends, prepend=0).astype(LENGTH_TYPE)


def encode_masked(
    tokenizer: Tokenizer, texts: Sequence[str], conversations: Mapping[int, Conversation], bos_id: int, eos_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, AnswerFigures]:
    """Return the ids of documents of which some are conversations, which of them are targets, lengths and figures.

    `conversations` has the turns of those texts that are one, by place. Of a plain text every id is a target.
    """
    plain = [text for place, text in enumerate(texts) if place not in conversations]
    plain_ids, plain_lengths = encode_documents(tokenizer, plain, bos_id, eos_id)
    parts = iter(np.split(plain_ids, np.cumsum(plain_lengths)[:-1]) if plain else [])
    chats = ConversationEncoder(tokenizer).encode(list(conversations.values()))
    figures, ids, masks = AnswerFigures(), [np.zeros(0, ID_TYPE)], [np.zeros(0, MASK_TYPE)]
    for place, text in enumerate(texts):
        if place in conversations:
            found, mask = next(chats)
            figures.add_conversation(conversations[place], mask)
            ids.append(np.array(found, ID_TYPE))
            masks.append(np.array(mask, MASK_TYPE))
        else:
            ids.append(next(parts))
            masks.append(np.ones(len(ids[-1]), MASK_TYPE))
            figures.add_text(masks[-1], len(text.encode()))
    lengths = np.array([len(part) for part in ids[1:]], LENGTH_TYPE)
    return np.concatenate(ids), np.concatenate(masks), lengths, figures


def _turn_by_turn(
    texts: Sequence[str],
    encoded: Sequence[bytes],
    ids: np.ndarray,
    lengths: np.ndarray,
    conversations: Mapping[int, Conversation],
    marks: tuple[int, int],
) -> tuple[Sequence[str], Sequence[bytes], np.ndarray, np.ndarray]:
    """Return documents for `RoundTrip`: every turn of a conversation is one, with its role. `marks`: BOS and EOS."""
    if not conversations:
        return texts, encoded, ids, lengths
    found: list[tuple[str, np.ndarray]] = []
    for place, (text, part) in enumerate(zip(texts, np.split(ids, np.cumsum(lengths)[:-1]), strict=True)):
        begins, ends = np.flatnonzero(part == marks[0]), np.flatnonzero(part == marks[1]) + 1
        if place not in conversations:
            found.append((text, part))
        for turn, begin, end in zip(conversations.get(place, ()), begins, ends, strict=False):
            found.append((f"{turn.role}\n{turn.content}", part[begin:end]))
    pieces, parts = zip(*found, strict=True)
    sizes = np.array([len(part) for part in parts], LENGTH_TYPE)
    return pieces, [piece.encode() for piece in pieces], np.concatenate(parts), sizes
