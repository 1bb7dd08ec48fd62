"""Hand a trained model to the programs that people run models with, and check that it is the same model there.

python export.py --checkpoint runs/NAME --hf                                # complete model/: tokenizer, template, card
python export.py --checkpoint runs/NAME --gguf NAME.gguf --type q8_0        # llama.cpp, LM Studio; Ollama's Modelfile
python export.py --checkpoint runs/NAME --verify runs/NAME NAME.gguf --data text.jsonl
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.command_line import Parser, positive, run_script
from common.errors import UserError
from common.model_folder import find_model
from exporting.quantization import TYPES


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the flags; raise UserError for a wrong one."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", type=Path, help="folder of a run, or of a model; for --verify, the first folder is the default")
    add("--hf", action="store_true", help="bring the Hugging Face folder up to date, in place")
    add("--diagnosis", type=Path, metavar="FILE", help="--json of diagnose.py, for sampling settings and model card")
    add("--gguf", type=Path, metavar="FILE", help="write a GGUF file, and an Ollama Modelfile beside it")
    add("--type", choices=TYPES, default="f16", help="how the GGUF file stores matrices (%(default)s)")
    verify_help = "compare folders and GGUF files with --checkpoint on the texts of --data"
    add("--verify", type=Path, nargs="+", metavar="PATH", help=verify_help)
    add("--data", type=Path, metavar="FILE", help="JSON Lines of documents for --verify")
    add("--documents", type=positive, default=200, help="at most so many documents of --data (%(default)s)")
    add("--document_tokens", type=positive, default=1024, help="of a longer document, the beginning (%(default)s)")
    args = parser.parse_args(argv)
    if not (args.hf or args.gguf or args.verify):
        raise UserError("nothing to do: give --hf, --gguf FILE or --verify PATH ... --data FILE")
    if args.diagnosis and not args.hf:
        raise UserError("--diagnosis goes with --hf, which writes what it says into the folder: give both")
    if args.data and not args.verify:
        raise UserError("--data goes with --verify PATH ...: say what is to be compared, or leave it out")
    if args.verify and not args.data:
        raise UserError("--verify needs --data FILE: texts to compare on, which the model need not know")
    if not args.checkpoint:
        folders = [path for path in args.verify or () if path.is_dir()]
        if args.hf or args.gguf or not folders:
            raise UserError("give --checkpoint the folder of the trained model, such as runs/NAME")
        args.checkpoint = folders[0]
    return args


def run(args: argparse.Namespace) -> bool:
    """Do what the flags ask for, in their order; return whether all that was verified is the trained model."""
    folder = find_model(args.checkpoint)
    # imported here, so that wrong arguments are reported without waiting for torch
    if args.hf:
        from exporting.hugging_face import complete

        for line in complete(folder, args.diagnosis):
            print(line)
    if args.gguf:
        from exporting.gguf_file import write_gguf

        for line in write_gguf(folder, args.gguf, args.type, args.checkpoint.resolve().name):
            print(line)
    if not args.verify:
        return True
    from exporting.verification.comparison import verify

    limits = {"most_documents": args.documents, "most_tokens": args.document_tokens}
    return verify(folder, args.verify, args.data, **limits, say=lambda line: print(line, flush=True))


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, 1 if something is not the trained model, 2 for wrong input, 130 after Ctrl-C."""
    same: list[bool] = []
    status = run_script(lambda: same.append(run(parse_arguments(argv))))
    return status or int(not all(same))


if __name__ == "__main__":
    sys.exit(main())
