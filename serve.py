"""Serve a trained model: an OpenAI-compatible API, and a page to talk to it in a browser.

python serve.py --checkpoint runs/NAME                         # http://127.0.0.1:8000
python serve.py --checkpoint runs/NAME --host 0.0.0.0          # for other machines, with a key
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import secrets
import socket
import sys
from contextlib import suppress
from pathlib import Path

from common.command_line import Parser, duration, positive, run_script, whole
from common.errors import UserError
from common.model_folder import find_model
from common.training_text import TrainingText

MISSING = "the server needs fastapi and uvicorn: pip install -r requirements-serve.txt"
KEY = "BUFUDU_API_KEY"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the flags; raise UserError for a wrong one."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    model_help = "run folder, or a folder with config.json, model.safetensors and tokenizer.json"
    add("--checkpoint", type=Path, required=True, help=model_help)
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: for other machines too (%(default)s)")
    add("--port", type=whole, default=8000, help="0: any that is free (%(default)s)")
    add("--key", help=f"what clients have to send; also from {KEY}; made up if --host is not this machine alone")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (%(default)s)")
    add("--max_new_tokens", type=positive, default=1024, help="the most that a request may ask for (%(default)s)")
    add("--parallel", type=positive, default=2, help="requests written at the same time (%(default)s)")
    add(
        "--timeout", type=duration, default=120.0, help="longest wait for a request, and longest writing (%(default)gs)"
    )
    args = parser.parse_args(argv)
    if args.port > 65535:
        raise UserError(f"--port {args.port}: give at most 65535")
    given = args.key or os.environ.get(KEY)
    args.key = given or (None if _this_machine_alone(args.host) else secrets.token_urlsafe(18))
    args.made_up = args.key != given
    return args


def _this_machine_alone(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(args: argparse.Namespace) -> None:
    """Load the model and serve it until Ctrl-C."""
    folder = find_model(args.checkpoint)
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError:
        raise UserError(MISSING) from None
    from chat.checkpoint import load_checkpoint
    from model.inference.prompts import PromptEncoder
    from serving.app import Settings, create_app
    from serving.writer import Writer

    listening = _listen(args.host, args.port)
    model, tokenizer = load_checkpoint(folder, args.device)
    run_folder = folder.resolve().parent if folder.name == "model" else folder.resolve()
    settings = Settings(
        run_folder.name,
        args.max_new_tokens,
        args.key,
        frozenset({"127.0.0.1", "localhost", "[::1]", args.host}) if _this_machine_alone(args.host) else None,
    )
    writer = Writer(model, tokenizer, parallel=args.parallel, timeout=args.timeout)
    app = create_app(writer, PromptEncoder(tokenizer, TrainingText.read(folder)), settings)
    host, port = listening.getsockname()[:2]
    print(f"{settings.name} at http://{f'[{host}]' if ':' in host else host}:{port}; Ctrl-C ends it", flush=True)
    if args.made_up:
        print(f"key: {args.key}", flush=True)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
    with suppress(KeyboardInterrupt):  # which uvicorn raises again once it has ended
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(f"--host {host} --port {port} cannot be listened at ({error.strerror}): give another") from None


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0 after Ctrl-C, 2 for wrong input."""
    return run_script(lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
