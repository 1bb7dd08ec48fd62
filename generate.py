"""Write text with a trained model.

python generate.py --checkpoint runs/NAME                      # interactive; an empty line or Ctrl-D ends it
python generate.py --checkpoint runs/NAME --prompt 从前有座山
python generate.py --checkpoint runs/NAME --prompts prompts.txt --greedy --json > out.jsonl
python generate.py --checkpoint runs/NAME --chat               # talk to a model that was fine-tuned on conversations
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from common.command_line import Parser, amount, at_least_zero, positive, run_script, whole
from common.console import spell_out, takes_any_character
from common.errors import UserError
from common.model_folder import find_model
from common.training_text import TrainingText

if TYPE_CHECKING:  # torch is imported once the arguments are known to be good
    from model.inference.prompts import Prompt
    from model.inference.text import Completion, TextGenerator

UNKNOWN_SHOWN = 20  # characters
TYPED = "the prompt"  # as the source of a prompt that was typed, and so is on the screen already


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the flags; raise UserError for a wrong one."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    model_help = "run folder, or a folder with config.json, model.safetensors and tokenizer.json"
    add("--checkpoint", type=Path, required=True, help=model_help)
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", help="text to continue; '' lets the model begin")
    prompts.add_argument("--prompts", type=Path, help='file with a prompt a line, or .jsonl with "prompt" or "text"')
    prompts.add_argument("--chat", action="store_true", help="answer in turns; from a pipe, a conversation a line")
    add("--system", metavar="TEXT", help="with --chat: what the model is told before the conversation")
    add("--max_new_tokens", type=positive, help="at most so many tokens a text (50; with --chat 256)")
    add("--temperature", type=at_least_zero, default=1.0, help="below 1 safer, above 1 wilder (%(default)s)")
    add("--top_k", type=whole, default=50, help="choose among the k best tokens; 0: all (%(default)s)")
    add("--top_p", type=amount, default=0.95, help="choose among the best tokens up to this probability (%(default)s)")
    penalty_help = "above 1, tokens that have occurred become less likely; 1: off (1.2; with --chat 1)"
    add("--repetition_penalty", type=amount, help=penalty_help)
    add("--greedy", action="store_true", help="always take the best token; no randomness")
    add("--no_repeat_ngram", type=whole, default=0, help="never write the same n tokens twice; 0: off (%(default)s)")
    add("--num_samples", type=positive, default=1, help="texts for each prompt (%(default)s)")
    add("--batch_size", type=positive, default=16, help="texts written at the same time (%(default)s)")
    add("--seed", type=int, help="makes the texts reproducible")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (%(default)s)")
    json_help = (
        'print {"prompt", "text", "tokens": number of new tokens, "finish": "end_mark" (EOS) or "length"} a line'
    )
    add("--json", action="store_true", help=json_help)
    args = parser.parse_args(argv)
    if args.temperature == 0 and not args.greedy:
        raise UserError("--temperature is 0: give a number above 0, or --greedy for no randomness")
    if args.top_p > 1:
        raise UserError(f"--top_p is {args.top_p:g}: give a probability above 0 and at most 1, which is no limit")
    if args.greedy and args.num_samples > 1:
        raise UserError("--greedy writes one text a prompt: leave it or --num_samples out")
    if args.chat and (args.json or args.num_samples > 1):
        raise UserError(
            "--chat answers once, in JSON where the input is no terminal: leave --json and --num_samples out"
        )
    if args.system is not None and not args.chat:
        raise UserError("--system goes with --chat: leave it out, or write it into the prompt")
    # An answer may be long, and has to use the words of its question.
    args.max_new_tokens = args.max_new_tokens or (256 if args.chat else 50)
    args.repetition_penalty = args.repetition_penalty or (1.0 if args.chat else 1.2)
    return args


def load(folder: Path, args: argparse.Namespace) -> TextGenerator:
    """Read the model folder; raise UserError if something is missing or does not fit together."""
    from chat.checkpoint import load_checkpoint
    from model.inference.text import TextGenerator

    model, tokenizer = load_checkpoint(folder, args.device)
    sampling = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "repetition_penalty")}
    sampling |= {"do_sample": not args.greedy, "no_repeat_ngram_size": args.no_repeat_ngram}
    known = TrainingText.read(folder)
    return TextGenerator(
        model, tokenizer, max_new_tokens=args.max_new_tokens, seed=args.seed, training_text=known, **sampling
    )


def answer(generator: TextGenerator, prompts: list[Prompt], args: argparse.Namespace) -> None:
    """Write and print `--num_samples` texts for each prompt."""
    for prompt in prompts:
        if unknown := generator.encoder.unknown_characters(prompt.text):
            print(
                f"{prompt.source}: the training text has no {'、'.join(unknown[:UNKNOWN_SHOWN])}"
                f"{' and others' if len(unknown) > UNKNOWN_SHOWN else ''}, so the model knows nothing of it",
                file=sys.stderr,
            )
    samples = [(prompt, ids) for prompt in prompts for ids in [generator.encode(prompt)] * args.num_samples]
    if len(samples) == 1 and not args.json:
        prompt, ids = samples[0]
        if prompt.source != TYPED:
            print(_quoted(prompt.text), flush=True)
        generator.stream(ids, lambda piece: print(spell_out(piece), end="", flush=True))
        print()
        return
    completions = generator.complete([ids for _, ids in samples], args.batch_size)
    for index, ((prompt, _), completion) in enumerate(zip(samples, completions, strict=True)):
        if args.json:
            record = {"prompt": prompt.text, **vars(completion)}
            print(spell_out(json.dumps(record, ensure_ascii=not takes_any_character(sys.stdout))), flush=True)
        else:
            _print_block(prompt, completion, index % args.num_samples + 1, args.num_samples)


def _print_block(prompt: Prompt, completion: Completion, number: int, last: int) -> None:
    """Print the prompt behind "> " before its first text, and an empty line after its last."""
    if number == 1:
        print(_quoted(prompt.text))
    print(spell_out(f"[{number}] {completion.text}" if last > 1 else completion.text))
    if number == last:
        print(flush=True)


def _quoted(text: str) -> str:
    return "> " + spell_out(text).replace("\n", "\n> ")


def _ask() -> str:
    try:
        return input("> ")
    except EOFError:
        print()
        return ""
    except UnicodeDecodeError:
        raise UserError("the terminal sends text that is not UTF-8: set it to UTF-8") from None


def run(args: argparse.Namespace) -> None:
    """Continue the prompts of the flags, of a file or of the terminal."""
    folder = find_model(args.checkpoint)

    from model import GenerationError
    from model.inference.prompts import Prompt, read_prompts

    typed = sys.stdin is not None and sys.stdin.isatty()
    if args.chat:
        return _chat(folder, args, typed)
    interactive = args.prompt is None and args.prompts is None and typed
    given = [Prompt(args.prompt, "--prompt")] if args.prompt is not None else []
    prompts = given or ([] if interactive else read_prompts(args.prompts))
    try:
        generator = load(folder, args)
        if not interactive:
            answer(generator, prompts, args)
        while interactive and (text := _ask()):
            try:
                answer(generator, [Prompt(text, TYPED)], args)
            except UserError as error:
                print(error, file=sys.stderr)
    except GenerationError as error:
        raise UserError(str(error)) from error


def _chat(folder: Path, args: argparse.Namespace, typed: bool) -> None:
    """Answer what is typed, or the conversations that standard input holds."""
    from chat.terminal import Chat
    from model import GenerationError

    if sys.stdin is None:
        raise UserError("--chat has nothing to read from: start it in a terminal, or give it JSON Lines")
    try:
        chat = Chat(load(folder, args), args.system)
        if typed:
            chat.talk()
        else:
            chat.answer_lines(sys.stdin)
    except UnicodeDecodeError:
        raise UserError("standard input is not UTF-8: convert the text, with iconv for instance") from None
    except GenerationError as error:
        raise UserError(str(error)) from error


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, 2 for wrong input, 130 after Ctrl-C, 1 if the text could not be written."""
    return run_script(lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
