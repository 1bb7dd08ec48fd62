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
from typing import Any

import torch
from tokenizers import Tokenizer

from common.console import human_time
from common.files import read_json_lines
from common.hardware import detect
from common.nvidia import why_unusable
from evaluation.held_out_prompts import DecodingSettings, HeldOutPrompts, generate_continuations, make_generator
from model import CausalLM, load_model
from sample_stories import check
from sample_stories.questions import ask, write_questions
from training.data import DATA_FOLDER
from training.evaluation.story_questions import answer_questions

ROOT = Path(__file__).resolve().parent.parent
RUN, CHAT_RUN = Path("runs/demo"), Path("runs/demo-chat")
PROMPT = "有一天早上，"
STORIES, LONGEST = 64, 240
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
    for command in (
        [*train, str(RUN)],
        [sys.executable, *f"generate.py --checkpoint {RUN} {written} --repetition_penalty 1.0 --seed 1".split()],
        [sys.executable, *f"diagnose.py --checkpoint {RUN} --html {RUN}/diagnosis.html".split()],
    ):
        if status := _run(command, environment):
            return status
    print(*verdict(RUN, device.kind), sep="\n", flush=True)
    if not (ROOT / questions).is_file():
        write_questions(ROOT / questions, TAUGHT, TAUGHT_SEED, hamlet=device.kind == "cpu")
    flags = f"--init_from {RUN} --data {questions} --skip_preflight --max_steps {FINE_TUNING}".split()
    flags += f"--eval_interval {FINE_TUNING // 2} --sample_interval {FINE_TUNING}".split()
    if status := _run([*train, str(CHAT_RUN), *flags], environment):
        return status
    print(*answers(device.kind), sep="\n")
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
    summary, corpus = _read_json(run / "summary.json"), Path(_read_json(run / "run.json")["corpus"])
    model = load_model(run / "model", device=device)
    stories = write_stories(model, Tokenizer.from_file(str(run / "model" / "tokenizer.json")))
    verdicts = [check(story) for story in stories]
    known = set(_training_stories(corpus))
    good = [story for story, found in zip(stories, verdicts, strict=True) if found.ok]
    new = sum(story not in known for story in good)
    # a run that an earlier version finished has the entropy alone
    loss, unigram = summary["best_val_loss"], summary.get("unigram_loss", summary["token_entropy"])
    rejected = next((f"  a rejected one: {found.reason}" for found in verdicts if not found.ok), None)
    return [
        "",
        "verdict",
        f"  validation loss {loss:.3f} nats a token; {unigram:.3f} would be token frequencies alone, "
        f"{math.log(model.config.vocab_size):.3f} pure chance",
        f"  {len(good)} of {len(stories)} freely written stories ({len(good) / len(stories):.0%}) are well-formed and "
        f"consistent with the stories' world; {new} of those {len(good)} stand nowhere in the training text",
        *([rejected] if rejected else []),
        "where to look next",
        f"  diagnosis    {run}/diagnosis.html",
        f"  curves       {beside(sys.executable)} -m tensorboard.main --logdir {run}/tensorboard",
        f"  more text    {beside(sys.executable)} generate.py --checkpoint {run}",
        f"  your text    {beside(Path(sys.executable).with_name('deepspeed'))} --num_gpus 2 train.py --data YOUR.jsonl",
    ]


def write_stories(model: CausalLM, tokenizer: Tokenizer) -> list[str]:
    """Return stories that begin with nothing but BOS, sampled with a fixed seed."""
    generator = make_generator(model, DecodingSettings(TEMPERATURE, TOP_P))
    nothing = HeldOutPrompts([[model.config.bos_token_id]] * STORIES, [], LONGEST)
    return [
        tokenizer.decode(ids) for ids in generate_continuations(generator, nothing, eos_id=model.config.eos_token_id)
    ]


def _training_stories(corpus: Path) -> list[str]:
    inputs = [corpus.parent / Path(entry["file"]).name for entry in _read_json(corpus / "manifest.json")["inputs"]]
    return [row["text"] for path in inputs if path.is_file() for row in read_json_lines(path)]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def beside(program: Path | str) -> str:
    """Return the program as the user's shell finds it: by its path, unless the environment that it is in is active."""
    program = Path(program)
    found = shutil.which(program.name)
    return program.name if found and Path(found).parent == program.parent else os.path.relpath(program)


if __name__ == "__main__":
    sys.exit(main())
