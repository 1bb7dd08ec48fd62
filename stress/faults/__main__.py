"""Train small models with one planted fault each and let preflight and diagnose.py judge them blind.

    python -m stress.faults --output runs/faults                     the faults and the healthy runs on stories
    python -m stress.faults --output runs/faults --docs docs.jsonl.gz --poems poems.jsonl.gz   ... on real text too
    python -m stress.faults --output runs/faults-b --setting b --docs docs.jsonl.gz            another text and size
    python -m stress.faults --output runs/faults-muon --setting muon --docs prose.jsonl.gz     the recipe of cpu_x2.json

Finished runs are used again. Status 0 if at least MOST_WRONG faults less than all are named and no healthy run is
accused; results.json and table.md lie in the output.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from stress.faults.cases import CASES, SETTINGS, Case, Setting
from stress.faults.corpora import Texts, prepared
from stress.faults.judge import Bench, Verdict

MOST_WRONG = 4  # of 14 or 20


def main(argv: list[str] | None = None) -> int:
    """Exit status as above; 2 for a case that does not exist."""
    options = _arguments(argv)
    known = CASES[options.setting]
    cases = [case for case in known if not options.only or case.name in options.only]
    if unknown := set(options.only) - {case.name for case in cases}:
        print(f"--only {', '.join(sorted(unknown))}: the cases are {', '.join(c.name for c in known)}", file=sys.stderr)
        return 2
    texts = Texts(options.docs, options.poems)
    setting, cases = _without_missing_text(SETTINGS[options.setting], cases, texts)
    names = dict.fromkeys(case.corpus_name(setting) for case in cases)
    output = options.output.resolve()
    corpora = {name: prepared(name, output.parent / "corpora", texts) for name in names}
    bench = Bench(output, setting, corpora, not options.no_preflight)
    verdicts = _run(bench, cases, options.jobs)
    (output / "results.json").write_text(json.dumps([v.record() for v in verdicts], indent=2) + "\n", encoding="utf-8")
    (output / "table.md").write_text(table(verdicts), encoding="utf-8")
    print(table(verdicts), end="")
    return 0 if good(verdicts) else 1


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stress.faults",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR")
    add("--setting", choices=sorted(SETTINGS), default="a", help="text, size, seed and batch (%(default)s)")
    add("--only", nargs="+", default=[], metavar="NAME", help="these cases alone")
    add("--docs", type=Path, metavar="FILE", help="documents, .jsonl[.gz]; stories stand in without it")
    add("--poems", type=Path, metavar="FILE", help="poems, .jsonl[.gz]; stories stand in without it")
    add("--jobs", type=int, default=2, metavar="N", help="cases at a time (%(default)s)")
    add("--no_preflight", action="store_true", help="diagnosis alone")
    return parser.parse_args(argv)


def _without_missing_text(setting: Setting, cases: list[Case], texts: Texts) -> tuple[Setting, list[Case]]:
    """Stories of the village in the place of text that was not given."""
    missing = [name for name in ("docs", "poems") if getattr(texts, name) is None]
    cases = [replace(case, corpus="village") if case.corpus in missing else case for case in cases]
    return (replace(setting, corpus="village") if setting.corpus in missing else setting), cases


def _run(bench: Bench, cases: list[Case], jobs: int) -> list[Verdict]:
    def one(case: Case) -> Verdict:
        bench.train(case)
        bench.check(case)
        verdict = bench.judge(case)
        named = ", ".join(f"{name} {sure}" for name, sure in verdict.causes) or "no cause"
        print(f"{case.name}: {named} ({'right' if verdict.right else 'WRONG'})", file=sys.stderr, flush=True)
        return verdict

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, cases))


def good(verdicts: list[Verdict]) -> bool:
    """No healthy run accused, and all but MOST_WRONG faults named."""
    faults, healthy = ([v for v in verdicts if bool(v.expected) is fault] for fault in (True, False))
    return all(v.right for v in healthy) and sum(not v.right for v in faults) <= MOST_WRONG


def table(verdicts: list[Verdict]) -> str:
    """Return the verdicts as a table in Markdown."""
    lines = [
        "| planted | steps | best val loss | place | named first | then | preflight | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for v in verdicts:
        causes = [f"{name} ({sure:.2f})" for name, sure in v.causes]
        checks = (
            ["not run"]
            if v.preflight is None
            else [f"{name}" + (" (warns)" if level == "warn" else "") for name, level in v.preflight] or ["all pass"]
        )
        loss = "-" if v.val_loss is None else f"{v.val_loss:.3f}"
        lines.append(
            f"| {v.name} | {v.steps:,} | {loss} | {(v.stands or '-').replace('_', ' ')} | "
            f"{causes[0] if causes else '-'} | {', '.join(causes[1:]) or '-'} | {', '.join(checks)} | "
            f"{'right' if v.right else '**wrong**'} |"
        )
    named = sum(v.right for v in verdicts if v.expected), sum(bool(v.expected) for v in verdicts)
    spared = sum(v.right for v in verdicts if not v.expected), sum(not v.expected for v in verdicts)
    return "\n".join(
        [
            *lines,
            "",
            f"Faults named first: {named[0]} of {named[1]}; healthy runs left in peace: {spared[0]} of {spared[1]}.",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
