"""Text from a trained model.

python generate.py --checkpoint runs/NAME                      # interactive; an empty line or Ctrl-D ends it
python generate.py --checkpoint runs/NAME --prompt 从前有座山
python generate.py --checkpoint runs/NAME --prompts prompts.txt --greedy --json > out.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.command_line import Parser, run_script
from common.errors import UserError

if TYPE_CHECKING:  # torch is imported once the arguments are known to be good
    from tokenizers import Tokenizer

    from model import CausalLM


TERMINAL = "the prompt"  # as the source of a prompt that was typed, and so is on the screen already


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        required=True,
        help="run folder, or a folder with config.json, model.safetensors and tokenizer.json",
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", help="text to continue; '' lets the model begin")
    prompts.add_argument("--prompts", type=Path, help='file with a prompt a line, or .jsonl with "prompt" or "text"')
    add("--max_new_tokens", type=int, default=50, help="at most so many tokens a text (%(default)s)")
    add("--temperature", type=float, default=1.0, help="below 1 safer, above 1 wilder (%(default)s)")
    add("--top_k", type=int, default=50, help="choose among the k best tokens; 0: all (%(default)s)")
    add("--top_p", type=float, default=0.95, help="choose among the best tokens up to this probability (%(default)s)")
    add(
        "--repetition_penalty",
        type=float,
        default=1.2,
        help="over 1: tokens that occurred are less likely (%(default)s)",
    )
    add("--greedy", action="store_true", help="always take the best token; no randomness")
    add("--no_repeat_ngram", type=int, default=0, help="never write the same n tokens twice; 0: off (%(default)s)")
    add("--num_samples", type=int, default=1, help="texts for each prompt (%(default)s)")
    add("--batch_size", type=int, default=16, help="texts written at the same time (%(default)s)")
    add("--seed", type=int, help="makes the texts reproducible")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (%(default)s)")
    add(
        "--json",
        action="store_true",
        help='print {"prompt", "text", "tokens": number of new tokens, "finish": "end_mark" or "length"} a line',
    )
    args = parser.parse_args(argv)
    problems = [sentence for good, sentence in _checks(args) if not good]
    if problems:
        raise UserError("; ".join(problems))
    return args


def _checks(args: argparse.Namespace) -> Iterator[tuple[bool, str]]:
    """What `model.generate` checks too, here in the names of the flags and before the seconds that torch takes."""
    for name, least in (
        ("max_new_tokens", 1),
        ("num_samples", 1),
        ("batch_size", 1),
        ("top_k", 0),
        ("no_repeat_ngram", 0),
    ):
        yield getattr(args, name) >= least, f"--{name} is {getattr(args, name)}: give at least {least}"
    for name in ("temperature", "repetition_penalty"):
        value = getattr(args, name)
        mend = "give a number above 0" + (", or --greedy for no randomness" if name == "temperature" else "; 1 is none")
        yield 0 < value < math.inf or (name == "temperature" and args.greedy), f"--{name} is {value:g}: {mend}"
    yield 0 < args.top_p <= 1, f"--top_p is {args.top_p:g}: give a share above 0, and at most 1 (no limit)"
    yield not args.greedy or args.num_samples <= 1, "--greedy writes one text a prompt: leave it or --num_samples out"


def find_model(checkpoint: Path) -> Path:
    """The model folder of a run, or the folder itself if it is one."""
    if (checkpoint / "model").is_dir():
        return checkpoint / "model"
    if (checkpoint / "config.json").is_file() or (checkpoint / "model.safetensors").is_file():
        return checkpoint
    if not checkpoint.exists():
        raise UserError(f"{checkpoint} does not exist: give --checkpoint the folder of a run, such as runs/NAME")
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint} is a file: give --checkpoint the folder that it is in")
    for run in checkpoint.parents[:2]:
        if (run / "model" / "config.json").is_file() and (run / "run.json").is_file():
            raise UserError(f"{checkpoint} holds no model: give --checkpoint {run}, the run that it is in")
    raise UserError(
        f"{checkpoint} has no model/ yet, which training writes when it first evaluates: wait for that, "
        "or give another run"
    )


@dataclass(frozen=True)
class Prompt:
    """A text to continue, and where it came from, for messages."""

    text: str
    source: str


def read_prompts(args: argparse.Namespace) -> list[Prompt]:
    """All prompts of --prompt, --prompts or a pipe; UserError if there is none."""
    if args.prompt is not None:
        return [Prompt(args.prompt, "--prompt")]
    source = str(args.prompts) if args.prompts else "standard input"
    try:
        if args.prompts is None and sys.stdin is None:
            raise UserError("nothing to read prompts from: give --prompt TEXT or --prompts FILE")
        data = args.prompts.read_bytes() if args.prompts else sys.stdin.buffer.read()
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}): give --prompts a file of prompts") from None
    read = _read_json if source.endswith(".jsonl") else _read_text
    prompts = [
        read(line, f"{source}:{number}")
        for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
        if line.strip()
    ]
    if not prompts:
        raise UserError(f"{source} holds no prompt: write one a line")
    return prompts


def _read_text(line: bytes, source: str) -> Prompt:
    try:
        return Prompt(line.removesuffix(b"\r").decode("utf-8"), source)
    except UnicodeDecodeError:
        raise UserError(f"{source} is not UTF-8: convert the text, with iconv for instance") from None


def _read_json(line: bytes, source: str) -> Prompt:
    try:
        record = json.loads(_read_text(line, source).text)
    except (ValueError, RecursionError):
        raise UserError(f'{source} is broken JSON: write an object a line, such as {{"prompt": "从前"}}') from None
    text = record.get("prompt", record.get("text")) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UserError(f'{source} has no text under "prompt" or "text"')
    return Prompt(text, source)


@dataclass(frozen=True)
class Answer:
    """A continuation; `tokens` counts what it is made of, without the end mark."""

    text: str
    tokens: int
    finish: str


class Writer:
    """A loaded model that answers prompts as the arguments say, and prints the answers."""

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, args: argparse.Namespace) -> None:
        self.model, self.tokenizer, self.args = model, tokenizer, args
        self.seed = args.seed if args.seed is not None else int.from_bytes(os.urandom(4), "little")
        self.rows = 0

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's ids after a begin mark. UserError if no room is left for the new tokens."""
        begin, room = self.model.config.bos_token_id, self.model.config.max_position_embeddings
        try:
            ids = self.tokenizer.encode(prompt.text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):
            # half a surrogate pair: from JSON, or Python's stand-in for a byte that it could not decode
            raise UserError(f"{prompt.source} holds something that is no character: write it in UTF-8") from None
        ids = ids if ids[:1] == [begin] else [begin, *ids]
        if len(ids) + self.args.max_new_tokens > room:
            raise UserError(
                f"{prompt.source} has {len(ids):,} tokens, and with --max_new_tokens "
                f"{self.args.max_new_tokens:,} the model's {room:,} positions are too few: shorten one"
            )
        return ids

    def answer(self, prompts: list[Prompt]) -> None:
        """Write and print `num_samples` texts for each prompt."""
        samples = [(prompt, ids) for prompt in prompts for ids in [self.encode(prompt)] * self.args.num_samples]
        if len(samples) == 1 and not self.args.json:
            self._stream(*samples[0])
            return
        size = self.args.batch_size
        for first in range(0, len(samples), size):
            batch = samples[first : first + size]
            answers = self._generate([ids for _, ids in batch])
            for index, ((prompt, _), answer) in enumerate(zip(batch, answers, strict=True), start=first):
                self._print(prompt, answer, index % self.args.num_samples)

    def _generate(self, rows: list[list[int]], streamer=None) -> list[Answer]:
        from model import pad_left, until_eos

        args, config = self.args, self.model.config
        ids, mask = pad_left(rows, config.pad_token_id)
        out = self.model.generate(
            ids,
            mask,
            max_new_tokens=args.max_new_tokens,
            do_sample=not args.greedy,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            repetition_penalty=args.repetition_penalty,
            no_repeat_ngram_size=args.no_repeat_ngram,
            seed=self.seed,
            first_row=self.rows,
            streamer=streamer,
        )
        self.rows += len(rows)
        ended = (until_eos(row, config.eos_token_id) for row in out[:, ids.shape[1] :].tolist())
        return [Answer(self.tokenizer.decode(new), len(new), "end_mark" if end else "length") for new, end in ended]

    def _stream(self, prompt: Prompt, ids: list[int]) -> None:
        """One text, printed while it is written."""
        from model import TextStream

        if prompt.source != TERMINAL:
            print(_quoted(prompt.text), flush=True)
        text, end = TextStream(self.tokenizer), self.model.config.eos_token_id
        self._generate([ids], lambda new: print(text.push(new[0]) if new[0] != end else "", end="", flush=True))
        print(text.flush())

    def _print(self, prompt: Prompt, answer: Answer, sample: int) -> None:
        """A block a prompt: the prompt behind "> ", its texts below, an empty line."""
        several = self.args.num_samples > 1
        if self.args.json:
            record = {"prompt": prompt.text, "text": answer.text, "tokens": answer.tokens, "finish": answer.finish}
            print(json.dumps(record, ensure_ascii=False), flush=True)
            return
        if sample == 0:
            print(_quoted(prompt.text))
        print(f"[{sample + 1}] {answer.text}" if several else answer.text)
        if sample == self.args.num_samples - 1:
            print(flush=True)

    def converse(self) -> None:
        """Prompts from the terminal until an empty line or Ctrl-D."""
        while text := _ask():
            try:
                self.answer([Prompt(text, TERMINAL)])
            except UserError as error:
                print(error, file=sys.stderr)


def _quoted(text: str) -> str:
    return "> " + text.replace("\n", "\n> ")


def _ask() -> str:
    try:
        return input("> ")
    except EOFError:
        print()
        return ""
    except UnicodeDecodeError:
        raise UserError("the terminal sends text that is not UTF-8: set it to UTF-8") from None


def load(folder: Path, args: argparse.Namespace) -> Writer:
    """Read the model folder. UserError if something is missing or does not fit together."""
    import torch

    from corpus.tokenizer import load_tokenizer, vocab_size
    from model import load_model

    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        raise UserError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from None
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder / 'tokenizer.json'} is missing: copy it there from the folder of the training data")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    # half precision is slow on a CPU
    model = load_model(folder, device=device, dtype=torch.float32 if device == "cpu" else None)
    if vocab_size(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"{folder / 'tokenizer.json'} has {vocab_size(tokenizer):,} entries and the model "
            f"{model.config.vocab_size:,}: take the tokenizer that the model was trained with"
        )
    return Writer(model, tokenizer, args)


def run(args: argparse.Namespace) -> None:
    folder = find_model(args.checkpoint)
    interactive = args.prompt is None and args.prompts is None and sys.stdin is not None and sys.stdin.isatty()
    prompts = [] if interactive else read_prompts(args)

    from model import GenerationError, ModelConfigError

    try:
        writer = load(folder, args)
        if interactive:
            writer.converse()
        else:
            writer.answer(prompts)
    except (GenerationError, ModelConfigError) as error:
        raise UserError(str(error)) from error


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, 2 for wrong input, 130 after Ctrl-C, 1 if the text could not be written."""
    return run_script(lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
