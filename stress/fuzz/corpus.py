"""prepare() on arbitrary bytes: plain, gzip and Zstandard, whole and damaged."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import zstandard

from common.errors import UserError
from corpus.pipeline import prepare
from corpus.report import CorpusReport, lines
from corpus.settings import PreparationSettings
from corpus.shards import Corpus
from corpus.tokenizer import train_tokenizer
from stress.fuzz.choices import JUNK, NOWHERE, TOKENS, Choices, json_text, mutated_bytes, mutated_json, put

WORDS = (
    "从前",
    "有",
    "座",
    "山",
    "，",
    "庙",
    "the cat ",
    "sat ",
    "\n",
    "😀",
    "<|im_start|>",
    "<|endoftext|>",
    "繁體",
    "\0",
    "\u0301",
    "\ufeff",
    "１２３",
    "  ",
    "\r\n",
    "Ａ",
)
NAMES = (
    b"a.jsonl",
    b"a.jsonl.gz",
    b"a.jsonl.zst",
    b"a.gz",
    b"\xd6\xd0\xce\xc4.jsonl",
    b"a\n\x1b[31m.jsonl",
    b"a" * 200,
)


class CorpusCase:
    """One or two input files, now and then a tokenizer.json, prepared with settings of every kind."""

    def __init__(self) -> None:
        texts = ["从前有座山，山里有座庙。", "the cat sat on the mat"] * 20
        self._tokenizer = json.loads(train_tokenizer(iter(texts), 280).to_str())

    def seeds(self) -> list[bytes]:
        """Every kind of content, in every wrapping."""
        return [
            bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, kind, wrapping]) + bytes(range(60))
            for kind in range(4)
            for wrapping in range(5)
        ]

    def __call__(self, choices: Choices, folder: Path, outside: Path) -> str:
        """See guard.Case."""
        settings = {
            "vocab_size": choices.pick((259, 300)),
            "dedup": choices.pick(("exact", "none", "near")),
            "repetition": choices.pick(("drop", "keep")),
            "val_fraction": choices.pick((0.005, 0.0, 0.3)),
            "max_bad_share": choices.pick((1.0, 0.01, 0.0)),
            "shard_tokens": choices.pick((2**26, 1, 7, 100)),
        }
        inputs = [self._input(choices, folder / f"in{number}") for number in range(choices.pick((1, 1, 2)))]
        if choices.once_in(6):
            settings["val_inputs"] = [self._input(choices, folder / "val")]
        if choices.once_in(6):
            settings["tokenizer"] = folder / "tokenizer.json"
            put(settings["tokenizer"], self._tokenizer_json(choices), choices, NOWHERE)
        output = folder / "out"
        before = set(os.listdir(folder))
        try:
            manifest = prepare(inputs, output, PreparationSettings(**settings), workers=1, progress=None)
        except UserError:
            assert set(os.listdir(folder)) == before, "a failed preparation left something behind"
            raise
        corpus = Corpus.open(output)
        for name in ("train", "val"):
            stream = corpus.split(name)
            assert len(stream) == manifest.splits[name].tokens
            assert (stream.read(0, len(stream)) < manifest.vocab_size).all()
        "\n".join(lines(corpus.manifest, CorpusReport.read(output))).encode()
        assert set(os.listdir(folder)) == before | {"out"}
        return f"prepared, {settings['dedup']}, {'with' if len(corpus.split('val')) else 'no'} val"

    def _input(self, choices: Choices, folder: Path) -> Path:
        folder.mkdir()
        path = folder / os.fsdecode(choices.pick(NAMES))
        put(path, self._content(choices), choices, NOWHERE)
        return path

    def _content(self, choices: Choices) -> bytes:
        kind = choices.integer(0, 3)
        wrapping = choices.integer(0, 4)
        lines = [self._line(choices) for _ in range(choices.pick((8, 0, 1, 3, 30)))]
        data = choices.rest() if kind == 3 else b"\n".join(lines)
        if kind == 2:
            data = mutated_bytes(data, choices)
        if wrapping == 1:
            data = gzip.compress(data, mtime=0)
        elif wrapping == 2:
            data = zstandard.compress(data)
        elif wrapping == 3:  # several members, padded
            half = len(data) // 2
            parts = (gzip.compress(part, mtime=0) for part in (data[:half], data[half:]))
            data = bytes(choices.integer(0, 9)).join(parts)
        elif wrapping == 4:
            data = b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstandard.compress(data) + zstandard.compress(data)
        return mutated_bytes(data, choices) if choices.once_in(4) else data

    def _line(self, choices: Choices) -> bytes:
        kind = choices.integer(0, 9)
        if kind == 8:
            return choices.bytes(40)
        if kind == 9:
            return choices.pick(TOKENS)
        text = "".join(choices.pick(WORDS) for _ in range(choices.pick((6, 1, 20, 60))))
        record = {"text": text} if kind < 6 else mutated_json({"text": text, "n": choices.pick(JUNK)}, choices)
        return json_text(record, choices)

    def _tokenizer_json(self, choices: Choices) -> bytes:
        if choices.once_in(8):
            return choices.bytes(200)
        return json_text(mutated_json(self._tokenizer, choices), choices)
