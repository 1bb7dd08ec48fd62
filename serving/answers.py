"""What is answered, in the form of OpenAI's API: whole answers, and the events of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Any

from serving.requests import ApiError
from serving.writer import Candidate, Piece


@dataclass(frozen=True)
class Answer:
    """What all parts of one answer say.

    `left_out` counts the oldest turns of a conversation that no longer fit, a field that OpenAI's API does not have.
    """

    chat: bool
    model: str
    prompt_tokens: int
    left_out: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: uuid.uuid4().hex)

    async def whole(self, pieces: AsyncIterator[Piece]) -> dict[str, Any]:
        """Return the answer once all is written."""
        total = Piece()
        async for piece in pieces:
            total.text += piece.text
            total.tokens += piece.tokens
            total.scored += piece.scored
            total.finish = piece.finish
        text = {"message": {"role": "assistant", "content": total.text}} if self.chat else {"text": total.text}
        return self._part("", [self._choice(text, total)]) | self._usage(total.tokens)

    async def events(self, pieces: AsyncIterator[Piece], with_usage: bool) -> AsyncIterator[str]:
        """Yield server-sent events; an error is the last one if there is one."""
        tokens, role = 0, {"role": "assistant"}
        try:
            async for piece in pieces:
                tokens += piece.tokens
                text = {"delta": role | {"content": piece.text}} if self.chat else {"text": piece.text}
                role = {}
                yield _event(self._part(".chunk", [self._choice(text, piece)]))
            if with_usage:
                yield _event(self._part(".chunk", []) | self._usage(tokens))
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _event(error.content)

    def _part(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.number}",
            "object": f"chat.completion{kind}" if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **({"left_out": self.left_out} if self.left_out else {}),
        }

    def _choice(self, text: dict[str, Any], piece: Piece) -> dict[str, Any]:
        logprobs = (_chat_logprobs if self.chat else _text_logprobs)(piece) if piece.scored else None
        return {"index": 0, **text, "logprobs": logprobs, "finish_reason": piece.finish}

    def _usage(self, tokens: int) -> dict[str, Any]:
        total = self.prompt_tokens + tokens
        return {
            "usage": {"prompt_tokens": self.prompt_tokens, "completion_tokens": tokens, "total_tokens": total},
        }


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _chat_logprobs(piece: Piece) -> dict[str, Any]:
    return {"content": [asdict(token) | {"top_logprobs": list(map(asdict, top))} for token, top in piece.scored]}


def _name(candidate: Candidate) -> str:
    """Return a token's text, or as OpenAI does the bytes of one that is part of a character."""
    if "\ufffd" not in candidate.token:
        return candidate.token
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in candidate.bytes)


def _text_logprobs(piece: Piece) -> dict[str, Any]:
    return {
        "tokens": [_name(token) for token, _ in piece.scored],
        "token_logprobs": [token.logprob for token, _ in piece.scored],
        "top_logprobs": [{_name(candidate): candidate.logprob for candidate in top} for _, top in piece.scored],
    }
