"""Conversations with a model: what is kept of them, in a terminal and through a pipe."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

import generate
from chat.conversation import Conversation, TooLong, fitted_prompt
from common.errors import UserError
from corpus.conversations.encoding import ConversationEncoder
from corpus.conversations.records import Turn
from corpus.tokenizer import load_tokenizer, train_tokenizer, write_hf_tokenizer
from model import CausalLM, ModelConfig, save_model
from model.init import init_weights

CONFIG = ModelConfig(
    vocab_size=300,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=24,
    use_moe=False,
    max_position_embeddings=96,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned nothing, with 96 positions."""
    place = tmp_path_factory.mktemp("chat") / "model"
    model = CausalLM(CONFIG)
    init_weights(model, CONFIG, seed=0)
    save_model(place, CONFIG, dict(model.named_parameters()))
    tokenizer = place.parent / "tokenizer.json"
    train_tokenizer(iter(["user\nassistant\nsystem\n山里有一座庙"] * 5), 300).save(str(tokenizer))
    write_hf_tokenizer(tokenizer, place)
    return place


@pytest.fixture
def encoder(folder: Path) -> ConversationEncoder:
    return ConversationEncoder(load_tokenizer(folder / "tokenizer.json"))


def turns(*contents: str) -> list[Turn]:
    return [Turn(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]


def test_undo_takes_back_a_question_with_its_answer() -> None:
    conversation = Conversation("简短")
    conversation.turns += turns("一", "二", "三", "四")
    assert conversation.undo() and [turn.content for turn in conversation.turns] == ["简短", "一", "二"]
    assert conversation.undo() and not conversation.undo()
    assert [turn.content for turn in conversation.turns] == ["简短"]
    conversation.say("user", "五")
    conversation.reset()
    assert [turn.role for turn in conversation.turns] == ["system"]


def test_the_oldest_turns_go_when_the_positions_are_used_up(encoder: ConversationEncoder) -> None:
    conversation = Conversation("简短")
    conversation.turns += turns("山" * 3, "庙" * 3, "山" * 4, "庙" * 4, "山" * 5)
    whole, none = fitted_prompt(encoder, conversation, 10_000, 20)
    assert none == 0 and whole == encoder.prompt(conversation.turns)
    ids, left_out = fitted_prompt(encoder, conversation, len(whole) + 19, 20)
    assert left_out == 2 and ids == encoder.prompt([conversation.turns[0], *conversation.turns[3:]])
    ids, left_out = fitted_prompt(encoder, conversation, len(ids) + 19, 20)
    assert left_out == 4 and ids == encoder.prompt([conversation.turns[0], conversation.turns[-1]])
    with pytest.raises(TooLong, match=r"the question has \d+ tokens .*: shorten it"):
        fitted_prompt(encoder, conversation, len(ids) + 19, 20)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ["a"],
        [{"role": "user"}],
        [{"role": "tool", "content": "a"}],
        [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "\ud800"}],
    ],
)
def test_messages_that_make_no_sense_are_one_sentence(messages: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"^(messages|the last)[^\n]+$"):
        Conversation.of(messages)


def test_a_saved_conversation_is_one_that_can_be_learned(tmp_path: Path) -> None:
    conversation = Conversation()
    conversation.turns += turns("一", "二")
    for _ in range(2):
        conversation.save(tmp_path / "kept.jsonl")
    lines = (tmp_path / "kept.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"messages": conversation.messages()}] * 2
    with pytest.raises(UserError, match="cannot be written"):
        conversation.save(tmp_path)


class Terminal(io.StringIO):
    """Lines that somebody types."""

    def isatty(self) -> bool:
        return True


def run(monkeypatch: pytest.MonkeyPatch, stdin: io.StringIO, folder: Path, *flags: str) -> int:
    monkeypatch.setattr("sys.stdin", stdin)
    return generate.main(["--checkpoint", str(folder), "--chat", "--greedy", "--max_new_tokens", "8", *flags])


def test_a_pipe_answers_a_conversation_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    lines = [{"prompt": "山"}, {"messages": [{"role": "system", "content": "短"}, {"role": "user", "content": "山"}]}]
    text = "".join(json.dumps(line) + "\n\n" for line in lines)
    assert run(monkeypatch, io.StringIO(text), folder, "--system", "长") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [[m["role"] for m in record["messages"]] for record in found] == [["system", "user", "assistant"]] * 2
    assert [record["messages"][0]["content"] for record in found] == ["长", "短"]
    assert all(record["finish"] in ("length", "end_mark") and record["left_out"] == 0 for record in found)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "standard input:1: broken JSON; write"),
        ("[]", "standard input:1: no conversation; write"),
        ('{"messages": []}', "standard input:1: the last of the messages must be of the user; write"),
        (json.dumps({"prompt": "山" * 200}), "are too few: shorten it"),
    ],
)
def test_a_wrong_line_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, line: str, words: str
) -> None:
    assert run(monkeypatch, io.StringIO(line + "\n"), folder) == 2
    assert words in capsys.readouterr().err


def test_a_terminal_talks_in_turns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.jsonl"
    typed = [
        "山",
        f"/save {kept}",
        "庙",
        "/undo",
        f"/save {kept}",
        "/reset",
        "/undo",
        "山" * 200,
        "/what",
        "/exit",
        "里",
    ]
    monkeypatch.setattr("builtins.input", lambda _: typed.pop(0))
    assert run(monkeypatch, Terminal(), folder) == 0 and typed == ["里"]
    first, second = (json.loads(line)["messages"] for line in kept.read_text(encoding="utf-8").splitlines())
    assert first == second and [message["role"] for message in first] == ["user", "assistant"]
    out, err = capsys.readouterr()
    assert out.startswith(first[1]["content"] + "\n")
    for words in ("(taken back)", "(begun anew)", "(nothing to take back)", "are too few: shorten it"):
        assert words in err


@pytest.mark.parametrize("flags", [["--json"], ["--num_samples", "2"]])
def test_flags_that_do_not_go_with_it(capsys: pytest.CaptureFixture[str], folder: Path, flags: list[str]) -> None:
    assert generate.main(["--checkpoint", str(folder), "--chat", *flags]) == 2
    assert generate.main(["--checkpoint", str(folder), "--system", "a"]) == 2
    assert "--chat answers once" in (err := capsys.readouterr().err) and "--system goes with --chat" in err
