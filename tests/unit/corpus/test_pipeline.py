"""prepare(): the split, the packed stream, the manifest, and what happens when it fails."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corpus_data import fingerprint, make_texts, prepare, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from common.errors import UserError
from common.files import printable
from corpus import pipeline, reader
from corpus.manifest import Manifest
from corpus.shards import Corpus
from corpus.split import HashSubset, document_digest

ROOT = Path(__file__).resolve().parents[3]


def ids_of(folder: Path, split: str) -> np.ndarray:
    """All ids of a split, read without the project's code."""
    shards = [np.fromfile(path, "<u2") for path in sorted(folder.glob(f"{split}-*.bin"))]
    return np.concatenate([np.empty(0, "<u2"), *shards])


def documents_of(folder: Path, split: str) -> list[str]:
    """The documents of a split, cut at BOS and EOS; texts with those inside would be cut too."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = ids_of(folder, split).tolist()
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert not ids or (ids[0] == 1 and ids[-1] == 2)
    return text[len("<|im_start|>") : -len("<|im_end|>")].split("<|im_end|><|im_start|>") if ids else []


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_stream_gives_back_every_document_once(jsonl, tmp_path: Path) -> None:
    texts = make_texts(300)
    sources = [jsonl(texts[:100], "a.jsonl"), jsonl(texts[100:], "b.jsonl")]
    prepare(sources, tmp_path / "out", val_fraction=0)
    assert documents_of(tmp_path / "out", "train") == texts
    assert documents_of(tmp_path / "out", "val") == []


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: "<|" not in text and not text.isspace()
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXT, min_size=1), shard_tokens=st.integers(1, 50), fraction=st.sampled_from([0.0, 0.3]))
def test_packing_loses_nothing(
    tmp_path_factory, tokenizer_json: Path, texts: list[str], shard_tokens: int, fraction: float
) -> None:
    folder = tmp_path_factory.mktemp("packing")
    source = write_jsonl(folder / "in.jsonl", texts)
    try:
        manifest = prepare(
            [source],
            folder / "out",
            tokenizer=tokenizer_json,
            val_fraction=fraction,
            shard_tokens=shard_tokens,
        )
    except UserError as error:
        assert "no document is left to train on" in str(error) and fraction
        return
    train, val = (documents_of(folder / "out", split) for split in ("train", "val"))
    assert sorted(train + val) == sorted(set(texts))
    assert all(shard.tokens == shard_tokens for shard in manifest.splits["train"].shards[:-1])


def test_split_is_by_content_in_any_order_and_company(jsonl, tmp_path: Path, tokenizer_json: Path) -> None:
    texts = make_texts(400)
    shuffled = random.Random(1).sample(texts, 400)
    for name, order in {"a": texts, "b": shuffled, "c": shuffled[:200]}.items():
        source = jsonl(order, f"{name}.jsonl")
        prepare([source], tmp_path / name, tokenizer=tokenizer_json, val_fraction=0.2)
    val = {name: set(documents_of(tmp_path / name, "val")) for name in "abc"}
    assert val["a"] == val["b"]
    assert val["c"] == val["a"] & set(shuffled[:200])
    assert 40 < len(val["a"]) < 120


def test_small_corpus_gets_its_smallest_hash_as_validation(jsonl, tmp_path: Path, tokenizer_json: Path) -> None:
    texts = ["一", "二", "三", "二"]
    smallest = min(texts, key=lambda text: document_digest(text.encode()))
    for dedup in ("exact", "none"):
        for order in (texts, texts[::-1]):
            out = tmp_path / f"{dedup}{order[0]}"
            source = jsonl(order, "in.jsonl")
            prepare([source], out, tokenizer=tokenizer_json, val_fraction=1e-9, dedup=dedup)
            assert set(documents_of(out, "val")) == {smallest}
            assert set(documents_of(out, "train")) == set(texts) - {smallest}


def test_tokenizer_never_sees_validation_documents(jsonl, tmp_path: Path) -> None:
    common = make_texts(50)
    held_out = [text.replace("第", "垚焱") for text in make_texts(50)]
    out = tmp_path / "out"
    prepare([jsonl(common + held_out)], out, val_inputs=[jsonl(held_out, "val.jsonl")], vocab_size=500)
    vocabulary = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert len(vocabulary.encode("第").ids) == 1
    assert len(vocabulary.encode("垚焱").ids) == 6


def test_tokenizer_does_not_see_the_document_moved_to_validation(jsonl, tmp_path: Path) -> None:
    manifest = prepare([jsonl(make_texts(8))], tmp_path / "out", vocab_size=300, val_fraction=1e-9)
    train = manifest.splits["train"]
    assert manifest.splits["val"].documents == 1
    assert f"trained on the 7 training documents ({train.bytes:,} bytes)" in manifest.tokenizer_source


def test_val_files_take_their_documents_from_train(jsonl, tmp_path: Path, tokenizer_json: Path) -> None:
    texts, val = make_texts(50), [*make_texts(10), "only here", "only here"]
    source, held_out = jsonl(texts), jsonl(val, "val.jsonl")
    for dedup in ("exact", "none"):
        out = tmp_path / dedup
        manifest = prepare([source], out, tokenizer=tokenizer_json, val_inputs=[held_out], dedup=dedup)
        assert documents_of(out, "train") == [text for text in texts if text not in val]
        assert documents_of(out, "val") == (val if dedup == "none" else val[:-1])
        assert (manifest.dropped_in_val, manifest.exact_duplicates) == (10, 1)


def test_manifest_numbers_are_true(jsonl, tmp_path: Path) -> None:
    texts = make_texts(200)
    source = jsonl([*texts, texts[3], texts[5], texts[3], ""])
    out = tmp_path / "out"
    returned = prepare([source], out, val_fraction=0.1, vocab_size=350, shard_tokens=500)
    manifest = Manifest.read(out)
    assert manifest == returned
    assert manifest.exact_duplicates == 3
    assert manifest.skipped == {"empty_text": 1}
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert manifest.vocab_size == tokenizer.get_vocab_size() == 350
    assert manifest.tokenizer_sha256 == hashlib.sha256((out / "tokenizer.json").read_bytes()).hexdigest()
    for name, split in manifest.splits.items():
        documents = documents_of(out, name)
        assert split.documents == len(documents) > 0
        assert split.characters == sum(map(len, documents))
        assert split.bytes == sum(len(d.encode()) for d in documents)
        assert split.tokens == sum(len(tokenizer.encode(d).ids) + 2 for d in documents)
        assert split.characters_per_token == pytest.approx(split.characters / split.tokens, abs=1e-4)
        for shard in split.shards:
            data = (out / shard.file).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (2 * shard.tokens, shard.sha256)
    counts = Counter(ids_of(out, "train").tolist())
    total = sum(counts.values())
    entropy = -sum(n / total * math.log(n / total) for n in counts.values())
    assert manifest.entropy_nats == pytest.approx(entropy, abs=1e-6)
    assert manifest.settings["val_fraction"] == 0.1 and manifest.settings["dedup"] == "exact"


def test_any_number_of_workers_gives_the_same_bytes(jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "IN_PROCESS_BYTES", 0)
    monkeypatch.setattr(reader.read_chunks, "__defaults__", (4000,))  # several chunks
    sources = [jsonl(make_texts(900)), jsonl([*make_texts(900, seed=1), *make_texts(50)], "b.jsonl")]
    for workers in (1, 3):
        out = tmp_path / str(workers)
        prepare(sources, out, vocab_size=300, workers=workers, shard_tokens=10_000, val_fraction=0.1, dedup="near")
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_worker_error_reaches_the_caller(jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "IN_PROCESS_BYTES", 0)
    source = jsonl(make_texts(20))

    def grow(*_: object) -> str:  # between the two passes
        with source.open("a") as file:
            file.write('{"text": "late"}\n')
        return make_tokenizer(*_)

    make_tokenizer = pipeline._Preparation._make_tokenizer
    monkeypatch.setattr(pipeline._Preparation, "_make_tokenizer", grow)
    with pytest.raises(UserError, match=r"input\.jsonl: changed while it was read"):
        prepare([source], tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()


def test_bad_lines_within_the_share_are_reported(jsonl, tmp_path: Path, tokenizer_json: Path) -> None:
    source = jsonl(make_texts(200))
    with source.open("a") as file:
        file.write('{"txt": 1}\n\n{"text"\n')
    said = io.StringIO()
    manifest = prepare([source], tmp_path / "out", tokenizer=tokenizer_json, progress=said)
    lines = [f'{source}:201: no key "text"', f"{source}:203: broken JSON"]
    assert manifest.bad_lines == lines
    assert manifest.skipped == {"broken_json": 1, "missing_text": 1}
    assert "skipped 2 of 202 lines" in said.getvalue() and lines[1] in said.getvalue()
    assert "200 documents" in said.getvalue() and "B/s" in said.getvalue()


def test_too_many_bad_lines_name_the_first_ten(jsonl, tmp_path: Path, tokenizer_json: Path) -> None:
    source = jsonl(make_texts(97))
    source.write_bytes(b'{"text": 1}\n' * 2 + source.read_bytes() + b"{\n" * 12)
    for share, passes in ((0.12, False), (0.13, True)):
        arguments = {"tokenizer": tokenizer_json, "max_bad_share": share}
        if passes:
            assert sum(prepare([source], tmp_path / "out", **arguments).skipped.values()) == 14
            continue
        with pytest.raises(
            UserError, match=r"14 of 111 .*\(12\.61%\).*--max_bad_share 0\.12.* give prepare.py a higher"
        ) as caught:
            prepare([source], tmp_path / "out", **arguments)
        named = str(caught.value).splitlines()[1:]
        assert [line.split(": ")[0].rsplit(":")[-1] for line in named] == ["1", "2", *map(str, range(100, 108))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dedup": "fuzzy"}, "--dedup fuzzy: must be none, exact or near"),
        ({"vocab_size": 100}, "--vocab_size 100: must be from 259 to 65,536"),
        ({"val_fraction": 1.0}, "--val_fraction 1.0: must be at least 0 and below 1"),
        ({"max_bad_share": 2}, "--max_bad_share 2: must be from 0 to 1"),
        ({"shard_tokens": 0}, "--shard_tokens 0: must be at least 1"),
        ({"workers": 0}, "--workers 0: must be at least 1"),
        ({"val_inputs": [Path("none.jsonl")]}, "none.jsonl: no such file"),
        ({"tokenizer": Path("none.json")}, "none.json: cannot be read"),
        ({"inputs": []}, "--input: give at least one"),
        ({"inputs": [Path("docs/images")]}, "docs/images: no such file"),
        ({"inputs": ["empty"]}, "empty.jsonl; each line should be"),
        ({"val_inputs": ["empty"]}, "empty.jsonl; each line should be"),
        ({"val_fraction": 0.999999}, "no document is left to train on"),
        ({"val_inputs": ["good"]}, "3 are in --val_input too"),
        ({"val_inputs": ["alike"], "dedup": "near"}, "3 are near to validation documents"),
    ],
)
def test_each_bad_setting_has_its_sentence(jsonl, tmp_path: Path, change: dict, message: str) -> None:
    texts = make_texts(3)
    files = {
        "empty": jsonl(["", ""], "empty.jsonl"),
        "good": jsonl(texts),
        "alike": jsonl([f"{text}。" for text in texts], "alike.jsonl"),
    }
    arguments = {"inputs": ["good"], **change}
    for key in ("inputs", "val_inputs"):
        arguments[key] = [files.get(path, path) for path in arguments.get(key, [])]
    with pytest.raises(UserError) as caught:
        prepare(output=tmp_path / "out", **arguments)
    assert message in str(caught.value)
    assert not list(tmp_path.glob("*out*"))


def test_all_bad_settings_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        prepare([tmp_path / "none"], tmp_path / "out", dedup="x", workers=0)
    assert len(str(caught.value).splitlines()) == 3


def test_second_run_reuses_and_a_changed_one_does_not(jsonl, tmp_path: Path, tokenizer_json: Path) -> None:
    source, out = jsonl(make_texts(50)), tmp_path / "out"

    def run(**changes) -> str:
        said = io.StringIO()
        arguments = {"tokenizer": tokenizer_json, "progress": said, **changes}
        manifest = prepare(arguments.pop("inputs", [source]), out, **arguments)
        arguments.pop("progress")
        arguments.pop("workers", None)
        assert manifest == Manifest.read(out)
        assert manifest.fingerprint == fingerprint([source], **arguments)
        return "reused" if "reused" in said.getvalue() else "made"

    assert run() == "made"
    inode = (out / "manifest.json").stat().st_ino
    assert run() == run(workers=1) == "reused"
    moved = source.rename(tmp_path / "moved.jsonl")
    source.write_bytes(moved.read_bytes())
    assert run(inputs=[moved]) == "reused"
    assert (out / "manifest.json").stat().st_ino == inode
    assert run(dedup="none") == "made"
    assert run(tokenizer=None, vocab_size=300) == "made"
    shard = out / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    assert run(tokenizer=None, vocab_size=300) == "made"
    Corpus.open(out)
    source.write_bytes(moved.read_bytes() + b'{"text": "one more"}\n')
    assert run() == "made"


def test_failed_run_leaves_the_old_folder_as_it_was(jsonl, prepared: Path, tokenizer_json: Path, monkeypatch) -> None:
    before = contents(prepared)
    bad = jsonl(["好"] * 3, "bad.jsonl")
    bad.write_text(bad.read_text() + "{")
    with pytest.raises(UserError):
        prepare([bad], prepared, tokenizer=tokenizer_json)
    assert {path.name for path in prepared.parent.iterdir()} == {"prepared", "input.jsonl", "bad.jsonl"}
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); the same command contin"):
            prepare([jsonl(make_texts(5))], prepared, tokenizer=tokenizer_json)
    assert contents(prepared) == before
    prepare([jsonl(make_texts(5))], prepared, tokenizer=tokenizer_json)
    assert {path.name for path in prepared.parent.iterdir()} == {"prepared", "input.jsonl", "bad.jsonl"}


def test_folder_with_other_files_is_not_replaced(jsonl, prepared: Path, tokenizer_json: Path) -> None:
    (prepared / "notes.txt").write_text("mine")
    source = jsonl(make_texts(5))
    with pytest.raises(UserError, match=r"prepared: holds other files \(notes\.txt\)"):
        prepare([source], prepared, tokenizer=tokenizer_json)
    with pytest.raises(UserError, match="is a file"):
        prepare([source], source, tokenizer=tokenizer_json)


@given(st.lists(st.integers(0, 60), max_size=40), st.integers(0, 300), st.randoms())
def test_tokenizer_sample_depends_on_no_order(sizes: list[int], budget: int, rng: random.Random) -> None:
    documents = [(document_digest(bytes([i])), str(i), size) for i, size in enumerate(sizes)]
    expected, total = [], 0
    for _, text, size in sorted(documents):
        if total >= budget:
            break
        expected.append(text)
        total += size
    offered = documents + documents[:5]
    rng.shuffle(offered)
    subset = HashSubset(budget)
    for document in offered:
        subset.add(*document)
    assert (subset.texts(), subset.size) == (expected, total)


def run_script(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "prepare.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_command_line(jsonl, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(gzip.compress(jsonl(make_texts(100)).read_bytes()))
    done = run_script("--input", "in.jsonl.gz", "--output", "deep/out", "--vocab_size", 300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "train 99 documents" in said and "tokenizer 300 entries" in said
    assert Corpus.open(tmp_path / "deep" / "out").manifest.splits["val"].documents == 1
    failed = run_script("--input", "nowhere.jsonl", "--output", "out", cwd=tmp_path)
    assert (failed.returncode, failed.stderr) == (2, "nowhere.jsonl: no such file\n")


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [("prepare", "torch transformers"), ("corpus.workers corpus.scan corpus.packing", "torch transformers pydantic")],
)
def test_neither_script_nor_workers_import_what_is_slow(modules: str, unwanted: str) -> None:
    check = f"import sys, {', '.join(modules.split())}; sys.exit(bool({unwanted.split()} & sys.modules.keys()))"
    check = check.replace("['", "{'").replace("']", "'}")
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


def test_an_interrupted_run_leaves_what_it_has_done_and_no_worker(jsonl, tmp_path: Path) -> None:
    jsonl((text * 40 for text in make_texts(15_000)), "big.jsonl")
    command = [sys.executable, ROOT / "prepare.py", "--input", "big.jsonl", "--output", "out", "--workers", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not (workers := children(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(workers) > 0 and list(tmp_path.glob(".out.partial-*"))
    time.sleep(0.7)
    process.send_signal(signal.SIGTERM)  # which acts as Ctrl-C does
    _, said = process.communicate(timeout=90)
    assert process.returncode == 130 and "continues from here" in said and "Traceback" not in said, said
    assert not (tmp_path / "out").exists() and list(tmp_path.glob(".out.partial-*/lock-1-of-1"))
    deadline = time.monotonic() + 20  # a worker ends with the task that it is at
    while any(os.path.exists(f"/proc/{worker}") for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{worker}") for worker in workers)


def children(pid: int) -> list[int]:
    """The child processes of a process (Linux)."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def test_a_name_that_is_not_utf8_is_prepared(tmp_path: Path) -> None:
    """As an archive packed on a Chinese Windows leaves it on Linux: GBK bytes."""
    source = tmp_path / os.fsdecode("中文.jsonl".encode("gbk"))
    write_jsonl(source, [*make_texts(40), ""])
    with open(source, "ab") as file:
        file.write(b"broken\n")
    manifest = prepare([source], tmp_path / "out", vocab_size=300, workers=1, max_bad_share=0.5)
    assert Manifest.read(tmp_path / "out") == manifest
    assert manifest.inputs[0].file == printable(source.name)
    assert manifest.bad_lines[0].startswith(printable(source))


def test_a_folder_by_the_name_of_a_shard_is_not_deleted(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", make_texts(40))
    prepare([source], tmp_path / "out", vocab_size=300, workers=1)
    (tmp_path / "out" / "train-00001.bin").mkdir()
    (tmp_path / "out" / "train-00001.bin" / "thesis.tex").write_text("three years")
    with pytest.raises(UserError, match=r"holds other files \(train-00001\.bin\)"):
        prepare([source], tmp_path / "out", vocab_size=400, workers=1)
    assert (tmp_path / "out" / "train-00001.bin" / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "file/out"])
def test_an_impossible_output_is_refused(tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / "file", make_texts(40))
    with pytest.raises(UserError, match=r"cannot be the output|is a file"):
        prepare([tmp_path / "file"], tmp_path / name, vocab_size=300, workers=1)


def test_a_tokenizer_that_panics_on_a_long_text_is_a_sentence(tmp_path: Path, tokenizer_json: Path) -> None:
    """Its expression takes for ever; the library gives up after ten million steps."""
    content = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    split = {"type": "Split", "pattern": {"Regex": "(a+)+b|(天|天)*$"}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}
    (tmp_path / "t.json").write_text(json.dumps(content), encoding="utf-8")
    source = write_jsonl(tmp_path / "a.jsonl", [*make_texts(40), "天" * 3000 + "地" + "a" * 3000])
    with pytest.raises(UserError, match=r"the tokenizer cannot encode the text; take another"):
        prepare([source], tmp_path / "out", tokenizer=tmp_path / "t.json", workers=1, repetition="keep")


def test_a_pipe_has_no_fingerprint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe: cannot be read \(a pipe or a device, not a file\)"):
        fingerprint([tmp_path / "pipe"])
