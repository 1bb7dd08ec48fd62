"""MB/s of a whole preparation with a given tokenizer, beside the tokenizers library's bare `encode_batch`.

Both on as many cores: our workers are processes, the library's are threads (RAYON_NUM_THREADS), so it runs in a process
of its own. Two bare figures: encoding texts that are in memory, and reading the JSON lines and encoding. A preparation
also hashes, scores, counts scripts, packs, writes, measures the n-gram baselines, and parses every line twice. MB of
UTF-8 text.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import inputs
from common.errors import UserError
from corpus.pipeline import prepare
from corpus.settings import PreparationSettings
from corpus.tokenizer import train_tokenizer
from sample_stories import generate_stories
from training.config.command_line import positive

NAME = "preparation"
CORES = (1, 2)
STORIES = 20_000
SAMPLE_CHARACTERS = 2_000_000  # that the tokenizer learns from
VOCABULARY = 6400
MEGABYTE = 10**6
ROOT = Path(__file__).resolve().parents[2]

# The bare side, in a process of its own since threads are counted at the library's first use. It prints the seconds of
# reading and of encoding, and the tokens.
BARE = """
import json, sys, time
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
start = time.perf_counter()
with open(sys.argv[2], encoding="utf-8") as file:
    texts = [json.loads(line)["text"] for line in file]
read = time.perf_counter() - start
tokens = 0
start = time.perf_counter()
for first in range(0, len(texts), 2000):
    tokens += sum(len(one.ids) for one in tokenizer.encode_batch(texts[first:first + 2000], add_special_tokens=False))
print(json.dumps({"read": read, "encode": time.perf_counter() - start, "tokens": tokens}))
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this part."""
    add = parser.add_argument
    add(
        "--preparation_text",
        type=inputs.file,
        nargs="+",
        metavar="FILE",
        help="documents, .jsonl[.gz], repeated with a running number; sample stories if not given",
    )
    add("--preparation_mb", type=float, default=50, metavar="MB", help="of text (%(default)s)")
    add("--preparation_rounds", type=positive, default=3, metavar="N", help="turns of each side (%(default)s)")


def measure(work: Path, flags: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the median seconds of each side with 1 and 2 cores, taking turns, and their MB/s."""
    folder = work / "preparation"
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    text = folder / "text.jsonl"
    size, documents = write_text(text, flags.preparation_text, int(flags.preparation_mb * MEGABYTE))
    tokenizer = folder / "tokenizer.json"
    _train(text, tokenizer)
    say(f"{documents:,} documents, {size / MEGABYTE:.1f} MB of text")
    rows = []
    for cores in CORES:
        rounds: list[dict[str, float]] = []
        for _ in range(flags.preparation_rounds):
            bare = _bare(tokenizer, text, cores)
            start = time.perf_counter()
            shutil.rmtree(folder / "prepared", ignore_errors=True)
            manifest = prepare(
                [text], folder / "prepared", PreparationSettings(tokenizer=tokenizer), workers=cores, progress=None
            )
            rounds.append({**bare, "prepare": time.perf_counter() - start})
        tokens = sum(split.tokens - 2 * split.documents for split in manifest.splits.values())
        rows.append(
            row(cores, size, rounds)
            | {
                "tokens": tokens,
                "bare_tokens": int(rounds[0]["tokens"]),
                "documents_left": sum(split.documents for split in manifest.splits.values()),
            }
        )
        say(
            f"{cores} cores: {rows[-1]['share_of_encode']:.0%} of encode_batch alone, "
            f"{rows[-1]['share_of_read_and_encode']:.0%} of reading and encode_batch"
        )
    text.unlink()
    shutil.rmtree(folder / "prepared")
    return {
        "rows": rows,
        "bytes": size,
        "documents": documents,
        "rounds": flags.preparation_rounds,
        "text": [path.name for path in flags.preparation_text or []] or ["sample stories"],
        "seconds": round(time.monotonic() - started, 1),
    }


def row(cores: int, size: int, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of the rounds as MB/s, and what share of the bare rates the preparation reaches."""
    seconds = {part: statistics.median(one[part] for one in rounds) for part in ("read", "encode", "prepare")}
    both = statistics.median(one["read"] + one["encode"] for one in rounds)
    rate = size / MEGABYTE
    return {
        "cores": cores,
        "prepare_mb_s": rate / seconds["prepare"],
        "encode_mb_s": rate / seconds["encode"],
        "read_and_encode_mb_s": rate / both,
        "share_of_encode": seconds["encode"] / seconds["prepare"],
        "share_of_read_and_encode": both / seconds["prepare"],
        "seconds": {part: [round(one[part], 3) for one in rounds] for part in seconds},
    }


def write_text(path: Path, sources: list[Path] | None, wanted: int) -> tuple[int, int]:
    """Write about `wanted` bytes of documents, none twice; returns the bytes of text and the number of documents."""
    texts = [text for source in sources for text in _texts(source)] if sources else list(generate_stories(STORIES))
    size = count = 0
    with path.open("w", encoding="utf-8") as file:
        while size < wanted:
            for text in texts:
                numbered = f"{count}。{text}"
                file.write(json.dumps({"text": numbered}, ensure_ascii=False) + "\n")
                size += len(numbered.encode())
                count += 1
                if size >= wanted:
                    break
    return size, count


def _texts(source: Path) -> Iterator[str]:
    try:
        with (
            gzip.open(source, "rt", encoding="utf-8")
            if source.suffix == ".gz"
            else source.open(encoding="utf-8") as file
        ):
            yield from (json.loads(line)["text"] for line in file)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--preparation_text {source}: cannot be read ({error}); give JSON lines with a text") from None


def _train(text: Path, tokenizer: Path) -> None:
    """On text from the start of the file, of which there is enough for a benchmark's tokenizer."""
    with text.open(encoding="utf-8") as file:
        sample = [json.loads(line)["text"] for line in file.readlines(SAMPLE_CHARACTERS)]
    train_tokenizer(iter(sample), VOCABULARY).save(str(tokenizer))


def _bare(tokenizer: Path, text: Path, cores: int) -> dict[str, float]:
    environment = os.environ | {
        "TOKENIZERS_PARALLELISM": "true" if cores > 1 else "false",
        "RAYON_NUM_THREADS": str(cores),
    }
    output = subprocess.run(
        [sys.executable, "-c", BARE, str(tokenizer), str(text)],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return json.loads(output)


def table(result: dict[str, Any]) -> list[str]:
    """Return the results as lines of Markdown."""
    lines = [
        f"{result['bytes'] / MEGABYTE:.1f} MB of text in {result['documents']:,} documents "
        f"({', '.join(result['text'])}), median of {result['rounds']} rounds",
        "",
        "| cores | prepare, MB/s | encode_batch alone | of it | reading and encode_batch | of it |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one['cores']} | {one['prepare_mb_s']:.2f} | {one['encode_mb_s']:.2f} | "
        f"{one['share_of_encode']:.0%} | {one['read_and_encode_mb_s']:.2f} | "
        f"{one['share_of_read_and_encode']:.0%} |"
        for one in result["rows"]
    ]
    return lines
