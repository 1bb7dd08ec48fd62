"""What a run was trained with: its text, and its configuration as flat names and values.

A name is that of the user's own file or command: `optimizer.params.lr` of the DeepSpeed JSON, `--hidden_size` of the
command line. What only says where or how often something is written is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any

from pydantic import Field

from common.errors import UserError
from common.records import Count, Record
from corpus.manifest import Manifest
from corpus.ngram_baselines import NGramBaselines
from evaluation.run_record import RunRecord, find_corpus

# Of the DeepSpeed JSON: monitors, logs and measurements, which change nothing
ONLY_SHOWN = (
    "tensorboard",
    "csv_monitor",
    "wandb",
    "comet",
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "comms_logger",
    "flops_profiler",
    "timers",
)
# Of the JSON too, but shown as the length of the run
_LENGTH = "scheduler.params.total_num_steps"
# Of the flags that are no sizes of the model; the JSON, the text and the length are compared as what became of them
_FLAGS = ("seed", "init_from", "max_seq_len", "patience", "eval_interval", "eval_tokens")
_FROM_TOKENIZER = ("bos_token_id", "eos_token_id", "pad_token_id")
# Where it ran
PLACE = ("python", "torch", "deepspeed", "device", "processes")


class TextFacts(Record):
    """What is known of the text that a run was trained and evaluated on; run.json keeps it.

    `held_out` is documents, bytes and characters of the validation split, which no tokenizer changes.
    """

    fingerprint: str | None = None
    tokenizer: str | None = None
    held_out: Annotated[list[Count], Field(min_length=3, max_length=3)] | None = None
    ngram_baselines: NGramBaselines | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> TextFacts:
        """Return what a corpus says."""
        val = manifest.splits["val"]
        return cls(
            fingerprint=manifest.fingerprint,
            tokenizer=manifest.tokenizer_sha256,
            held_out=[val.documents, val.bytes, val.characters],
            ngram_baselines=manifest.ngram_baselines,
        )


def text_facts(record: RunRecord) -> TextFacts:
    """Return what the run says about its text, or else what its corpus says, if that is there and is the same."""
    with suppress(ValueError):
        return TextFacts.model_validate(record.record.get("text"))
    fingerprint, folder = record.corpus_fingerprint, find_corpus(record)
    with suppress(UserError):
        manifest = Manifest.read(folder) if folder else None
        if manifest and fingerprint in (None, manifest.fingerprint):  # not prepared again since
            return TextFacts.of(manifest)
    return TextFacts(fingerprint=fingerprint)


def settings_of(record: RunRecord, text: TextFacts) -> dict[str, Any]:
    """Return all that the run was trained with, by name."""
    shown = (*ONLY_SHOWN, _LENGTH)
    found = {key: value for key, value in flat(record.ds_config) if not key.startswith(shown)}
    found |= {f"--{name}": value for name, value in record.flags.items() if name in _FLAGS}
    found |= {f"--{name}": value for name, value in record.model.items() if name not in _FROM_TOKENIZER}
    found["steps"] = record.total_steps or record.flags.get("max_steps")
    found["text"] = _text_name(record.corpus, text.fingerprint)
    versions = record.record.get("versions")
    places = record.record | (versions if isinstance(versions, dict) else {})
    found |= {name: places.get(name) for name in PLACE}
    return {key: value for key, value in found.items() if value is not None}


def _text_name(corpus: str | None, fingerprint: str | None) -> str | None:
    """Return the corpus by its name and the beginning of its hash, where that is known."""
    short = corpus.rstrip("/").rpartition("/")[2] if corpus else ""
    return f"{short} ({fingerprint[:8]})" if fingerprint else short or None


def flat(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of blocks within blocks by their dotted names."""
    for key, value in block.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
