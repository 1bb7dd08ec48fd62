"""How well and how fast near duplicates are found, on pairs with known answers and at full size.

    python -m benchmarks.dedup quality --texts zh_docs.jsonl.gz --poems zh_poems.jsonl.gz
    python -m benchmarks.dedup choice --texts zh_docs.jsonl.gz
    python -m benchmarks.dedup scale --texts zh_docs.jsonl.gz zh_poems.jsonl.gz --documents 1400000 --work DIR

`quality` plants edits in real texts and pairs the editions of poems by author and title; `choice` shows the Jaccard
similarities behind the constants of corpus/cleaning/near_duplicates.py; `scale` makes a corpus of the
reference run's size out of real sentences and measures prepare.py on it (Linux).
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from corpus.cleaning.near_duplicates import NGRAM, THRESHOLD, NearIndex, signatures, simplified_characters
from corpus.cleaning.normalization import ngram_hashes, normalized_characters
from corpus.reader import parse_chunk, read_chunks, text_files
from corpus.split import document_digest

ROOT = Path(__file__).resolve().parent.parent
SHARES = (0.05, 0.10, 0.20)
SENTENCE = re.compile(r"[^。！？\n]+[。！？\n]*|[。！？\n]+")
ALIKE = 0.6  # found pairs that were not planted are right if so much is common to both, by difflib
MEAN_BYTES = 1_214  # 1.7 GB / 1.4 million


def read_texts(paths: Sequence[Path]) -> list[str]:
    """All documents of JSON Lines files."""
    return [text for file in text_files(paths) for chunk in read_chunks(file) for text in parse_chunk(chunk).texts]


class Editor:
    """Plants edits; `texts` lend the characters and sentences that are put in."""

    def __init__(self, texts: list[str], seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.characters = [c for text in texts[:500] for c in text if not c.isspace()]
        self.sentences = [s for text in texts for s in SENTENCE.findall(text) if len(s) > 8]

    def characters_changed(self, text: str, share: float) -> str:
        """Replace, insert or delete a character, as often as `share` of the text's length."""
        result = list(text)
        for _ in range(round(share * len(text))):
            place = self.rng.randrange(len(result))
            kind = self.rng.randrange(3)
            if kind == 0:
                result[place] = self.rng.choice(self.characters)
            elif kind == 1:
                result.insert(place, self.rng.choice(self.characters))
            elif len(result) > 1:
                del result[place]
        return "".join(result)

    def sentences_changed(self, text: str, share: float) -> str:
        """Drop, replace or follow sentences by foreign ones until `share` of the text's characters is affected."""
        parts = SENTENCE.findall(text)
        changed = 0
        for place in self.rng.sample(range(len(parts)), len(parts)):
            size = len(parts[place])
            if changed + size / 2 > share * len(text):  # else one long sentence would be far more than the share
                continue
            changed += size
            foreign = self.rng.choice(self.sentences)
            parts[place] = self.rng.choice(("", foreign, parts[place] + foreign))
        return "".join(parts)


def near_pairs(texts: list[str]) -> list[tuple[int, int]]:
    """(kept, dropped) as prepare.py finds them."""
    index = NearIndex()
    for start in range(0, len(texts), 500):
        part = texts[start : start + 500]
        digests = [document_digest(text.encode()) for text in part]
        index.add(signatures(normalized_characters(part)), digests, range(start, start + len(part)), preferred=False)
    found = index.resolve()
    return list(zip(found.kept.tolist(), found.dropped.tolist(), strict=True))


def alikeness(first: str, second: str) -> float:
    """Share of two texts' letters that stand in common blocks, in order (difflib's ratio): no n-grams, no hashes."""
    parts = (simplified_characters(normalized_characters([text])).tolist() for text in (first, second))
    return difflib.SequenceMatcher(None, *parts, autojunk=False).ratio()


def planted(texts: list[str], count: int = 1000) -> Iterator[tuple[str, float, float, int, int, int]]:
    """By kind and share of edits: recall, pairs found within the planted ones, other pairs found, those of them alike.

    Every case is one corpus of `count` texts and their edited copies.
    """
    long = sorted({text for text in texts if len(text) >= 150})
    originals = random.Random(1).sample(long, min(count, len(long)))
    editor = Editor(long)
    kinds: dict[str, Callable[[str, float], str]] = {
        "characters": editor.characters_changed,
        "sentences": editor.sentences_changed,
    }
    for kind, change in kinds.items():
        for share in SHARES:
            yield (kind, share, *judge(originals, [change(text, share) for text in originals]))


def judge(originals: list[str], copies: list[str]) -> tuple[float, int, int, int]:
    """Recall and the counts of `planted` for texts and their copies in one corpus."""
    everything = originals + copies
    found = near_pairs(everything)
    count = len(originals)
    others = [(kept, dropped) for kept, dropped in found if kept % count != dropped % count]
    # a text dropped for a third one cannot be found as its copy's, so such texts do not count
    entangled = {place % count for pair in others for place in pair}
    right = {kept % count for kept, dropped in found if kept % count == dropped % count}
    alike = sum(alikeness(everything[kept], everything[dropped]) >= ALIKE for kept, dropped in others)
    return len(right - entangled) / (count - len(entangled)), len(right), len(others), alike


def edition_pairs(poems: list[str]) -> list[tuple[int, int, float]]:
    """Poems whose first line (title and author) is the same once simplified, with the alikeness of what follows it."""
    by_title = defaultdict(list)
    for place, poem in enumerate(poems):
        title, _, body = poem.partition("\n")
        if body.strip():
            key = simplified_characters(normalized_characters([title])).tobytes()
            by_title[key].append((place, body))
    return [
        (first, second, alikeness(one, other))
        for group in by_title.values()
        if len(group) <= 50
        for (first, one), (second, other) in combinations(group, 2)
    ]


def editions(poems: list[str]) -> Iterator[tuple[float, float, int, int]]:
    """By alikeness from, up to: pairs of editions and how many of them end with one poem of the two at most."""
    gone = {dropped for _, dropped in near_pairs(poems)}
    pairs = edition_pairs(poems)
    for low, high in ((0.95, 1.01), (0.9, 0.95), (0.8, 0.9), (0.7, 0.8), (0.5, 0.7), (0.0, 0.5)):
        chosen = [pair for pair in pairs if low <= pair[2] < high]
        yield low, min(high, 1.0), len(chosen), sum(first in gone or second in gone for first, second, _ in chosen)


def quality(texts: list[str], poems: list[str]) -> None:
    """Print recall and precision."""
    print(f"threshold {THRESHOLD}, {NGRAM}-grams of letters\n")
    print("edits planted   share  recall  pairs found  planted  others  others alike")
    for kind, share, recall, right, others, alike in planted(texts):
        print(
            f"{kind:14} {share:6.0%} {recall:7.1%} {right + others:12,} {right:8,} {others:7,} {alike:13,}", flush=True
        )
    print("\neditions of poems, by alikeness of their lines   pairs  one of two dropped")
    for low, high, pairs, dropped in editions(poems):
        print(f"{low:32.2f} to {high:.2f} {pairs:14,} {dropped / max(1, pairs):19.1%}", flush=True)
    found = near_pairs(poems)
    sample = random.Random(0).sample(found, min(1000, len(found)))
    scores = [alikeness(poems[kept], poems[dropped]) for kept, dropped in sample]
    right = sum(score >= ALIKE for score in scores)
    print(
        f"\n{len(found):,} poems dropped as near; of {len(sample):,} looked at, {right:,} are at least {ALIKE:.0%} "
        f"like the one kept (10th percentile {np.percentile(scores, 10):.2f})"
        if found
        else "\nno near poems"
    )


def choice(texts: list[str], count: int = 400) -> None:
    """Print the exact Jaccard similarities of edited pairs and of different texts, by length of the n-grams."""
    long = sorted({text for text in texts if len(text) >= 150})
    editor = Editor(long)
    originals, strangers = (random.Random(seed).sample(long, count) for seed in (1, 2))
    cases = {"different": strangers}
    for share in SHARES:
        cases[f"characters {share:.0%}"] = [editor.characters_changed(text, share) for text in originals]
        cases[f"sentences {share:.0%}"] = [editor.sentences_changed(text, share) for text in originals]
    print(
        "Jaccard similarity to the original: 5th, 50th, 99th percentile\n"
        + " " * 16
        + "".join(f"{f'{n}-grams':>18}" for n in range(2, 7))
    )
    for name, others in cases.items():
        row = []
        for n in range(2, 7):
            values = [jaccard(one, other, n) for one, other in zip(originals, others, strict=True)]
            row.append("  ".join(f"{np.percentile(values, at):.2f}" for at in (5, 50, 99)))
        print(f"{name:16}" + "".join(f"{cell:>18}" for cell in row))


def jaccard(first: str, second: str, n: int) -> float:
    """Exact similarity of the sets of n-grams of two texts."""
    one, other = (
        np.unique(ngram_hashes(simplified_characters(normalized_characters([text])), n)) for text in (first, second)
    )
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / max(1, len(one) + len(other) - common)


def write_big_corpus(path: Path, texts: list[str], documents: int, near_share: float, exact_share: float) -> int:
    """JSON Lines of shuffled real sentences, some documents edited by 10 % or repeated; returns how many edited."""
    rng = random.Random(0)
    editor = Editor(texts)
    recent: list[str] = []
    edited = 0
    with path.open("w", encoding="utf-8") as file:
        for _ in range(documents):
            draw = rng.random()
            if recent and draw < exact_share:
                text = rng.choice(recent)
            elif recent and draw < exact_share + near_share:
                text = editor.characters_changed(rng.choice(recent), 0.1)
                edited += 1
            else:
                text = "".join(random_sentences(rng, editor.sentences))
                if len(recent) < 10_000:
                    recent.append(text)
                else:
                    recent[rng.randrange(len(recent))] = text
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return edited


def random_sentences(rng: random.Random, sentences: list[str]) -> Iterator[str]:
    """Sentences of MEAN_BYTES or so together."""
    wanted = rng.lognormvariate(0, 0.5) * MEAN_BYTES / 1.17
    while wanted > 0:
        sentence = rng.choice(sentences)
        wanted -= len(sentence.encode())
        yield sentence


def scale(texts: list[str], documents: int, work: Path) -> None:
    """Make the corpus, prepare it with two workers, print time and memory."""
    work.mkdir(parents=True, exist_ok=True)
    source, output = work / "big.jsonl", work / "prepared"
    edited = write_big_corpus(source, texts, documents, near_share=0.05, exact_share=0.05)
    shutil.rmtree(output, ignore_errors=True)
    command = [
        sys.executable,
        str(ROOT / "prepare.py"),
        "--input",
        str(source),
        "--output",
        str(output),
        "--dedup",
        "near",
        "--workers",
        "2",
    ]
    print(f"{documents:,} documents, {source.stat().st_size / 1e9:.2f} GB, {edited:,} edited by 10 %", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.5)
    minutes = (time.monotonic() - started) / 60
    if process.returncode:
        sys.exit(process.returncode)
    cpu = os.times()
    duplicates = json.loads((output / "report.json").read_text(encoding="utf-8"))["duplicates"]
    print(
        f"{minutes:.1f} minutes ({(cpu.children_user + cpu.children_system) / 60:.1f} of processor time), peak "
        f"memory of all processes {peak / 1e9:.2f} GB; {duplicates['exact']:,} exact and {duplicates['near']:,} near "
        "duplicates dropped"
    )


def memory(pid: int) -> int:
    """Bytes in memory of a process and its children, pages that they share counted once (Linux)."""
    total = 0
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total = 1024 * int(line.split()[1])
    except OSError:  # it has just ended
        return 0
    return total + sum(memory(int(child)) for child in children)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "choice", "scale"))
    parser.add_argument("--texts", nargs="+", type=Path, required=True, metavar="FILE", help="real text, JSON Lines")
    parser.add_argument(
        "--poems",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="poems: a line of title and author, then the rest",
    )
    parser.add_argument("--documents", type=int, default=1_400_000, metavar="N")
    parser.add_argument("--work", type=Path, default=Path("data/dedup"), metavar="DIR", help="for the made corpus")
    options = parser.parse_args()
    texts = read_texts(options.texts)
    if options.what == "quality":
        quality(texts, read_texts(options.poems))
    elif options.what == "choice":
        choice(texts)
    else:
        scale(texts, options.documents, options.work)


if __name__ == "__main__":
    main()
