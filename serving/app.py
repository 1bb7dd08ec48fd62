"""The web application: OpenAI's routes for one model, and the page to talk to it."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chat.conversation import Conversation, TooLong, fitted_prompt
from common.errors import UserError
from corpus.conversations.encoding import ConversationEncoder
from model.inference.prompts import PromptEncoder, PromptTokens
from serving.answers import Answer
from serving.requests import MOST_BYTES, ApiError, ChatRequest, TextRequest, validation_error
from serving.writer import Job, Piece, Writer

T = TypeVar("T")
PAGE = Path(__file__).with_name("page.html")
CHAT_TOKENS, TEXT_TOKENS = 256, 50  # new ones, if a request does not say how many
CLIENT_GONE = 499  # as nginx calls it; nobody sees it
_SECURITY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"


@dataclass(frozen=True)
class Settings:
    """What a server is called, how much it writes, and who may ask: `hosts` and `key` are not checked if None."""

    name: str
    max_new_tokens: int
    key: str | None = None
    hosts: frozenset[str] | None = None


def create_app(writer: Writer, prompts: PromptEncoder, settings: Settings) -> FastAPI:
    """Return the application; it closes the writer when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        writer.close()

    app = FastAPI(title="bufudu", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, settings=settings)
    for kind, handler in ((ApiError, _api_error), (RequestValidationError, _invalid), (HTTPException, _http_error)):
        app.add_exception_handler(kind, handler)
    prepared = Preparation(writer, prompts, settings)
    listed = {"id": settings.name, "object": "model", "created": int(time.time()), "owned_by": "bufudu"}

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": _SECURITY})

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [listed]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        prepared.check_model(name)
        return listed

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _respond(request, body, writer, *await run_in_threadpool(prepared.chat, body))

    @app.post("/v1/completions")
    async def text(body: TextRequest, request: Request) -> Response:
        return await _respond(request, body, writer, *await run_in_threadpool(prepared.text, body))

    return app


class Preparation:
    """Turns a request into a job, or raises ApiError."""

    def __init__(self, writer: Writer, prompts: PromptEncoder, settings: Settings) -> None:
        self.prompts, self.settings = prompts, settings
        self.conversations = ConversationEncoder(writer.tokenizer)
        self.positions, self.bos_id = writer.model.config.max_position_embeddings, writer.model.config.bos_token_id

    def check_model(self, name: str | None) -> None:
        """Raise ApiError if another model is asked for."""
        if name not in (None, self.settings.name):
            message = f"there is no model {name!r} here, only {self.settings.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def chat(self, body: ChatRequest) -> tuple[Answer, Job]:
        """Return the answer to a conversation, and what is to be written for it."""
        self.check_model(body.model)
        new_tokens = self._new_tokens(body.max_completion_tokens or body.max_tokens, CHAT_TOKENS)
        try:
            conversation = Conversation.of(message.turn() for message in body.messages)
            ids, left_out = fitted_prompt(self.conversations, conversation, self.positions, new_tokens)
        except TooLong as error:
            raise ApiError(400, str(error), param="messages", code="context_length_exceeded") from None
        except (UserError, ValueError) as error:
            raise ApiError(400, str(error), param="messages") from None
        top = body.top_logprobs if body.logprobs else None
        job = Job(PromptTokens(ids), new_tokens, body.sampling(), body.seed, body.stops, top)
        return Answer(True, self.settings.name, len(ids), left_out), job

    def text(self, body: TextRequest) -> tuple[Answer, Job]:
        """Return the answer to a text that is to be continued, and what is to be written for it."""
        self.check_model(body.model)
        new_tokens = self._new_tokens(body.max_tokens, TEXT_TOKENS)
        prompt = self.prompts.encode_behind(self.bos_id, body.prompt)
        if len(prompt.ids) + new_tokens > self.positions:
            message = (
                f"the prompt has {len(prompt.ids):,} tokens, and with {new_tokens:,} new ones the model's "
                f"{self.positions:,} positions are too few: shorten one"
            )
            raise ApiError(400, message, param="prompt", code="context_length_exceeded")
        job = Job(prompt, new_tokens, body.sampling(), body.seed, body.stops, body.logprobs)
        return Answer(False, self.settings.name, len(prompt.ids)), job

    def _new_tokens(self, asked: int | None, usual: int) -> int:
        limit = min(self.settings.max_new_tokens, self.positions - 1)
        if asked and asked > limit:
            raise ApiError(400, f"max_tokens is {asked:,}, and {limit:,} is the most here", param="max_tokens")
        return asked or min(usual, limit, self.positions // 2)


async def _respond(
    request: Request, body: ChatRequest | TextRequest, writer: Writer, answer: Answer, job: Job
) -> Response:
    pieces = writer.write(job)
    if not body.stream:
        return JSONResponse(await _unless_gone(request, answer.whole(pieces)))
    first = await _unless_gone(request, anext(pieces))  # what is wrong by then has a status of its own

    async def all_pieces() -> AsyncIterator[Piece]:
        async with aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    events = answer.events(all_pieces(), body.stream_options.include_usage)
    return StreamingResponse(events, media_type="text/event-stream")


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """Await the answer, and break it off if the client hangs up."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, hung_up = asyncio.ensure_future(answer), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({work, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise HTTPException(CLIENT_GONE)
        return work.result()
    finally:
        work.cancel()
        hung_up.cancel()


async def _api_error(_: Request, error: Any) -> JSONResponse:
    return JSONResponse(error.content, error.status)


async def _invalid(request: Request, error: Any) -> JSONResponse:
    return await _api_error(request, validation_error(error.errors()))


async def _http_error(request: Request, error: Any) -> JSONResponse:
    return await _api_error(request, ApiError(error.status_code, str(error.detail)))


class Guard:
    """Refuses who has not the key or asks for another host, and bodies that are too large."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if error := self._refusal(scope["path"], headers):
            return await JSONResponse(error.content, error.status)(scope, receive, send)
        return await self.app(scope, _limited(receive), send)

    def _refusal(self, path: str, headers: dict[str, str]) -> ApiError | None:
        host = headers.get("host", "").rsplit(":", 1)[0]
        if self.settings.hosts is not None and host not in self.settings.hosts:
            # a web page elsewhere whose name leads here by now ("DNS rebinding")
            return ApiError(
                403, f"this server answers on {', '.join(sorted(self.settings.hosts))} alone; --host changes it"
            )
        given = headers.get("authorization", "").removeprefix("Bearer ").encode()
        if self.settings.key and path != "/" and not hmac.compare_digest(given, self.settings.key.encode()):
            message = "the key is missing or wrong: send the header Authorization: Bearer KEY"
            return ApiError(401, message, code="invalid_api_key")
        return None


def _limited(receive: Receive) -> Callable[[], Awaitable[Message]]:
    """Return `receive` with an error once a body has more than MOST_BYTES."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MOST_BYTES:
            while message.get("more_body"):  # who still sends does not read the answer
                message = await receive()
            raise HTTPException(413, f"the body has more than {MOST_BYTES // 1024} KiB: shorten it")
        return message

    return limited
