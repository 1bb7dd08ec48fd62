"""`make demo`: train on the sample stories, write some, diagnose the run, count the stories that make sense, and teach
the model to answer questions about them."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer

from common.console import human_time
from common.files import read_json_lines
from common.hardware import detect
from common.nvidia import why_unusable
from model import CausalLM, load_model
from sample_stories import check
from sample_stories.questions import ask, write_questions
from training.data import DATA_FOLDER
from training.evaluation.story_questions import answer_questions

ROOT = Path(__file__).resolve().parent.parent
RUN, CHAT_RUN = Path("runs/demo"), Path("runs/demo-chat")
PROMPT = "有一天早上，"
STORIES, BATCH, LONGEST = 64, 32, 240
TEMPERATURE, TOP_P = 0.7, 0.95
# Stories with questions to learn from and to be asked about; of other seeds than each other's and the corpus's
TAUGHT, TAUGHT_SEED, ASKED, ASKED_SEED = 5_000, 1, 200, 2
FINE_TUNING = 480  # steps of 8 rows, most of a pass; after 160 it still guessed


def main() -> int:
    """Return 0 if every command ended well, else the status of the one that did not."""
    started = time.monotonic()
    device = detect()
    if device.kind == "cpu" and (why := why_unusable(torch.__version__, torch.version.cuda)):
        print(f"WARNING: {why}; the demo goes on on the CPU", flush=True)
    processes = 2 if device.kind == "cpu" else min(2, device.count)
    # DeepSpeed's launcher would look for a GPU, and warn
    environment = os.environ | ({"DS_ACCELERATOR": "cpu"} if device.kind == "cpu" else {})
    launcher = Path(sys.executable).with_name("deepspeed")
    deepspeed = str(launcher) if launcher.is_file() else "deepspeed"
    train = [deepspeed, "--quiet", "--num_gpus", str(processes), "train.py", "--output"]
    questions = DATA_FOLDER / f"story-questions-{TAUGHT}.jsonl"
    written = f"--prompt {PROMPT} --max_new_tokens 160 --temperature {TEMPERATURE} --top_p {TOP_P}"
    commands = [
        [*train, str(RUN)],
        [sys.executable, *f"generate.py --checkpoint {RUN} {written} --repetition_penalty 1.0 --seed 1".split()],
        [sys.executable, *f"diagnose.py --checkpoint {RUN} --html {RUN}/diagnosis.html".split()],
    ]
    for command in commands:
        if status := _run(command, environment):
            return status
    for line in verdict(RUN, device.kind):
        print(line, flush=True)
    if not (ROOT / questions).is_file():
        write_questions(ROOT / questions, TAUGHT, TAUGHT_SEED, hamlet=device.kind == "cpu")
    flags = f"--init_from {RUN} --data {questions} --skip_preflight --max_steps {FINE_TUNING}".split()
    flags += f"--eval_interval {FINE_TUNING // 2} --sample_interval {FINE_TUNING}".split()
    if status := _run([*train, str(CHAT_RUN), *flags], environment):
        return status
    for line in answers(device.kind):
        print(line)
    print(f"\ntime: {human_time(time.monotonic() - started)}")
    return 0


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Show and run a command; return its exit status."""
    print(f"\n$ {' '.join([Path(command[0]).name, *command[1:]])}", flush=True)
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def answers(device: str) -> list[str]:
    """Say how many questions about stories the base and the fine-tuned model answer right."""
    asked = list(ask(ASKED, ASKED_SEED, hamlet=device == "cpu"))
    scores = []
    for run in (RUN, CHAT_RUN):
        tokenizer = Tokenizer.from_file(str(run / "model" / "tokenizer.json"))
        scores.append(answer_questions(load_model(run / "model", device=device), tokenizer, asked))
    before, after = scores
    kinds = ", ".join(f"{kind} {after.right[kind]} of {count}" for kind, count in sorted(after.asked.items()))
    return [
        "",
        f"questions about {ASKED} new stories, judged by the stories' world",
        f"  right before fine-tuning {before.share:.0%}, after {after.share:.0%}; guessing among fitting names would "
        f"give {after.chance:.0%}",
        f"  after, by kind: {kinds}",
        f"  {after.example[0]} {after.example[1]}",
        f"  ask it       {beside(sys.executable)} generate.py --checkpoint {CHAT_RUN} --chat",
    ]


def verdict(run: Path, device: str) -> list[str]:
    """Say what the run has learned: its loss beside the unigram baseline, and what the checker says of its stories."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    corpus = Path(json.loads((run / "run.json").read_text(encoding="utf-8"))["corpus"])
    stories = write_stories(load_model(run / "model", device=device), run / "model" / "tokenizer.json")
    verdicts = [check(story) for story in stories]
    known = set(_training_stories(corpus))
    good = [story for story, found in zip(stories, verdicts, strict=True) if found.ok]
    new = sum(story not in known for story in good)
    # a run that an earlier version finished has the entropy alone
    loss, unigram = summary["best_val_loss"], summary.get("unigram_loss", summary["token_entropy"])
    lines = [
        "",
        "verdict",
        f"  validation loss {loss:.3f} nats a token; {unigram:.3f} would be token frequencies alone, "
        f"{math.log(load_vocabulary(run)):.3f} pure chance",
        f"  {len(good)} of {len(stories)} freely written stories ({len(good) / len(stories):.0%}) are well-formed and "
        f"consistent with the stories' world; {new} of those {len(good)} stand nowhere in the training text",
    ]
    wrong = next((found for found in verdicts if not found.ok), None)
    if wrong:
        lines.append(f"  a rejected one: {wrong.reason}")
    lines += [
        "where to look next",
        f"  diagnosis    {run}/diagnosis.html",
        f"  curves       {beside(sys.executable)} -m tensorboard.main --logdir {run}/tensorboard",
        f"  more text    {beside(sys.executable)} generate.py --checkpoint {run}",
        f"  your text    {beside(Path(sys.executable).with_name('deepspeed'))} --num_gpus 2 train.py --data YOUR.jsonl",
    ]
    return lines


def beside(program: Path | str) -> str:
    """Return the program as the user's shell finds it: by its path, unless the environment that it is in is active."""
    program = Path(program)
    found = shutil.which(program.name)
    return program.name if found and Path(found).parent == program.parent else os.path.relpath(program)


def load_vocabulary(run: Path) -> int:
    """Return the size of the run's vocabulary."""
    return json.loads((run / "model" / "config.json").read_text(encoding="utf-8"))["vocab_size"]


def write_stories(model: CausalLM, tokenizer_file: Path, count: int = STORIES, seed: int = 0) -> list[str]:
    """Return stories that begin with nothing but BOS, sampled with a fixed seed."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    stories = []
    for first in range(0, count, BATCH):
        begin = torch.full((min(BATCH, count - first), 1), model.config.bos_token_id)
        ids = model.generate(
            begin,
            max_new_tokens=LONGEST,
            temperature=TEMPERATURE,
            top_k=0,
            top_p=TOP_P,
            repetition_penalty=1.0,
            do_sample=True,
            seed=seed,
            first_row=first,
        )
        stories += [tokenizer.decode(_text_ids(row, model)) for row in ids[:, 1:].tolist()]
    return stories


def _text_ids(row: list[int], model: CausalLM) -> list[int]:
    end = model.config.eos_token_id
    return row[: row.index(end)] if end in row else row


def _training_stories(corpus: Path) -> list[str]:
    manifest = json.loads((corpus / "manifest.json").read_text(encoding="utf-8"))
    texts = []
    for entry in manifest["inputs"]:
        path = corpus.parent / Path(entry["file"]).name
        if path.is_file():
            texts += [row["text"] for row in read_json_lines(path)]
    return texts


if __name__ == "__main__":
    sys.exit(main())
