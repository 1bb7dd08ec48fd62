"""serve.py as it is started: with OpenAI's own client, and with flags that are wrong."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import serve

ROOT = Path(serve.__file__).parent


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    """A server in a process of its own, until Ctrl-C, after which it has printed nothing else and has succeeded."""
    pytest.importorskip("uvicorn")
    command = [sys.executable, "serve.py", "--checkpoint", str(run), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"tiny at (http://127\.0\.0\.1:\d+)", line)
    if found is None:
        process.kill()
        pytest.fail(line + process.communicate()[1])
    yield found[1]
    process.send_signal(2)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.slow
def test_openais_client_talks_to_it(address: str, run: Path) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["tiny"]
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "山里有什么？"}],
        "temperature": 0,
        "max_tokens": 16,
    }
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == whole.choices[0].message.content
    assert len(whole.choices[0].logprobs.content) == 16
    printed = subprocess.run(
        [sys.executable, "generate.py", "--checkpoint", run, "--chat", "--greedy", "--max_new_tokens", "16"],
        cwd=ROOT,
        input='{"prompt": "山里有什么？"}',
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert json.loads(printed)["messages"][-1]["content"] == whole.choices[0].message.content
    text = client.completions.create(model="tiny", prompt="山里", max_tokens=8, extra_body={"top_k": 1})
    assert text.choices[0].text and text.usage.completion_tokens == 8
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(**asked, tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**asked | {"model": "gpt-4"})


@pytest.mark.slow
def test_fifty_at_once_are_all_answered(address: str) -> None:
    httpx = pytest.importorskip("httpx")
    asked = {"messages": [{"role": "user", "content": "山"}], "max_tokens": 30, "seed": 1}
    wrong = {"messages": "山"}

    def ask(number: int):
        return httpx.post(f"{address}/v1/chat/completions", json=wrong if number % 2 else asked, timeout=60)

    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(ask, range(100)))
    assert {answer.status_code for answer in answers[1::2]} == {400}
    assert {answer.status_code for answer in answers[::2]} == {200}
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers[::2]}) == 1


def test_wrong_flags_are_answered_in_a_sentence(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve.main(["--checkpoint", str(run), "--port", str(port)]) == 2
        assert f"--port {port} cannot be listened at" in capsys.readouterr().err
    assert serve.main(["--checkpoint", str(run), "--port", "70000"]) == 2
    assert serve.main(["--checkpoint", str(run / "nowhere")]) == 2
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert serve.main(["--checkpoint", str(run)]) == 2
    assert "pip install -r requirements-serve.txt" in capsys.readouterr().err


def test_other_machines_need_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(serve.KEY, raising=False)
    assert serve.parse_arguments(["--checkpoint", "x"]).key is None
    args = serve.parse_arguments(["--checkpoint", "x", "--host", "0.0.0.0"])
    assert args.made_up and len(args.key) >= 20
    monkeypatch.setenv(serve.KEY, "sesame")
    assert serve.parse_arguments(["--checkpoint", "x", "--host", "0.0.0.0"]).key == "sesame"
