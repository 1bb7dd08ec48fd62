"""Near duplicates: what counts as near, which one stays, and that no order and no number of workers matters."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from corpus_data import prepare
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from opencc import OpenCC

from corpus.cleaning import near_duplicates
from corpus.cleaning.near_duplicates import HASHES, THRESHOLD, NearIndex, signatures
from corpus.cleaning.normalization import normalized_characters
from corpus.split import DIGEST_BYTES, document_digest

SYLLABLES = "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽雲騰致雨露結為霜金生麗水玉出崑岡"
SYLLABLES += "劍號巨闕珠稱夜光果珍李柰菜重芥薑"


def made_text(seed: int, length: int = 200) -> str:
    """Text of its own: two of them share next to no 3-grams."""
    rng = random.Random(seed)
    return "".join(rng.choices(SYLLABLES, k=length))


def edited(text: str, share: float, seed: int = 0) -> str:
    """Characters replaced by one that stands nowhere in made_text."""
    places = set(random.Random(seed).sample(range(len(text)), round(share * len(text))))
    return "".join("囧" if i in places else c for i, c in enumerate(text))


def similarity(first: str, second: str) -> float:
    """Of the signatures."""
    rows = signatures(normalized_characters([first, second]))
    return float((rows[0] == rows[1]).mean()) if rows.any(axis=1).all() else 0.0


def found(texts: list[str], preferred: int = 0) -> list[tuple[str, str]]:
    """(kept, dropped) of an index of `texts`, the first of them `preferred`."""
    index = NearIndex()
    rows = signatures(normalized_characters(texts))
    digests = [document_digest(text.encode()) for text in texts]
    index.add(rows[:preferred], digests[:preferred], range(preferred), preferred=True)
    index.add(rows[preferred:], digests[preferred:], range(preferred, len(texts)), preferred=False)
    pairs = index.resolve()
    assert pairs.digests == [document_digest(texts[place].encode()) for place in pairs.dropped]
    return [(texts[kept], texts[dropped]) for kept, dropped in zip(pairs.kept, pairs.dropped, strict=True)]


def test_estimates_agree_with_the_exact_similarity_of_3_gram_sets() -> None:
    errors = []
    for seed in range(40):
        text = made_text(seed)
        other = edited(text, 0.02 * (seed % 10), seed)
        sets = [{t[i : i + 3] for i in range(len(t) - 2)} for t in (text, other)]
        errors.append(similarity(text, other) - len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    assert abs(np.mean(errors)) < 0.02  # unbiased
    assert np.std(errors) < 0.06  # the spread of 128 draws at 0.5 is 0.044


@pytest.mark.parametrize(
    "other",
    [
        "臺灣的圖書館裏，有許多關於龍的傳說！",
        "　臺灣的\n圖書館裡有許多關於龍的傳說。",
        "台湾的图书馆里,有许多关于龙的传说.",
        "<|im_start|>台湾的图书馆里有许多关于龙的传说<|im_end|>",
    ],
)
def test_script_punctuation_space_and_marks_make_no_difference(other: str) -> None:
    assert similarity("台湾的图书馆里，有许多关于龙的传说。", other) >= 0.8


@given(st.text(st.characters(categories=["Lo"], min_codepoint=0x4E00, max_codepoint=0x9FFF), min_size=1, max_size=80))
@settings(deadline=None)
def test_a_text_is_near_to_its_simplified_form(text: str) -> None:
    simplified = OpenCC("t2s").convert("\n".join(text))  # character by character: no choice of words
    assume(simplified != text)
    assert found([text, simplified])


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None)
def test_any_text_has_a_signature_and_short_ones_match_only_the_same_letters(first: str, second: str) -> None:
    letters = normalized_characters([first, second])
    rows = signatures(letters)
    assert rows.shape == (2, HASHES)
    assert rows.any(axis=1).tolist() == (letters.counts() > 0).tolist()
    if letters.counts().min() > 0 and letters.counts().max() <= near_duplicates.NGRAM:
        same = near_duplicates.simplified_characters(letters)
        equal = same[letters.owner == 0].tolist() == same[letters.owner == 1].tolist()
        assert ((rows[0] == rows[1]).mean() >= THRESHOLD) == equal


def test_texts_without_letters_are_left_alone() -> None:
    assert found(["。。。", "！！", "——", "。。。！"]) == []


def test_signature_does_not_depend_on_the_company() -> None:
    texts = [made_text(seed, length) for seed, length in enumerate((1, 2, 3, 50, 200))] + ["", "。"]
    together = signatures(normalized_characters(texts))
    alone = np.concatenate([signatures(normalized_characters([text])) for text in texts])
    assert np.array_equal(together, alone)


def test_planted_copies_are_found_and_nothing_else() -> None:
    originals = [made_text(seed) for seed in range(200)]
    copies = [edited(text, 0.05, seed) for seed, text in enumerate(originals)]
    pairs = found(originals + copies)
    assert len(pairs) >= 198
    group = {text: i % 200 for i, text in enumerate(originals + copies)}
    assert all(group[kept] == group[dropped] for kept, dropped in pairs)


@given(st.randoms())
@settings(max_examples=20, deadline=None)
def test_the_choice_does_not_depend_on_the_order(rng: random.Random) -> None:
    texts = [edited(made_text(seed // 4), 0.03 * (seed % 4), seed) for seed in range(40)]
    expected = sorted(found(texts))
    rng.shuffle(texts)
    assert sorted(found(texts)) == expected
    assert 15 < len(expected) <= 30


def test_what_is_kept_has_nothing_more_to_drop() -> None:
    # chains: each is near to the next, the ends are not near to each other
    texts = []
    for seed in range(30):
        texts.append(made_text(seed))
        for step in range(5):
            texts.append(edited(texts[-1], 0.08, step))
    pairs = found(texts)
    dropped = {text for _, text in pairs}
    kept = [text for text in texts if text not in dropped]
    assert 30 < len(kept) < len(texts)
    assert all(text not in dropped for text, _ in pairs)
    assert found(kept) == []


def test_preferred_texts_stay_whatever_their_digests() -> None:
    texts = [made_text(seed) for seed in range(30)]
    copies = [edited(text, 0.03) for text in texts]
    assert sorted(found(texts + copies, preferred=30)) == sorted(zip(texts, copies, strict=True))


def test_a_bucket_that_everything_shares_is_not_compared_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).integers(0, 2**16, (1000, HASHES)).astype(near_duplicates.SIGNATURE_TYPE)
    rows[:, :4] = 7  # one band in common, no similarity
    rows[501] = rows[500]
    index = NearIndex()
    index.add(rows, [number.to_bytes(DIGEST_BYTES, "big") for number in range(1000)], range(1000), preferred=False)
    pairs = index.resolve()
    assert (pairs.kept.tolist(), pairs.dropped.tolist(), pairs.similarity.tolist()) == ([500], [501], [1.0])


def near_corpus() -> list[str]:
    """60 texts, each with a copy in simplified characters and an edited one."""
    texts = [made_text(seed, 120) for seed in range(60)]
    return texts + [OpenCC("t2s").convert(text) for text in texts] + [edited(text, 0.03) for text in texts]


def test_prepare_drops_near_duplicates(jsonl, tmp_path: Path, tokenizer_json: Path) -> None:
    texts, out = near_corpus(), tmp_path / "out"
    manifest = prepare([jsonl([*texts, texts[0]])], out, tokenizer=tokenizer_json, dedup="near", val_fraction=0.2)
    assert sum(split.documents for split in manifest.splits.values()) == 60
    report = json.loads((out / "report.json").read_text())["duplicates"]
    assert (report["exact"], report["near"]) == (1, 120)
    near_examples = [
        example for example in report["examples"] if example["similarity"] < 1 or example["kept"] != example["dropped"]
    ]
    assert len(near_examples) == 10 and {"kept": texts[0], "dropped": texts[0], "similarity": 1.0} in report["examples"]
    group = {text: i % 60 for i, text in enumerate(texts)}
    assert all(group[example["kept"]] == group[example["dropped"]] for example in report["examples"])


def test_no_training_document_stays_that_is_near_to_a_validation_file(jsonl, tmp_path: Path, tokenizer_json) -> None:
    texts, others = near_corpus(), [made_text(seed) for seed in range(100, 105)]
    source, val = jsonl([*texts[60:], *others]), jsonl(texts[:60], "val.jsonl")
    manifest = prepare([source], tmp_path / "out", tokenizer=tokenizer_json, dedup="near", val_inputs=[val])
    assert {name: split.documents for name, split in manifest.splits.items()} == {"train": 5, "val": 60}
    report = json.loads((tmp_path / "out" / "report.json").read_text())["duplicates"]
    assert (report["near"], report["near_in_val"]) == (120, 120)


def test_of_a_near_pair_the_validation_document_stays(jsonl, tmp_path: Path, tokenizer_json: Path) -> None:
    texts = near_corpus()
    both = prepare([jsonl(texts)], tmp_path / "near", tokenizer=tokenizer_json, dedup="near", val_fraction=0.3)
    report = json.loads((tmp_path / "near" / "report.json").read_text())["duplicates"]
    # one of three in validation is enough for the whole group: 1 - 0.7^3 of the 60
    assert 25 <= both.splits["val"].documents <= 52
    assert report["near_in_val"] > 20


def test_the_tokenizer_learns_from_what_is_left(jsonl, tmp_path: Path) -> None:
    manifest = prepare([jsonl(near_corpus())], tmp_path / "out", vocab_size=300, dedup="near")
    train = manifest.splits["train"]
    assert f"trained on the {train.documents} training documents ({train.bytes:,} bytes)" in manifest.tokenizer_source
