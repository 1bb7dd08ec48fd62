"""The chat template: what it renders, and folders that bring their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.chat_template import chatml, read_chat_template, render
from common.errors import UserError

CHAT = [{"role": "user", "content": "山里有什么？"}, {"role": "assistant", "content": "一座庙。"}]


def test_a_conversation_is_written_turn_by_turn() -> None:
    text = render(chatml("<|im_start|>", "<|im_end|>"), CHAT)
    assert text == "<|im_start|>user\n山里有什么？<|im_end|>\n<|im_start|>assistant\n一座庙。<|im_end|>\n"


def test_a_generation_prompt_ends_where_the_assistant_begins() -> None:
    assert render(chatml("<s>", "</s>"), CHAT[:1], add_generation_prompt=True).endswith("</s>\n<s>assistant\n")


@pytest.mark.parametrize("mark", ["it's", "a\\", "{{ 1 }}", "<｜begin▁of▁sentence｜>"])
def test_any_token_can_be_a_mark(mark: str) -> None:
    assert render(chatml(mark, mark), CHAT[:1]) == f"{mark}user\n山里有什么？{mark}\n"


def test_a_folder_may_bring_its_own(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one"}))
    assert read_chat_template(tmp_path) == "one"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "two"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert read_chat_template(tmp_path) == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert read_chat_template(tmp_path) == "three"


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ ''.__class__.__mro__ }}",
    ],
)
def test_a_template_that_cannot_render_is_one_sentence(template: str) -> None:
    with pytest.raises(UserError, match=r"^the chat template cannot render the conversation: .+$"):
        render(template, CHAT)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config.json: no chat template can be read from it"):
        read_chat_template(tmp_path)
