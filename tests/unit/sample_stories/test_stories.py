"""The sample corpus: the generator is deterministic and various, the checker accepts it and little else."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from sample_stories import check, generate_stories, write_sample_corpus
from sample_stories import lexicon as lex
from sample_stories.checker import split_sentences
from sample_stories.table import KINDS, WORDINGS

PINNED = "6e8e23ccd8d63e0c6036d2caf03f9b2ca4bffc500a62248345fb5aff579a5996"

# One story to break in many ways; every case below changes one piece of it.
STORY = (
    "早上，天气晴朗，小明在家里扫地。小明想去河边钓鱼，可是没有鱼竿。小明想起李奶奶有一根鱼竿。小明来到李奶奶家，李奶奶正在洗碗。"
    "“李奶奶，能把鱼竿借给我用一用吗？”小明问。李奶奶点点头，把那根鱼竿交给小明。小明走了一会儿，来到河边。小明用鱼竿钓到一条大鲤鱼。"
    "傍晚，小明回到了李奶奶家。小明把鱼竿还给李奶奶。小明觉得，有李奶奶这样的好邻居真好。"
)
BREAKS = {
    "wrong place": ("小明走了一会儿，来到河边。", "小明走了一会儿，来到公园。", "小明 is at 公园, not at 河边"),
    "never went": ("小明走了一会儿，来到河边。", "", "小明 is at 李奶奶家, not at 河边"),
    "stranger": ("小明用鱼竿钓到", "小红用鱼竿钓到", "小红 does not fit"),
    "wrong tool": ("没有鱼竿", "没有锄头", "钓鱼 is not done with 锄头"),
    "wrong thing returned": ("小明把鱼竿还给", "小明把锄头还给", "锄头 does not fit"),
    "question unanswered": ("李奶奶点点头，把那根鱼竿交给小明。", "", "gets no fitting answer"),
    "answer to nothing": ("“李奶奶，能把鱼竿借给我用一用吗？”小明问。", "", "nobody asked"),
    "measure word": ("那根鱼竿", "那把鱼竿", "matches no pattern"),
    "time backwards": ("傍晚，小明回到了", "早上，小明回到了", "is not after 早上"),
    "not returned": ("小明把鱼竿还给李奶奶。", "", "the plot stands at 'used'"),
    "wrong ending": (
        "小明觉得，有李奶奶这样的好邻居真好。",
        "礼轻情意重，李奶奶记住了小明的好。",
        "belongs to the plot 'gift'",
    ),
    "no ending": ("小明觉得，有李奶奶这样的好邻居真好。", "", "stops before an ending"),
    "goes on": ("好邻居真好。", "好邻居真好。过了一会儿，雨停了。", "after its ending"),
    "no opening": ("早上，天气晴朗，小明在家里扫地。", "", "begin with one opening"),
    "cut short": ("好邻居真好。", "好邻", "complete sentence"),
    "weather": ("天气晴朗", "外面下着雨", "goes out in 雨 without protection"),
    "act and place": ("小明在家里扫地", "小明在家里等车", "nobody does 等车 at 小明家"),
    "introduced twice": ("李奶奶点点头", "李奶奶正在扫地。李奶奶点点头", "gets no fitting answer"),
    "parroting": ("小明来到李奶奶家，李奶奶正在洗碗。", "小明想起李奶奶有一根鱼竿。", "repeats sentence 3"),
    "somebody else's home": ("小明来到李奶奶家", "小明来到王爷爷家", "王爷爷 of 王爷爷家 is unknown"),
    "catch": ("钓到一条大鲤鱼", "把土松了一遍", "鱼竿 does not do that"),
}


@cache
def corpus() -> list[str]:
    """4,000 stories, made once."""
    return list(generate_stories(4000, 0))


def test_the_first_stories_are_pinned() -> None:
    joined = "\n".join(corpus()[:100]).encode()
    assert hashlib.sha256(joined).hexdigest() == PINNED
    assert list(generate_stories(50, 0)) == corpus()[:50]
    assert next(generate_stories(1, 1)) != corpus()[0]


def test_stories_are_distinct_and_of_the_promised_length() -> None:
    assert len(set(corpus())) == 4000
    assert all(80 <= len(story) <= 400 for story in corpus())


def test_there_are_many_sentence_patterns() -> None:
    assert sum(len(kind.wordings) for kind in KINDS.values()) >= 120
    assert all(kind.wordings for kind in KINDS.values())


def test_the_written_file_is_whole(tmp_path: Path) -> None:
    write_sample_corpus(tmp_path / "new" / "stories.jsonl", 30, 5)
    lines = (tmp_path / "new" / "stories.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == list(generate_stories(30, 5))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["stories.jsonl"]


def test_generated_stories_are_accepted() -> None:
    for story in corpus()[::8]:
        assert check(story).ok, (check(story).reason, story)


def test_stories_do_not_parrot_themselves() -> None:
    repeated = 0
    for story in corpus()[::8]:
        grams = [story[i : i + 8] for i in range(len(story) - 7)]
        repeated += len(grams) - len(set(grams))
    assert repeated / 500 < 6


def _mentions(story: str, words: list[str]) -> list[re.Match[str]]:
    pattern = "|".join(sorted([*words, *lex.DISHES], key=len, reverse=True))
    return [match for match in re.finditer(pattern, story) if match.group() in words]


def _swap(words: list[str], alike: Callable[[str, str], bool]) -> Callable[[str, random.Random], str | None]:
    def mutate(story: str, rng: random.Random) -> str | None:
        mentions = _mentions(story, words)
        if not mentions:
            return None
        match = rng.choice(mentions)
        others = [word for word in words if word != match.group() and alike(word, match.group())]
        return story[: match.start()] + rng.choice(others) + story[match.end() :] if others else None

    return mutate


def _truncate(story: str, rng: random.Random) -> str:
    return story[: rng.randrange(1, len(story))]


def _drop(story: str, rng: random.Random) -> str:
    sentences = split_sentences(story) or []
    del sentences[rng.randrange(len(sentences))]
    return "".join(sentences)


def _exchange(story: str, rng: random.Random) -> str:
    sentences = split_sentences(story) or []
    i, j = rng.sample(range(len(sentences)), 2)
    sentences[i], sentences[j] = sentences[j], sentences[i]
    return "".join(sentences)


def _repeat(story: str, rng: random.Random) -> str:
    sentences = split_sentences(story) or []
    i = rng.randrange(len(sentences))
    return "".join([*sentences[: i + 1], *sentences[i : i + 1] * rng.randrange(1, 4), *sentences[i + 1 :]])


MUTATIONS = {
    "person": (_swap(list(lex.PEOPLE), lambda one, other: True), 0.97),
    "thing": (_swap(list(lex.MEASURES), lambda one, other: True), 0.97),
    "thing of the same measure word": (
        _swap(list(lex.MEASURES), lambda one, other: lex.MEASURES[one] == lex.MEASURES[other]),
        0.95,
    ),
    "place": (_swap(list(lex.PLACES), lambda one, other: True), 0.9),
    "truncated": (_truncate, 1.0),
    "repeated": (_repeat, 1.0),
    "sentence dropped": (_drop, 0.6),
    "sentences exchanged": (_exchange, 0.9),
}


def detection_rate(name: str, stories: list[str]) -> float:
    """The share of mutated stories that the checker rejects."""
    rng = random.Random(name)
    mutants = [mutant for story in stories if (mutant := MUTATIONS[name][0](story, rng)) and mutant != story]
    return sum(not check(mutant).ok for mutant in mutants) / len(mutants)


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations_are_detected(name: str) -> None:
    assert detection_rate(name, corpus()[7::20]) >= MUTATIONS[name][1]


def test_the_example_story_is_accepted() -> None:
    assert check(STORY).ok, check(STORY)


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_story_is_rejected_for_the_right_reason(name: str) -> None:
    old, new, reason = BREAKS[name]
    assert STORY.count(old) == 1
    verdict = check(STORY.replace(old, new))
    assert not verdict.ok
    assert reason in verdict.reason


@pytest.mark.parametrize(
    "text",
    [
        "",
        "。",
        "小明。",
        "hello",
        "床前明月光，疑是地上霜。举头望明月，低头思故乡。" * 4,
        "小明在家里扫地。" * 20,
        "早上，天气晴朗，小明在家里扫地。" * 10,
        STORY + STORY,
        STORY * 2 + "完",
        "中国是世界上历史最悠久的国家之一。中国各族人民共同创造了光辉灿烂的文化，具有光荣的革命传统。" * 3,
        "过了一会儿，雨停了。" * 12,
        "“" * 100,
        STORY.replace("。", "，"),
        " " + STORY,
        STORY + "\n",
    ],
)
def test_other_text_is_rejected(text: str) -> None:
    assert not check(text).ok


def test_the_hamlet_has_fewer_people_and_its_stories_hold_together():
    stories = list(generate_stories(300, hamlet=True))
    assert len(set(stories)) == 300
    assert all(check(story).ok for story in stories)
    text = "".join(stories)
    assert "小明" in text and "刘师傅" not in text and "刘师傅" in "".join(generate_stories(300))


def test_somebody_busy_on_the_road_is_a_verdict_and_no_crash() -> None:
    verdict = check(
        "星期天早上，天气晴朗，阿福待在家里剥豆子。阿福知道王爷爷病了，就包好一罐茶叶，想去看他。路上遇到陈阿姨，陈阿姨问：“阿福，"
        "你去哪儿呀？”阿福说：“我去给王爷爷送一罐茶叶。”陈阿姨说：“好，早去早回。”王爷爷正在躺着休息。"
    )
    assert (verdict.ok, verdict.sentence) == (False, 6) and "nobody does 躺着休息 at 路上" in verdict.reason


def test_every_wording_belongs_to_a_kind() -> None:
    assert set(WORDINGS) == set(KINDS)
