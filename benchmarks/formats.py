"""One text in every format, a preparation that is killed ten times, and one in four parts: the same shards, how fast?

    python -m benchmarks.formats --text train.jsonl.gz

Every preparation is a process of its own with all cores, and with a tokenizer that is trained first. MB are those of
the documents in UTF-8; memory is the sum of the proportional set sizes of the process and its workers. Needs
`pip install -r requirements-formats.txt`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import psutil
import pyarrow
import zstandard
from pyarrow import parquet

from benchmarks import inputs

MEGABYTE = 10**6
KILLS, PARTS = 10, 4
ROOT = Path(__file__).resolve().parents[1]


def texts_of(path: Path, megabytes: float) -> Iterator[str]:
    """Yield documents without blank lines at their ends, which plain text does not keep, until they are so large."""
    left = megabytes * MEGABYTE
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            text = json.loads(line)["text"].strip()
            left -= len(text.encode())
            yield text
            if left < 0:
                return


def write_inputs(texts: list[str], folder: Path) -> dict[str, Path]:
    """Write the documents in every format; return where, by name."""
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines, 6))
    (folder / "a.jsonl.zst").write_bytes(zstandard.compress(lines, 3))
    (folder / "a.json").write_text(json.dumps([{"text": text} for text in texts], ensure_ascii=False, indent=1))
    with (folder / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    table = pyarrow.table({"text": texts})
    parquet.write_table(table, folder / "a.parquet", row_group_size=1000)
    with pyarrow.ipc.new_stream(folder / "a.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=1000)
    (folder / "txt").mkdir()
    for number, text in enumerate(texts):
        (folder / "txt" / f"{number:06}.txt").write_text(text)
    names = ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.csv", "a.parquet", "a.arrow", "txt")
    return {"a folder of .txt" if name == "txt" else name.removeprefix("a"): folder / name for name in names}


def run(*flags: object, kill_after: float | None = None) -> tuple[float, float]:
    """Run prepare.py, or kill it after so many seconds; return its seconds and its most memory in MB."""
    command = [sys.executable, str(ROOT / "prepare.py"), *map(str, flags)]
    start, most = time.monotonic(), 0.0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            if kill_after is not None and time.monotonic() - start > kill_after:
                process.kill()
            most = max(most, memory(process.pid))
            time.sleep(0.1)
        if process.returncode and kill_after is None:
            raise SystemExit(process.stderr.read() if process.stderr else "prepare.py failed")
    return time.monotonic() - start, most / MEGABYTE


def memory(pid: int) -> float:
    """Return the bytes of a process and its children."""
    try:
        process = psutil.Process(pid)
        return sum(one.memory_full_info().pss for one in (process, *process.children()))
    except psutil.Error:
        return 0.0


def digest(folder: Path) -> str:
    """Return the beginning of a hash over all shards."""
    shards = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sorted(folder.glob("*.bin")))
    return hashlib.sha256(shards).hexdigest()[:12]


def killed(prepare: Callable[..., tuple[float, float]], seconds: float) -> float:
    """Kill a preparation at random moments and let it end; return its seconds together."""
    rng, total = random.Random(0), 0.0
    for _ in range(KILLS):
        total += prepare(kill_after=rng.uniform(0.5, 3 + seconds / KILLS))[0]
    return total + prepare()[0]


def in_parts(prepare: Callable[..., tuple[float, float]]) -> float:
    """Prepare in parts, one after the other, and join them; return the seconds together."""
    twice = [f"{number}/{PARTS}" for number in range(1, PARTS + 1)] * 2
    return sum(prepare("--part", part)[0] for part in twice) + prepare()[0]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=inputs.file, required=True, metavar="FILE", help="documents, .jsonl.gz")
    parser.add_argument("--mb", type=float, default=50, metavar="MB", help="of text (%(default)s)")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    texts = list(texts_of(options.text, options.mb))
    size = sum(len(text.encode()) for text in texts) / MEGABYTE
    files = write_inputs(texts, work)
    sample = work / "sample.jsonl"
    sample.write_text("".join(json.dumps({"text": text}) + "\n" for text in islice(texts, 2000)))
    run("--input", sample, "--output", work / "first")
    print(f"{size:.1f} MB of text in {len(texts):,} documents\n")
    print("| what | s | MB/s | memory, MB | shards |\n|---|---|---|---|---|")
    tokenizer = ("--tokenizer", work / "first" / "tokenizer.json")
    for name, path in files.items():
        seconds, most = run("--input", path, "--output", work / "out", *tokenizer)
        print(f"| {name} | {seconds:.1f} | {size / seconds:.2f} | {most:.0f} | {digest(work / 'out')} |", flush=True)
        shutil.rmtree(work / "out")
    near = ("--input", files[".jsonl"], "--output", work / "out", *tokenizer, "--dedup", "near")
    seconds, most = run(*near)
    print(
        f"| .jsonl, --dedup near | {seconds:.1f} | {size / seconds:.2f} | {most:.0f} | {digest(work / 'out')} |",
        flush=True,
    )
    kept = (work / "out").rename(work / "whole")
    trials = {
        f"... killed {KILLS} times": lambda: killed(lambda *more, **how: run(*near, *more, **how), seconds),
        f"... in {PARTS} parts": lambda: in_parts(lambda *more: run(*near, *more)),
    }
    for name, trial in trials.items():
        took = trial()
        same = all((work / "out" / path.name).read_bytes() == path.read_bytes() for path in kept.iterdir())
        found = f"{digest(work / 'out')}{', all files equal' if same else ', DIFFERENT'}"
        print(f"| {name} | {took:.1f} | {size / took:.2f} | | {found} |", flush=True)
        shutil.rmtree(work / "out")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
