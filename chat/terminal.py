"""`generate.py --chat`: several turns in a terminal, or a conversation a line through a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from chat.conversation import Conversation, TooLong, fitted_prompt
from common.console import spell_out, takes_any_character
from common.errors import UserError
from corpus.conversations.encoding import ConversationEncoder
from corpus.conversations.records import ASSISTANT, USER
from model.inference.prompts import PromptTokens
from model.inference.text import TextGenerator

COMMANDS = "/reset begins anew, /undo takes back a question, /save FILE keeps the conversation, /exit or Ctrl-D ends"
END = ("/exit", "/quit")


class Chat:
    """A model that answers in conversations."""

    def __init__(self, generator: TextGenerator, system: str | None) -> None:
        self.generator, self.system = generator, system
        self.encoder = ConversationEncoder(generator.tokenizer)
        self.positions = generator.model.config.max_position_embeddings

    def prompt(self, conversation: Conversation) -> tuple[PromptTokens, int]:
        """Return the prompt for the next answer, and how many of the oldest turns it leaves out."""
        ids, left_out = fitted_prompt(self.encoder, conversation, self.positions, self.generator.max_new_tokens)
        return PromptTokens(ids), left_out

    # --- a terminal ---------------------------------------------------------------------------------------------------

    def talk(self) -> None:
        """Answer what is typed until the user ends it."""
        with suppress(ImportError):
            import readline  # noqa: F401  (input() then edits lines by characters, not by bytes)
        conversation = Conversation(self.system)
        print(COMMANDS, file=sys.stderr)
        for line in _typed():
            if line.startswith("/"):
                if line in END:
                    return
                self._obey(line, conversation)
            elif line:
                self._answer(line, conversation)

    def _answer(self, question: str, conversation: Conversation) -> None:
        conversation.say(USER, question)
        try:
            prompt, left_out = self.prompt(conversation)
        except TooLong as error:
            conversation.undo()
            print(error, file=sys.stderr)
            return
        if left_out:
            print(f"(the {left_out} oldest turns no longer fit and are left out)", file=sys.stderr)
        pieces: list[str] = []

        def show(piece: str) -> None:
            pieces.append(piece)
            print(spell_out(piece), end="", flush=True)

        try:
            self.generator.stream(prompt, show)
        except KeyboardInterrupt:
            print(" (broken off)", end="", file=sys.stderr)
        print()
        conversation.say(ASSISTANT, "".join(pieces))

    def _obey(self, line: str, conversation: Conversation) -> None:
        command, _, rest = line.partition(" ")
        if command == "/reset":
            conversation.reset()
            print("(begun anew)", file=sys.stderr)
        elif command == "/undo":
            print("(taken back)" if conversation.undo() else "(nothing to take back)", file=sys.stderr)
        elif command == "/save" and rest.strip():
            path = Path(rest.strip())
            try:
                conversation.save(path)
                print(f"(added to {path}, a line that prepare.py reads)", file=sys.stderr)
            except UserError as error:
                print(error, file=sys.stderr)
        else:
            print(COMMANDS, file=sys.stderr)

    # --- a pipe -------------------------------------------------------------------------------------------------------

    def answer_lines(self, lines: TextIO) -> None:
        """Answer a conversation a line, and print it with the answer, "tokens", "finish" and "left_out"."""
        for number, line in enumerate(lines, 1):
            if line.strip():
                print(self._answered(line, f"standard input:{number}"), flush=True)

    def _answered(self, line: str, source: str) -> str:
        try:
            conversation = self._read(line)
            prompt, left_out = self.prompt(conversation)
        except TooLong as error:
            raise UserError(f"{source}: {error}") from None
        except ValueError as error:
            raise UserError(f'{source}: {error}; write {{"messages": [...]}} or {{"prompt": "..."}} a line') from None
        completion = next(self.generator.complete([prompt], 1))
        conversation.say(ASSISTANT, completion.text)
        record = {"messages": conversation.messages(), "tokens": completion.tokens, "finish": completion.finish}
        ascii_only = not takes_any_character(sys.stdout)
        return spell_out(json.dumps(record | {"left_out": left_out}, ensure_ascii=ascii_only))

    def _read(self, line: str) -> Conversation:
        """Return the conversation of a line; ValueError says what is wrong with it."""
        try:
            record: Any = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError("broken JSON") from None
        if isinstance(record, dict) and isinstance(record.get("prompt"), str):
            record = {"messages": [{"role": USER, "content": record["prompt"]}]}
        if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
            raise ValueError("no conversation")
        conversation = Conversation.of(record["messages"])
        if self.system and conversation.turns[0].role == USER:
            turns = conversation.turns
            conversation = Conversation(self.system)
            conversation.turns += turns
        return conversation


def _typed() -> Iterator[str]:
    """Yield the lines that are typed, without spaces around them; Ctrl-C drops a line, Ctrl-D ends."""
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
        except UnicodeDecodeError:
            raise UserError("the terminal sends text that is not UTF-8: set it to UTF-8") from None
