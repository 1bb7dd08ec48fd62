"""Folders as others may hand them over: prepared corpora and saved models, each file of them changed."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from corpus import report
from corpus.pipeline import prepare
from corpus.settings import PreparationSettings
from corpus.shards import Corpus
from corpus.tokenizer import load_tokenizer, special_ids, vocab_size
from model import CausalLM, GenerationError, ModelConfig, ModelConfigError, load_model, save_model
from model.init import init_weights
from stress.fuzz.choices import JUNK, NOWHERE, Choices, json_text, mutated_bytes, mutated_json, put
from training.config import command_line

ENTRIES = 300
# What a tokenizer.json may ask for, and ours does not.
PIPELINES = (
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000},
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"},
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "b"},
    {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"Regex": "."}, "content": "aaaaaaaaaa"}] * 12},
    {"type": "Prepend", "prepend": "_" * 1000},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Split", "pattern": {"Regex": "(x+x+)+y|."}, "behavior": "Isolated", "invert": False},
    {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True},
    {"type": "Fixed", "size": 2**62},
    {"type": "Fixed"},
    {"type": "NFC"},
    {"type": "Lowercase"},
)


class FolderCase:
    """A prepared folder or a model folder, opened and used as train.py, generate.py and diagnose.py do."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as place:
            self._corpus = _read_all(_prepared(Path(place)))
            self._model = _read_all(_saved(Path(place), self._corpus["tokenizer.json"]))
            _use_model(Path(place) / "model")  # torch makes folders of its own at its first use

    def seeds(self) -> list[bytes]:
        """Both kinds of folder, whole and with one kind of change each."""
        return [
            bytes([kind, *(7 if change == place else 0 for place in range(6))]) + bytes(range(40))
            for kind in (0, 1)
            for change in range(7)
        ]

    def __call__(self, choices: Choices, folder: Path, outside: Path) -> str:
        """See guard.Case."""
        if choices.integer(0, 2) == 1:
            self._write_model(choices, folder, outside)
            return _use_model(folder)
        self._write_corpus(choices, folder, outside)
        return _use_corpus(folder, choices.pick(("hash", "size")))

    def _write_corpus(self, choices: Choices, folder: Path, outside: Path) -> None:
        files = dict(self._corpus)
        for name in sorted(files):
            if name.endswith(".bin") and choices.once_in(8):
                files[name] = mutated_bytes(files[name], choices)
        if choices.once_in(4):
            files["tokenizer.json"] = _tokenizer_json(files["tokenizer.json"], choices)
        if choices.once_in(8):
            files["report.json"] = json_text(mutated_json(json.loads(files["report.json"]), choices), choices)
        manifest = json.loads(files["manifest.json"])
        if choices.once_in(2):
            manifest = mutated_json(manifest, choices)
        if choices.once_in(2):  # a forger takes care that the hashes agree
            _agree(manifest, files)
        files["manifest.json"] = json_text(manifest, choices)
        for name, data in files.items():
            named = name.endswith(".bin") or name == "tokenizer.json"  # by the manifest, which others may have written
            put(folder / name, data, choices, outside if named else NOWHERE)

    def _write_model(self, choices: Choices, folder: Path, outside: Path) -> None:
        files = dict(self._model)
        if choices.once_in(2):
            files["config.json"] = json_text(mutated_json(json.loads(files["config.json"]), choices), choices)
        if choices.once_in(2):
            files["model.safetensors"] = mutated_safetensors(files["model.safetensors"], choices)
        if choices.once_in(6):
            files["tokenizer.json"] = _tokenizer_json(files["tokenizer.json"], choices)
        for name, data in files.items():
            put(folder / name, data, choices, NOWHERE)


def _prepared(place: Path) -> Path:
    texts = (f"第{number}篇：从前有座山，山里有座庙，the cat sat {number}。" for number in range(60))
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    (place / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    settings = PreparationSettings(vocab_size=ENTRIES, val_fraction=0.2, shard_tokens=300)
    prepare([place / "texts.jsonl"], place / "corpus", settings, workers=1, progress=None)
    return place / "corpus"


def _saved(place: Path, tokenizer: bytes) -> Path:
    config = ModelConfig(
        vocab_size=ENTRIES,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_experts=2,
        max_position_embeddings=64,
    )
    model = CausalLM(config)
    init_weights(model, config, 0)
    save_model(place / "model", config, model.state_dict())
    (place / "model" / "tokenizer.json").write_bytes(tokenizer)
    return place / "model"


def _read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _tokenizer_json(data: bytes, choices: Choices) -> bytes:
    content = json.loads(data)
    if choices.once_in(2):
        content[
            choices.pick(("normalizer", "pre_tokenizer", "decoder", "post_processor", "padding", "truncation", "model"))
        ] = choices.pick((*PIPELINES, *JUNK))
        return json_text(content, choices)
    if choices.once_in(4):
        return mutated_bytes(data, choices)
    return json_text(mutated_json(content, choices), choices)


def _agree(manifest: Any, files: dict[str, bytes]) -> None:
    """Make hashes and numbers of tokens right, as far as the manifest still has places for them."""
    with suppress(Exception):
        manifest["tokenizer_sha256"] = sha256(files["tokenizer.json"]).hexdigest()
    with suppress(Exception):
        for split in manifest["splits"].values():
            for shard in split["shards"]:
                shard["sha256"] = sha256(files[shard["file"]]).hexdigest()
                shard["tokens"] = len(files[shard["file"]]) // 2
            split["tokens"] = sum(shard["tokens"] for shard in split["shards"])


def mutated_safetensors(data: bytes, choices: Choices) -> bytes:
    """The header's JSON changed, with its length set right again; or bytes anywhere."""
    if choices.once_in(3):
        return mutated_bytes(data, choices)
    size = int.from_bytes(data[:8], "little")
    header = mutated_json(json.loads(data[8 : 8 + size]), choices)
    text = json_text(header, choices)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _use_corpus(folder: Path, verify: str) -> str:
    corpus = Corpus.open(folder, verify=verify)
    manifest = corpus.manifest
    command_line.model_config(
        command_line.options({}, {}),
        vocab_size=manifest.vocab_size,
        bos_id=manifest.bos_id,
        eos_id=manifest.eos_id,
        pad_id=manifest.pad_id,
    )
    for name in ("train", "val"):
        stream = corpus.split(name)
        if rows := stream.num_rows(16):
            stream.batch([0, rows - 1], 16)
        ids = stream.read(0, len(stream))
        assert verify != "hash" or (ids < manifest.vocab_size).all(), "an id beyond the vocabulary"
    if (baselines := manifest.ngram_baselines) is not None:
        [f"{nats:.3f} {baselines.bits_per_byte(nats):.3f}" for nats in baselines.losses().values()]
    report.loss_to_beat(manifest).encode()
    "\n".join(report.lines(manifest, report.CorpusReport.read(folder))).encode()
    tokenizer = load_tokenizer(corpus.tokenizer_path)
    special_ids(tokenizer)
    tokenizer.encode_batch(["从前有座山" * 100, "a" * 200, ""], add_special_tokens=False)
    return f"corpus opened, {verify}"


def _use_model(folder: Path) -> str:
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    try:
        model = load_model(folder, dtype=torch.float32)
        if vocab_size(tokenizer) > model.config.vocab_size:
            raise UserError("the tokenizer has more entries than the model")
        ids = tokenizer.encode("山里", add_special_tokens=False).ids or [0]
        out = model.generate(torch.tensor([ids[:20]]), max_new_tokens=3, do_sample=False)
    except (ModelConfigError, GenerationError) as error:
        raise UserError(str(error)) from None
    tokenizer.decode(out[0].tolist())
    return "text written"
