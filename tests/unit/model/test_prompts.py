"""Prompts are made of tokens that the model was trained on, or wait for one that begins as they end."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from common.training_text import TrainingText
from corpus.tokenizer import train_tokenizer
from model.inference.prompts import Prompt, PromptEncoder, PromptTokens
from model.inference.text import TextGenerator

NAMES, PLACES = ("小明", "小红", "丽丽"), ("公园", "茶馆", "河边")
STORIES = [f"有一天早上，{name}去{place}。\n" for name in NAMES for place in PLACES] * 9


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(STORIES, 600)


@pytest.fixture(scope="module")
def known(tokenizer: Tokenizer) -> TrainingText:
    used = {i for story in STORIES for i in tokenizer.encode(story).ids}
    unused = [i for i in range(3, tokenizer.get_vocab_size()) if i not in used]
    return TrainingText(characters="".join(sorted(set("".join(STORIES)))), unused_tokens=unused)


def test_an_unused_token_at_the_end_is_held_back(tokenizer: Tokenizer, known: TrainingText) -> None:
    assert len(tokenizer.encode("有一天").ids) == 2 and set(tokenizer.encode("有一天").ids) <= set(known.unused_tokens)
    tokens = PromptEncoder(tokenizer, known).encode("。有一天")
    assert tokens.ids == tokenizer.encode("。").ids
    assert tokens.held == "有一天"
    assert [tokenizer.decode([i]) for i in tokens.first] == ["有一天早上"]


def test_an_unused_token_inside_is_split_and_the_text_is_kept(tokenizer: Tokenizer, known: TrainingText) -> None:
    encoder = PromptEncoder(tokenizer, known)
    for text in ("有一天，小明", "有一，有一天早上", "早上一", "有一天早上，小明", "", "猫"):
        tokens = encoder.encode(text)
        assert tokenizer.decode(tokens.ids) + tokens.held == text
        names = [tokenizer.id_to_token(i) for i in tokens.ids if i in known.unused_tokens]
        assert all(len(name) == 1 for name in names)  # single bytes cannot be taken apart


def test_without_a_record_the_tokenizer_decides(tokenizer: Tokenizer) -> None:
    assert PromptEncoder(tokenizer, None).encode("有一天") == PromptTokens(tokenizer.encode("有一天").ids)
    assert PromptEncoder(tokenizer, None).unknown_characters("猫") == ""


def test_characters_that_the_text_never_had_are_named_once(tokenizer: Tokenizer, known: TrainingText) -> None:
    assert PromptEncoder(tokenizer, known).unknown_characters("小猫 和\n猫，小狗") == "猫和狗"


def test_the_text_goes_on_where_the_prompt_ends(make_model, tokenizer: Tokenizer, known: TrainingText) -> None:
    model = make_model(vocab_size=tokenizer.get_vocab_size())
    written: list[str] = []
    texts = []
    for _ in range(2):
        generator = TextGenerator(model, tokenizer, max_new_tokens=5, seed=3, training_text=known)
        prompts = [generator.encode(Prompt(text, "p")) for text in ("有一天", "小明")]
        texts.append([completion.text for completion in generator.complete(prompts, 2)])
    generator = TextGenerator(model, tokenizer, max_new_tokens=5, seed=3, training_text=known)
    generator.stream(generator.encode(Prompt("有一天", "p")), written.append)
    assert texts[0] == texts[1] and texts[0][0] == "".join(written)
    assert texts[0][0].startswith("早上")


def test_the_record_survives_the_disk_and_is_no_need(tmp_path, known: TrainingText) -> None:
    assert TrainingText.read(tmp_path) is None
    known.write(tmp_path)
    assert TrainingText.read(tmp_path) == known
    (tmp_path / "training_text.json").write_text("{")
    assert TrainingText.read(tmp_path) is None
