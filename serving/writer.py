"""Writes texts in worker threads, a limited number at a time, and hands out each piece as soon as it is certain."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from corpus.tokenizer import bytes_to_characters, is_byte_level
from model import CausalLM, GenerationError, TextStream
from model.inference.prompts import PromptTokens
from serving.requests import ApiError

MOST_WAITING = 100  # requests, beside those that are written
LEAST_LOGPROB = -9999.0  # JSON has no infinity


@dataclass(frozen=True)
class Job:
    """A text to write: `top_logprobs` likeliest tokens are named beside each one, or None for no probabilities."""

    prompt: PromptTokens
    max_new_tokens: int
    sampling: dict[str, Any]
    seed: int | None
    stops: tuple[str, ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Candidate:
    """A token, and the natural logarithm of the probability that the model gave it, before any sampling parameter."""

    token: str
    logprob: float
    bytes: list[int]


@dataclass
class Piece:
    """Text that has become certain, and its tokens; the last piece of a text has a `finish`, "stop" or "length".

    `scored` has each token with the likeliest ones in its place, if that was asked for.
    """

    text: str = ""
    tokens: int = 0
    scored: list[tuple[Candidate, list[Candidate]]] = field(default_factory=list)
    finish: str | None = None


class _Ended(Exception):
    """A text that is over before its EOS; the argument is its finish, None if nobody wants it any more."""


class Writer:
    """A model, its tokenizer and the places at which it writes.

    `parallel` texts are written at once and MOST_WAITING more wait; each is given `timeout` seconds for either, and one
    that is then unfinished ends with "length".
    """

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, *, parallel: int, timeout: float) -> None:
        self.model, self.tokenizer, self.timeout = model, tokenizer, timeout
        self._places = threading.BoundedSemaphore(parallel + MOST_WAITING)
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="writer")
        self._closing = threading.Event()
        self._bytes = {c: byte for byte, c in enumerate(bytes_to_characters())} if is_byte_level(tokenizer) else {}

    def close(self) -> None:
        """Break off all texts."""
        self._closing.set()
        self._threads.shutdown(cancel_futures=True)

    async def write(self, job: Job) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of a text; closing the generator breaks it off and frees its place.

        Raises ApiError if all places are taken, or if the model's output is not finite.
        """
        if not self._places.acquire(blocking=False):
            raise ApiError(429, "too many requests wait already: try again later", kind="rate_limit_error")
        loop, gone = asyncio.get_running_loop(), threading.Event()
        pieces: asyncio.Queue[Piece | ApiError | None] = asyncio.Queue()

        def put(item: Piece | ApiError | None) -> None:
            if not gone.is_set():
                loop.call_soon_threadsafe(pieces.put_nowait, item)

        work = self._threads.submit(self._work, job, time.monotonic(), gone, put)
        work.add_done_callback(lambda _: self._places.release())
        try:
            while (item := await pieces.get()) is not None:
                if isinstance(item, ApiError):
                    raise item
                yield item
        finally:
            gone.set()
            work.cancel()

    def _work(
        self, job: Job, asked: float, gone: threading.Event, put: Callable[[Piece | ApiError | None], None]
    ) -> None:
        started = time.monotonic()

        def check() -> None:
            if gone.is_set() or self._closing.is_set():
                raise _Ended(None)
            if time.monotonic() - started > self.timeout:
                raise _Ended("length")

        try:
            if started - asked > self.timeout:
                raise ApiError(503, f"waited {self.timeout:g} s for a place: try again later", kind="server_error")
            _Text(self, job, check, put).write()
            put(None)
        except ApiError as error:
            put(error)
        except GenerationError as error:
            put(ApiError(500, str(error), kind="server_error"))
        except Exception:
            logging.getLogger(__name__).exception("a text could not be written")
            put(ApiError(500, "a fault of this server, whose terminal says more", kind="server_error"))

    def candidate(self, token: int, logprob: float) -> Candidate:
        """Return a token with its text and bytes; of a part of a character only the bytes tell."""
        name, text = self.tokenizer.id_to_token(token) or "", self.tokenizer.decode([token], skip_special_tokens=False)
        known = bool(name) and all(c in self._bytes for c in name)
        return Candidate(
            text, max(logprob, LEAST_LOGPROB), [self._bytes[c] for c in name] if known else [*text.encode()]
        )


class _Text:
    """One text while it is written; `check` raises _Ended when it has to end."""

    def __init__(self, writer: Writer, job: Job, check: Callable[[], None], put: Callable[[Piece], None]) -> None:
        self.writer, self.job, self.check, self.put = writer, job, check, put
        self.stream = TextStream(writer.tokenizer)
        self.held = job.prompt.held  # of the prompt, and not of the answer
        self.piece = Piece()

    def write(self) -> None:
        """Put all pieces, the last with its finish."""
        model, job = self.writer.model, self.job
        try:
            self.check()
            ids = model.generate(
                torch.tensor([job.prompt.ids]),
                max_new_tokens=job.max_new_tokens,
                seed=job.seed,
                first_tokens=[job.prompt.first],
                streamer=self._push,
                **job.sampling,
            )
            self._add(self.stream.flush())
            self._put("stop" if int(ids[0, -1]) == model.config.eos_token_id else "length")
        except _Ended as end:
            if end.args[0]:
                self._put(end.args[0])

    def _push(self, tokens: list[int], logits_BV: Tensor) -> None:
        self.check()
        if tokens[0] == self.writer.model.config.eos_token_id:
            return
        self.piece.tokens += 1
        if self.job.top_logprobs is not None:
            self.piece.scored.append(self._scored(tokens[0], logits_BV[0], self.job.top_logprobs))
        held, self.held = self.held, ""
        self._add(self.stream.push(tokens[0]).removeprefix(held))
        if self.piece.text and not any(self._may_begin(stop) for stop in self.job.stops):
            self._put(None)

    def _scored(self, token: int, logits_V: Tensor, count: int) -> tuple[Candidate, list[Candidate]]:
        logprobs_V = logits_V.log_softmax(-1)
        best = logprobs_V.topk(min(count, len(logprobs_V)))
        likeliest = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        candidate = self.writer.candidate
        return candidate(token, float(logprobs_V[token])), [candidate(*each) for each in likeliest]

    def _add(self, text: str) -> None:
        """Add text to the piece that is being made; it ends before a stop."""
        self.piece.text += text
        places = [place for stop in self.job.stops if (place := self.piece.text.find(stop)) >= 0]
        if places:
            self.piece.text = self.piece.text[: min(places)]
            raise _Ended("stop")

    def _may_begin(self, stop: str) -> bool:
        return any(self.piece.text.endswith(stop[:length]) for length in range(1, len(stop)))

    def _put(self, finish: str | None) -> None:
        self.piece.finish = finish
        self.put(self.piece)
        self.piece = Piece()
