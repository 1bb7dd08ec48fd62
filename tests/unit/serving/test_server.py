"""The server in this process: OpenAI's forms, limits, and requests that are wrong or hang up."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chat.checkpoint import load_checkpoint
from chat.conversation import Conversation, fitted_prompt
from corpus.conversations.encoding import ConversationEncoder

pytest.importorskip("fastapi")

from model.inference.prompts import PromptEncoder, PromptTokens
from serving import writer as writer_module
from serving.app import Settings, create_app
from serving.requests import MOST_BYTES, ApiError
from serving.writer import Job, Writer

QUESTION = [{"role": "user", "content": "山里有什么？"}]
GREEDY = {"messages": QUESTION, "temperature": 0, "max_tokens": 24}


def events(response: Any) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_greedy_answer_is_what_the_model_writes(start, run: Path) -> None:
    answer = start().post("/v1/chat/completions", json=GREEDY).json()
    model, tokenizer = load_checkpoint(run / "model", "cpu")
    ids, _ = fitted_prompt(ConversationEncoder(tokenizer), Conversation.of(QUESTION), 256, 24)
    new = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, repetition_penalty=1.0)[0, len(ids) :]
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": tokenizer.decode(new.tolist())}
    assert choice["finish_reason"] == "length" and answer["object"] == "chat.completion"
    assert answer["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 24, "total_tokens": len(ids) + 24}


def test_a_stream_says_the_same_in_pieces(start) -> None:
    client = start()
    asked = GREEDY | {"temperature": 1.0, "seed": 3, "logprobs": True, "top_logprobs": 2}
    whole = client.post("/v1/chat/completions", json=asked).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *parts, usage = events(client.post("/v1/chat/completions", json=asked | options))
    deltas = [part["choices"][0] for part in parts]
    assert "".join(part["delta"]["content"] for part in deltas) == whole["choices"][0]["message"]["content"]
    assert [part["delta"].get("role") for part in deltas] == ["assistant", *[None] * (len(deltas) - 1)]
    assert [part["finish_reason"] for part in deltas] == [*[None] * (len(deltas) - 1), "length"]
    scored = [token for part in deltas if part["logprobs"] for token in part["logprobs"]["content"]]
    assert scored == whole["choices"][0]["logprobs"]["content"] and len(scored) == 24
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    assert (
        bytes(byte for token in scored for byte in token["bytes"]).decode(errors="replace")
        in (whole["choices"][0]["message"]["content"])
    )


def test_probabilities_are_the_models_own(start, run: Path) -> None:
    client = start()
    found = client.post("/v1/completions", json={"prompt": "山里", "max_tokens": 1, "temperature": 0, "logprobs": 3})
    model, tokenizer = load_checkpoint(run / "model", "cpu")
    ids = [model.config.bos_token_id, *tokenizer.encode("山里", add_special_tokens=False).ids]
    with torch.no_grad():
        logprobs = model.logits(torch.tensor([ids]), last_only=True)[0, -1].log_softmax(-1)
    scores = found.json()["choices"][0]["logprobs"]
    assert scores["token_logprobs"] == pytest.approx([float(logprobs.max())], abs=1e-4)
    assert list(scores["top_logprobs"][0].values()) == pytest.approx(logprobs.topk(3).values.tolist(), abs=1e-4)


def test_a_text_ends_before_a_stop(start) -> None:
    client, asked = start(), {"prompt": "山", "max_tokens": 40, "seed": 1}
    text = client.post("/v1/completions", json=asked).json()["choices"][0]["text"]
    stop = text[8:11]
    for stream in (False, True):
        answer = client.post("/v1/completions", json=asked | {"stop": ["不会出现", stop], "stream": stream})
        choices = [part["choices"][0] for part in (events(answer) if stream else [answer.json()])]
        assert "".join(choice["text"] for choice in choices) == text[: text.index(stop)]
        assert choices[-1]["finish_reason"] == "stop"


def test_what_is_served_is_listed(start) -> None:
    client = start()
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny"]
    assert client.get("/v1/models/tiny").json()["id"] == "tiny"
    assert client.get("/v1/models/other").status_code == 404
    assert "<title>不复读</title>" in client.get("/").text


def test_turns_that_no_longer_fit_are_left_out_and_counted(start) -> None:
    turns = [{"role": ("user", "assistant")[i % 2], "content": "山里有庙" * 10} for i in range(9)]
    answer = start().post("/v1/chat/completions", json={"messages": turns, "max_tokens": 20}).json()
    assert answer["left_out"] in (2, 4, 6) and 150 < answer["usage"]["prompt_tokens"] <= 236


WRONG = [
    (b"", 400),
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b"[" * 100_000, 400),
    (b"[]", 400),
    (b"null", 400),
    ({}, 400),
    ({"messages": []}, 400),
    ({"messages": "你好"}, 400),
    ({"messages": [{"role": "user"}]}, 400),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400),
    ({"messages": [{"role": "user", "content": None}]}, 400),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400),
    ({"messages": [{"role": "assistant", "content": "x"}]}, 400),
    ({"messages": [*QUESTION, {"role": "system", "content": "x"}, *QUESTION]}, 400),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400),
    (b'{"messages": [{"role": "\\ud800", "content": "x"}]}', 400),
    ({"messages": QUESTION, "model": "gpt-4"}, 404),
    ({"messages": QUESTION, "temperature": -1}, 400),
    ({"messages": QUESTION, "temperature": "hot"}, 400),
    (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', 400),
    ({"messages": QUESTION, "top_p": 0}, 400),
    ({"messages": QUESTION, "max_tokens": 0}, 400),
    ({"messages": QUESTION, "max_tokens": 10**30}, 400),
    ({"messages": QUESTION, "max_tokens": 101}, 400),
    ({"messages": QUESTION, "stop": [""]}, 400),
    ({"messages": QUESTION, "stop": ["a"] * 5}, 400),
    ({"messages": QUESTION, "n": 2}, 400),
    ({"messages": QUESTION, "tools": [{"type": "function"}]}, 400),
    ({"messages": QUESTION, "frequency_penalty": 0.5}, 400),
    ({"messages": QUESTION, "top_logprobs": 21}, 400),
    ({"messages": [{"role": "user", "content": "山" * 300}]}, 400),
    ({"messages": [{"role": "user", "content": "山" * MOST_BYTES}]}, 413),
]


@pytest.mark.parametrize(("body", "status"), WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_request_is_answered_in_the_form_of_the_api(one_client, body, status: int, stream: bool) -> None:
    if isinstance(body, dict):
        body = json.dumps(body | {"stream": stream}).encode()
    answer = one_client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert 10 < len(error["message"]) < 600


@pytest.fixture(scope="module")
def one_client(run: Path):
    from starlette.testclient import TestClient

    model, tokenizer = load_checkpoint(run / "model", "cpu")
    app = create_app(
        Writer(model, tokenizer, parallel=1, timeout=60), PromptEncoder(tokenizer, None), Settings("tiny", 100)
    )
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"n": 2}, "not supported here, leave it out: n"),
        (
            {"tools": [1], "presence_penalty": 1},
            "not supported here (repetition_penalty is), leave it out: tools, pres",
        ),
        ({"echo": True}, "not supported here, leave it out: echo"),
        ({"stop": [""]}, "stop: give at most 4 texts, none of them empty"),
    ],
)
def test_what_is_not_supported_is_named_in_plain_words(one_client, asked: dict, words: str) -> None:
    answer = one_client.post("/v1/chat/completions", json=GREEDY | asked)
    assert answer.json()["error"]["message"].startswith(words)


def test_what_changes_nothing_is_ignored(start) -> None:
    harmless = {
        "n": 1,
        "best_of": 1,
        "frequency_penalty": 0,
        "tools": [],
        "user": "me",
        "response_format": {"type": "text"},
        "stop": None,
        "logit_bias": None,
    }
    assert start().post("/v1/chat/completions", json=GREEDY | harmless).status_code == 200


def test_other_paths_and_methods_have_errors_of_the_same_form(start) -> None:
    client = start()
    assert "error" in client.get("/v1/other").json() and client.get("/v1/other").status_code == 404
    assert client.get("/v1/completions").status_code == 405 and "error" in client.get("/v1/completions").json()


def test_the_key_opens_all_but_the_page(start) -> None:
    client = start(key="sesame")
    assert client.get("/").status_code == 200
    for key in ("", "Bearer open", "Bearer 芝麻".encode()):
        answer = client.get("/v1/models", headers={"Authorization": key})
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    assert client.get("/v1/models", headers={"Authorization": "Bearer sesame"}).status_code == 200


def test_another_name_for_this_machine_is_refused(start) -> None:
    client = start(hosts=frozenset({"127.0.0.1"}))
    assert client.get("/v1/models", headers={"Host": "127.0.0.1:8000"}).status_code == 200
    assert client.get("/v1/models", headers={"Host": "evil.example:8000"}).status_code == 403


# --- places


class Endless:
    """A stand-in for a model that writes the same token for ten seconds."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.steps = 0

    def generate(self, ids: torch.Tensor, *, streamer: Any, **_: Any) -> torch.Tensor:
        for _ in range(1000):
            self.steps += 1
            streamer([100], torch.zeros(1, 300))
            time.sleep(0.01)
        return ids


@pytest.fixture
def endless(run: Path, monkeypatch: pytest.MonkeyPatch):
    """`endless(timeout)`: a writer with one place, and none to wait at, whose texts do not end by themselves."""
    monkeypatch.setattr(writer_module, "MOST_WAITING", 0)
    made: list[Writer] = []

    def make(timeout: float = 60.0) -> Writer:
        model, tokenizer = load_checkpoint(run / "model", "cpu")
        made.append(Writer(Endless(model.config), tokenizer, parallel=1, timeout=timeout))  # pyright: ignore
        return made[-1]

    yield make
    for writer in made:
        writer.close()


JOB = Job(PromptTokens([1, 5]), 50, {}, 0)


async def freed(writer: Writer) -> bool:
    """Return whether the one place is free within a second."""
    for _ in range(100):
        if writer._places.acquire(blocking=False):
            writer._places.release()
            return True
        await asyncio.sleep(0.01)
    return False


def test_who_closes_a_text_frees_its_place(endless) -> None:
    async def scenario() -> None:
        writer = endless()
        pieces = writer.write(JOB)
        assert (await anext(pieces)).tokens >= 1
        with pytest.raises(ApiError) as error:
            await anext(writer.write(JOB))
        assert error.value.status == 429
        await pieces.aclose()
        assert await freed(writer) and writer.model.steps < 500

    asyncio.run(scenario())


def test_a_text_that_takes_too_long_ends_with_length(endless) -> None:
    async def scenario() -> None:
        pieces = [piece async for piece in endless(timeout=0.2).write(JOB)]
        assert pieces[-1].finish == "length"

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_place(endless, stream: bool) -> None:
    async def scenario() -> None:
        writer = endless()
        app = create_app(writer, SimpleNamespace(encode_behind=lambda *_: JOB.prompt), Settings("tiny", 100))  # pyright: ignore
        body, sent = json.dumps({"prompt": "山", "stream": stream}).encode(), []
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict:
            if messages:
                return messages.pop()
            await asyncio.sleep(0.2)
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
        await asyncio.wait_for(app(scope | {"http_version": "1.1", "scheme": "http"}, receive, send), 5)
        assert sent[0]["status"] == (200 if stream else 499)
        assert await freed(writer) and writer.model.steps < 500

    asyncio.run(scenario())
