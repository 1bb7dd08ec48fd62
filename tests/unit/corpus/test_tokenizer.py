"""The tokenizer: round trips, foreign files, and the same ids in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_data import make_texts
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from common.chat_template import read_chat_template, render
from common.errors import UserError
from corpus.encoding import RoundTrip, as_documents, encode_texts
from corpus.tokenizer import (
    PROBES,
    bytes_to_characters,
    library_errors,
    load_tokenizer,
    normalized,
    special_ids,
    tokenizer_file,
    train_tokenizer,
    vocab_size,
    write_hf_tokenizer,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
MARKED = st.lists(st.one_of(TEXT, st.sampled_from(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|"]))).map("".join)


def foreign(path: Path, specials: list[str], size: int = 300, **parts: object) -> Path:
    """A byte-level tokenizer.json as others make them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        make_texts(50), trainers.BpeTrainer(vocab_size=size, special_tokens=specials, initial_alphabet=alphabet)
    )
    for name, value in parts.items():
        setattr(tokenizer, name, value)
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def ours(tokenizer_json: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_json)


@given(text=MARKED)
def test_every_string_round_trips(ours: Tokenizer, text: str) -> None:
    assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text


def test_special_tokens_are_ids_0_1_2_and_found_in_text(ours: Tokenizer) -> None:
    assert special_ids(ours) == (1, 2, 0)
    assert ours.encode("<|im_start|><|im_end|><|endoftext|>").ids == [1, 2, 0]


def test_size_and_token_length_are_bounded() -> None:
    texts = ["一模一样的一句很长很长的话没有标点" * 3, "<|im_start|>" * 9] * 50
    tokenizer = train_tokenizer(iter(texts), 400)
    assert 259 < vocab_size(tokenizer) <= 400
    ordinary = set(tokenizer.get_vocab()) - {"<|im_start|>", "<|im_end|>", "<|endoftext|>"}
    assert 3 < max(map(len, ordinary)) <= 16
    assert not {"im", "start", "<|"} & ordinary


@pytest.mark.parametrize("size", [258, 65_537])
def test_impossible_vocabulary_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=r"--vocab_size.*259.*65,536"):
        train_tokenizer(iter(["text"]), size)


def test_training_does_not_depend_on_the_order() -> None:
    texts = make_texts(200)
    assert train_tokenizer(iter(texts), 500).to_str() == train_tokenizer(iter(texts[::-1]), 500).to_str()


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": {"type": "BPE"}}', "[1]"])
def test_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json: not a Hugging Face tokenizer\.json"):
        load_tokenizer(path)


def test_more_than_65536_entries_are_refused(tmp_path: Path) -> None:
    vocab = {symbol: i for i, symbol in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    vocab |= {f"word{i}": i for i in range(len(vocab), 65_537)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.save(str(tmp_path / "big.json"))
    with pytest.raises(UserError, match=r"big\.json: 65,537 entries"):
        load_tokenizer(tmp_path / "big.json")


@pytest.mark.parametrize(
    ("parts", "lost"),
    [
        ({"normalizer": normalizers.NFKC()}, "full-width forms"),
        ({"normalizer": normalizers.Lowercase()}, "capital letters"),
        ({"normalizer": normalizers.Replace("\n", " ")}, "newlines"),
        ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, "Chinese characters"),
    ],
)
def test_lossy_tokenizer_is_refused_with_what_it_loses(tmp_path: Path, parts: dict, lost: str) -> None:
    path = foreign(tmp_path / "lossy.json", ["<s>", "</s>"], **parts)
    with pytest.raises(UserError, match=rf"lossy\.json.*loses.*{lost}"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("specials", "expected"),
    [
        (["<unk>", "<s>", "</s>"], (1, 2, 2)),
        (["<s>", "<pad>", "</s>"], (0, 2, 1)),
        (["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"], (1, 2, 0)),
        (["<|endoftext|>"], (0, 0, 0)),
    ],
)
def test_bos_and_eos_of_foreign_tokenizers(tmp_path: Path, specials: list[str], expected: tuple[int, int, int]) -> None:
    assert special_ids(load_tokenizer(foreign(tmp_path / "t.json", specials))) == expected


def test_tokenizer_without_bos_and_eos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no BOS and EOS tokens"):
        special_ids(load_tokenizer(foreign(tmp_path / "t.json", ["<unk>"])))


def test_truncation_padding_and_dropout_are_switched_off(tmp_path: Path) -> None:
    path = foreign(tmp_path / "t.json", ["<s>", "</s>"])
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(path))
    data = json.loads(path.read_text())
    data["model"]["dropout"] = 0.9
    path.write_text(json.dumps(data))
    loaded, text = load_tokenizer(path), "床前明月光，疑是地上霜。" * 5
    ids = {tuple(loaded.encode(text).ids) for _ in range(5)}
    assert len(ids) == 1
    assert loaded.decode(list(ids.pop()), skip_special_tokens=False) == text


@pytest.mark.parametrize("model_type", [None, "qwen3_moe", "qwen3"])
@pytest.mark.parametrize("own", [True, False])
def test_auto_tokenizer_gives_the_same_ids(
    tmp_path: Path, tokenizer_json: Path, own: bool, model_type: str | None
) -> None:
    template = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    source = tokenizer_json if own else foreign(tmp_path / "t.json", ["<s>", "</s>"], post_processor=template)
    folder = tmp_path / "hf"
    write_hf_tokenizer(source, folder)
    if model_type:  # as in the folder of a model, where transformers may choose a class by the model
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(source)
    bos_id, eos_id, _ = special = special_ids(ours)
    for text in [*PROBES.values(), *make_texts(20), "a<|im_end|> <|im_start|>", " lead", "a ,b . 'll", ""]:
        packed, _ = as_documents(*encode_texts(ours, [text]), bos_id, eos_id)
        ids = theirs(text)["input_ids"]
        assert [*ids, eos_id] == packed.tolist()
        assert theirs.decode(ids[1:]) == text
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids[1:]
    assert theirs("a", "b")["input_ids"] == theirs("a")["input_ids"] + theirs("b")["input_ids"]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == special
    assert len(theirs) == vocab_size(ours)


@pytest.mark.parametrize("own", [True, False])
def test_a_chat_is_encoded_with_one_bos_and_turns_between_the_marks(
    tmp_path: Path, tokenizer_json: Path, own: bool
) -> None:
    source = tokenizer_json if own else foreign(tmp_path / "t.json", ["<s>", "</s>"])
    write_hf_tokenizer(source, tmp_path / "hf")
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "hf"), load_tokenizer(source)
    bos, eos, _ = special_ids(ours)
    messages = [{"role": "system", "content": " 你是谁\n"}, {"role": "user", "content": "它's {{ 1 }}"}]
    turns = [ours.encode(f"{message['role']}\n{message['content']}").ids for message in messages]
    newline, assistant = ours.encode("\n").ids, ours.encode("assistant\n").ids
    expected = [part for turn in turns for part in (bos, *turn, eos, *newline)]
    assert theirs.apply_chat_template(messages)["input_ids"] == expected
    prompt = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert prompt == [*expected, bos, *assistant]
    text = render(read_chat_template(tmp_path / "hf") or "", messages, add_generation_prompt=True)
    assert text == theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def replace(pattern: object, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": replace({"String": "a"}, "aa")},  # a dozen of them ask for all the memory there is
        {"normalizer": {"type": "Sequence", "normalizers": [replace({"Regex": "."}, "a" * 100)] * 4}},
        {"normalizer": replace({"String": ""}, "")},
        {"normalizer": {"type": "Prepend", "prepend": ""}},
        {"normalizer": {"type": "Prepend", "prepend": "_" * 10**6}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"decoder": {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}},
        {"decoder": {"type": "Sequence", "decoders": [replace({"Regex": "."}, "a" * 100)] * 4}},
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}},
        {
            "model": {
                "type": "WordPiece",
                "vocab": {"a": 0},
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
            }
        },
        {"model": {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": None}},
        {"model": {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 7}},
        {
            "model": {
                "type": "BPE",
                "vocab": {"a": 0, "长": 1},
                "merges": [["a", "长"]],
                "continuing_subword_prefix": "长",
            }
        },
    ],
    ids=lambda parts: "-".join([*parts, *(part["type"] for part in parts.values())]),
)
def test_what_makes_the_library_panic_is_a_sentence(
    tmp_path: Path, tokenizer_json: Path, parts: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(tokenizer_json.read_text(encoding="utf-8")) | parts
    (tmp_path / "t.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"t\.json: ") as caught:
        load_tokenizer(tmp_path / "t.json")
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()
    assert "panicked" not in capfd.readouterr().err


def test_panics_become_sentences_and_interruptions_pass() -> None:
    class PanicException(BaseException):
        """As the Rust side raises it."""

    class Order(BaseException):
        """Of the program, to stop."""

    with pytest.raises(UserError, match=r"^it failed \(index out of bounds\)$"), library_errors("it failed"):
        raise PanicException("index out of bounds")
    for passing in (KeyboardInterrupt, SystemExit, MemoryError, Order):
        with pytest.raises(passing), library_errors("it failed"):
            raise passing
    with pytest.raises(KeyboardInterrupt), library_errors("it failed"):
        raise Exception("KeyboardInterrupt: ")  # met while the library read its texts


@pytest.mark.parametrize("text", ["[" * 100_000, '{"model": ' * 200, "9" * 5000, '{"normalizer": {"type": []}}'])
def test_json_that_chokes_a_reader_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(UserError, match=r"t\.json: not a Hugging Face tokenizer\.json"):
        load_tokenizer(tmp_path / "t.json")


def test_a_sentencepiece_bpe_with_bytes_is_taken(tmp_path: Path) -> None:
    """As Llama 2 has it: spaces become a mark, and what is not in the vocabulary becomes bytes."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)} | {"▁": 259}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.save(str(tmp_path / "t.json"))
    loaded = load_tokenizer(tmp_path / "t.json")
    assert loaded.decode(loaded.encode("a 长 b").ids, skip_special_tokens=False) == "a 长 b"


def test_a_vocabulary_that_lacks_bytes_is_refused(tmp_path: Path) -> None:
    path = foreign(tmp_path / "t.json", ["<s>", "</s>"], 400)
    content = json.loads(path.read_text())
    lacking = bytes_to_characters()[0xD0]
    del content["model"]["vocab"][lacking]
    content["model"]["merges"] = [merge for merge in content["model"]["merges"] if lacking not in "".join(merge)]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"loses.*some bytes of UTF-8"):
        load_tokenizer(path)


def test_added_tokens_take_no_spaces_away(tmp_path: Path) -> None:
    path = foreign(tmp_path / "t.json", ["<s>", "</s>"])
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens([AddedToken("<x>", lstrip=True, rstrip=True)])
    tokenizer.save(str(path))
    text = "a  <x>\n b"
    assert Tokenizer.from_file(str(path)).decode(tokenizer.encode(text).ids) != text
    kept = load_tokenizer(path)
    assert kept.decode(kept.encode(text).ids) == text


def test_nfc_is_taken_and_other_normalizers_are_not(tmp_path: Path) -> None:
    nfc = load_tokenizer(foreign(tmp_path / "t.json", ["<s>", "</s>"], normalizer=normalizers.NFC()))
    assert normalized(nfc, "e\u0301") == "\u00e9"
    for other in (
        normalizers.NFKC(),
        normalizers.NFD(),
        normalizers.Sequence([normalizers.NFC(), normalizers.Strip()]),
    ):
        with pytest.raises(UserError, match="loses"):
            load_tokenizer(foreign(tmp_path / "t.json", ["<s>", "</s>"], normalizer=other))


def test_a_folder_stands_for_its_tokenizer(tokenizer_json: Path) -> None:
    assert tokenizer_file(tokenizer_json.parent) == tokenizer_file(tokenizer_json) == tokenizer_json


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_documents_that_do_not_come_back_are_found(tmp_path: Path, normalizer: object) -> None:
    tokenizer = load_tokenizer(foreign(tmp_path / "t.json", ["<s>", "</s>"], normalizer=normalizer))
    texts = ["春", "<s>a</s>", "e\u0301", "", "</s>", "a  b", "x"]
    encoded = encode_texts(tokenizer, texts)
    assert RoundTrip(tokenizer).changed(texts, *encoded) == []
    # the tokens of other texts: longer, shorter, of another kind
    others = ["春天", "<s>a</s>", "e\u0301", "", "</s>", "a b", "x "]
    assert RoundTrip(tokenizer).changed(others, *encoded) == [others[i] for i in (0, 5, 6)]


def test_without_a_byte_level_decoder_every_text_is_decoded(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(foreign(tmp_path / "t.json", ["<s>", "</s>"]))
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel()])
    assert RoundTrip(tokenizer).changed(["a", "c"], *encode_texts(tokenizer, ["a", "b"])) == ["c"]


def test_each_document_gets_the_marks_that_it_lacks(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(foreign(tmp_path / "t.json", ["<s>", "</s>"]))
    texts = ["", "x", "<s>", "x</s>", "", "", "<s>x</s>", "</s><s>"]
    ids, lengths = as_documents(*encode_texts(tokenizer, texts), *special_ids(tokenizer)[:2])
    parts = [tokenizer.decode(part.tolist(), skip_special_tokens=False) for part in np.split(ids, np.cumsum(lengths))]
    bare = ["<s></s>", "<s>x</s>"]
    assert parts == [*bare, "<s></s>", "<s>x</s>", "<s></s>", "<s></s>", "<s>x</s>", "<s></s><s></s>", ""]
