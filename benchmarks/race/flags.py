"""The flags of the race."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from benchmarks import inputs
from benchmarks.race import heldout
from benchmarks.race.peers import Settings, hf_trainer
from benchmarks.race.table import WORDS
from training.config.command_line import positive

RUNS = tuple(WORDS)
Add = Callable[..., Any]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this part."""
    add = parser.add_argument_group("race (time to loss against a peer)").add_argument
    _add_text_and_size(add)
    _add_peer(add)
    _add_ours(add)


def _add_text_and_size(add: Add) -> None:
    add("--race_train", type=inputs.file, metavar="FILE", help=".jsonl[.gz|.zst] (default: the sample stories)")
    add("--race_val", type=inputs.file, metavar="FILE", help="held-out documents, needed with --race_train")
    add("--race_documents", type=positive, metavar="N", help="only the first N training documents, to try it out")
    add("--race_width", type=positive, default=256, metavar="N", help="hidden size (%(default)s)")
    add("--race_layers", type=positive, default=4, metavar="N", help="number of layers (%(default)s)")
    add("--race_max_seq_len", type=positive, default=512, metavar="N", help="tokens a row (%(default)s)")


def _add_peer(add: Add) -> None:
    add("--peer", metavar="PATH", help=f"a checkout of MiniMind or nanoGPT, or the word {hf_trainer.WORD}")
    add("--race_points", type=positive, default=10, metavar="N", help="points of the peer's curve (%(default)s)")
    what = "tokenizer.json for a peer that brings none (default: one is trained on the text)"
    add("--race_tokenizer", type=inputs.file, metavar="FILE", help=what)
    what = "the peer's learning rate and batch, instead of a search for them"
    add("--race_peer_settings", type=peer_settings, metavar="lr=X,batch=N", help=what)
    what = (
        "take the peer's side from an earlier race over the same text on as many cores: to try settings of ours; "
        "not for figures to publish"
    )
    add("--race_peer_from", type=inputs.file, metavar="RESULT.json", help=what)
    rates = [5e-4, 1e-3, 2e-3, 4e-3]
    what = "learning rates that the search tries (%(default)s)"
    add("--race_search_rates", type=float, nargs="+", default=rates, metavar="X", help=what)
    what = "batches that the search tries (%(default)s)"
    add("--race_search_batches", type=positive, nargs="+", default=[2, 8, 32], metavar="N", help=what)
    what = "documents of a trial of the search (%(default)s)"
    add("--race_search_documents", type=positive, default=480, metavar="N", help=what)
    what = "time for the search (%(default)s)"
    add("--race_search_budget", type=float, default=1200, metavar="SECONDS", help=what)


def _add_ours(add: Add) -> None:
    add("--race_our_points", type=positive, default=16, metavar="N", help="points of our curve, at most (%(default)s)")
    config = heldout.ROOT / "ds_configs" / "cpu_x2.json"
    add("--race_config", type=inputs.file, default=config, metavar="FILE", help="our DeepSpeed JSON (cpu_x2.json)")
    add("--race_set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to our JSON")
    add("--race_train_flags", default="", metavar="TEXT", help='more flags of train.py, such as "--seed 1"')
    add("--race_processes", type=positive, default=2, metavar="N", help="our ranks (%(default)s)")
    what = "epochs of ours; the schedule ends with them (%(default)s)"
    add("--race_epochs", type=float, default=1.0, metavar="N", help=what)
    what = (
        "optimizer steps of ours, instead of epochs; with the peer's tokenizer as many times more or fewer as it makes "
        "tokens of the text"
    )
    add("--race_steps", type=positive, metavar="N", help=what)
    what = (
        f"runs of ours: in its best precision, in the peer's, with the peer's tokenizer ({' '.join(RUNS)}; the last "
        "one only if the peer has a tokenizer that was not made of the text)"
    )
    add("--race_runs", nargs="+", choices=RUNS, metavar="NAME", help=what)


def peer_settings(text: str) -> Settings:
    """Return the settings of a peer from text such as "lr=2e-3,batch=8"."""
    try:
        parts = dict(part.split("=") for part in text.split(","))
        return Settings(float(parts.pop("lr")), int(parts.pop("batch")))
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form lr=2e-3,batch=8") from None
