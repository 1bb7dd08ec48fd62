"""What may be asked, as pydantic models of OpenAI's API, and the errors that it answers with.

Beside OpenAI's parameters there are those of other servers for open models: `top_k`, `repetition_penalty` and
`no_repeat_ngram_size`. A parameter that would change the answer and is not supported is an error; others are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_BYTES = 256 * 1024  # of the body of a request
MOST_MESSAGES, MOST_STOPS, MOST_TOP_LOGPROBS = 1000, 4, 20
_NOT_SUPPORTED = "tools functions logit_bias frequency_penalty presence_penalty echo suffix response_format n best_of"
_CHANGES_NOTHING = {"response_format": {"type": "text"}, "n": 1, "best_of": 1}


class ApiError(Exception):
    """An answer with an error: `status` is HTTP's, the other fields are those of OpenAI's "error" object."""

    def __init__(
        self, status: int, message: str, *, kind: str = "invalid_request_error", param: str = "", code: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        text = message.encode("utf-8", "replace").decode()  # it may quote half a surrogate pair
        self.content = {"error": {"message": text, "type": kind, "param": param or None, "code": code or None}}


def validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Return the answer to a body that does not fit: each problem with the place where it is."""
    if errors[0]["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {errors[0]['ctx']['error']}")
    places = [".".join(str(part) for part in error["loc"][1:])[:100] for error in errors[:5]]
    said = [error["msg"].removeprefix("Value error, ") for error in errors]  # pydantic's own words before ours
    problems = [f"{place}: {text}".removeprefix(": ") for place, text in zip(places, said, strict=False)]
    return ApiError(400, "; ".join(problems), param=places[0])


class StreamOptions(BaseModel):
    """What a stream says beside the text."""

    include_usage: bool = False


class Request(BaseModel):
    """What both kinds of request have."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(0.95, gt=0, le=1)
    top_k: int = Field(50, ge=0)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    no_repeat_ngram_size: int = Field(0, ge=0)
    seed: int | None = None
    stop: str | list[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, body: Any) -> Any:
        return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body

    @model_validator(mode="after")
    def _only_what_is_supported(self) -> Request:
        extra = self.model_extra or {}
        found = [
            name for name in _NOT_SUPPORTED.split() if extra.get(name) and extra[name] != _CHANGES_NOTHING.get(name)
        ]
        if found:
            instead = " (repetition_penalty is)" if any(name.endswith("_penalty") for name in found) else ""
            raise ValueError(f"not supported here{instead}, leave it out: {', '.join(found)}")
        if len(self.stops) > MOST_STOPS or not all(self.stops):
            raise ValueError(f"stop: give at most {MOST_STOPS} texts, none of them empty")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts before which an answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self) -> dict[str, Any]:
        """Return the keyword arguments of `CausalLM.generate`."""
        names = ("top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size")
        chosen = {name: getattr(self, name) for name in names}
        return chosen | {"do_sample": self.temperature > 0, "temperature": self.temperature or 1.0}


class Part(BaseModel):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def turn(self) -> dict[str, str]:
        """Return it as `Conversation.of` reads it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(Request):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_TOP_LOGPROBS)


class TextRequest(Request):
    """The body of `POST /v1/completions`."""

    prompt: str = ""
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)
