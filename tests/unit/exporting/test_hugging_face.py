"""Folders of earlier versions, brought up to date; and the model card."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from common.errors import UserError
from corpus.pipeline import prepare
from corpus.settings import PreparationSettings
from exporting import hugging_face
from exporting.hugging_face import complete
from exporting.model_card import MARK

Copied, EditJson = Callable[[str], Path], Callable[..., None]
ADDED = ("chat_template.jinja", "generation_config.json")


@pytest.fixture
def old(copied: Copied, edit_json: EditJson) -> Path:
    """A folder as the first version left it: no BOS, no template, no generation_config.json, no card."""
    folder = copied("top2")
    for name in ADDED:
        (folder / name).unlink()
    edit_json(folder / "tokenizer.json", lambda content: content.update(post_processor=None))
    edit_json(folder / "tokenizer_config.json", lambda content: content.update(add_bos_token=False))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_old_folder_gets_what_it_lacks(old: Path) -> None:
    before = contents(old)
    assert AutoTokenizer.from_pretrained(old)("山")["input_ids"][:1] != [1]
    lines = complete(old)
    after = contents(old)
    assert {name for name in after if after[name] != before.get(name)} == {
        *ADDED,
        "README.md",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert f"{old / 'tokenizer.json'}: written" in lines
    assert f"{old / 'special_tokens_map.json'}: as it was" in lines
    tokenizer = AutoTokenizer.from_pretrained(old)
    assert tokenizer("山")["input_ids"][:1] == [1]
    assert tokenizer.chat_template
    assert GenerationConfig.from_pretrained(old).eos_token_id == 2
    assert all(line.endswith("as it was") for line in complete(old))


def test_what_another_hand_wrote_stays(old: Path) -> None:
    (old / "README.md").write_text("mine")
    (old / "chat_template.jinja").write_text("{{ messages }}")
    lines = complete(old)
    assert (old / "README.md").read_text() == "mine"
    assert (old / "chat_template.jinja").read_text() == "{{ messages }}"
    assert f"{old / 'README.md'}: as it was" in lines


def diagnosis(temperature: float) -> dict[str, Any]:
    chosen = {"temperature": temperature, "top_p": 0.9, "repetition_penalty": 1.1, "loops": 0.0}
    grid = [{"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}, chosen]
    decoding = {"grid": grid, "best": 1, "sentence": "Best settings: these."}
    return {"verdict": {"headline": "The model is healthy."}, "decoding": decoding}


def test_the_sampling_that_the_diagnosis_found_best_is_taken(old: Path, tmp_path: Path) -> None:
    (tmp_path / "diagnosis.json").write_text(json.dumps(diagnosis(0.7)))
    complete(old, tmp_path / "diagnosis.json")
    config = GenerationConfig.from_pretrained(old)
    assert (config.do_sample, config.temperature, config.top_p, config.repetition_penalty) == (True, 0.7, 0.9, 1.1)
    card = (old / "README.md").read_text(encoding="utf-8")
    assert "The model is healthy.\n\nBest settings: these." in card
    (tmp_path / "diagnosis.json").write_text(json.dumps(diagnosis(0)))
    complete(old, tmp_path / "diagnosis.json")
    assert GenerationConfig.from_pretrained(old).do_sample is False


def test_sampling_settings_without_a_diagnosis_stay(old: Path) -> None:
    (old / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.5}')
    complete(old)
    found = json.loads((old / "generation_config.json").read_text())
    assert (found["temperature"], found["bos_token_id"]) == (0.5, 1)


def test_bad_input_is_one_sentence(old: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(UserError, match=r"other.json is no output of diagnose.py --json: give that file"):
        complete(old, tmp_path / "other.json")
    (old / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json is missing"):
        complete(old)


def test_a_full_disk_leaves_every_file_as_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(old)
    written: list[Path] = []
    real = Path.write_text

    def full(path: Path, text: str, **options: Any) -> int:
        if path.parent == old and len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.extend([path] if path.parent == old else [])
        return real(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(
        UserError, match=r"could not be written \(No space left on device\): every file there is as it was"
    ):
        complete(old)
    assert contents(old) == before


# --- the card of a run ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(copied: Copied, tmp_path: Path) -> Path:
    """A run's folder with records as training leaves them."""
    folder = tmp_path / "my-run"
    folder.mkdir()
    copied("top2").rename(folder / "model")
    figures = {"repetition": 0.021, "true_repetition": 0.019, "loops": 0.25, "true_loops": 0.0}
    rows = [
        {"step": step, "split": "val", "tokens": 4096 * step, "loss": loss, "bits_per_byte": loss / 3, **figures}
        for step, loss in ((0, 6.0), (10, 4.5), (20, 3.25), (30, 3.5))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps({"flags": {"max_seq_len": 64}, "corpus": "nowhere"}))
    summary = {"reason": "finished", "total_steps": 30, "seconds": 90.0, "best_step": 20, "best_val_loss": 3.25}
    (folder / "summary.json").write_text(json.dumps(summary))
    optimizer = {"type": "AdamW", "params": {"lr": 2e-4}}
    config = {"train_batch_size": 8, "optimizer": optimizer, "bf16": {"enabled": True}, "gradient_clipping": 1.0}
    (folder / "ds_config.json").write_text(json.dumps(config))
    return folder


def test_the_card_says_what_the_run_recorded(run: Path) -> None:
    complete(run / "model")
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    for line in (
        "# my-run",
        MARK,
        "| optimizer | AdamW (lr 0.0002) |",
        "| batch | 8 rows of 64 tokens |",
        "| precision | bf16, ZeRO-0 |",
        "| time | 1.5 minutes of training |",
        "| 20 (these weights) | 81,920 | 3.250 | 1.083 |",
        "| 4-grams that repeat an earlier one of the text | 2.1% | 1.9% |",
        "| texts that end in a loop, greedy decoding | 25.0% | 0.0% |",
        "- vLLM (not tried): `vllm serve FOLDER`",
    ):
        assert line in card.splitlines(), line
    assert str(run.parent) not in card  # it is published: no paths of a machine


def test_the_card_of_a_run_without_validation_text_claims_no_ratio(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "春眠不觉晓，处处闻啼鸟。"}))
    settings = PreparationSettings(vocab_size=300, val_fraction=0)
    prepare([tmp_path / "a.jsonl"], tmp_path / "corpus", settings, progress=None)
    (run / "run.json").write_text(json.dumps({"flags": {"max_seq_len": 64}, "corpus": str(tmp_path / "corpus")}))
    complete(run / "model")
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "| validation (held out) | 0 | 0.0 MB | 0 |  |" in card.splitlines()


def test_training_leaves_a_card_but_never_replaces_one_of_another_hand(run: Path) -> None:
    from model import load_model

    config = load_model(run / "model").config
    hugging_face.write_card(run / "model", run, config)
    card = run / "model" / "README.md"
    assert "# my-run" in card.read_text(encoding="utf-8")
    card.write_text("mine")
    hugging_face.write_card(run / "model", run, config)
    assert card.read_text() == "mine"


def test_the_data_and_its_baselines_are_in_the_card(run: Path, tmp_path: Path) -> None:
    from corpus.pipeline import prepare
    from corpus.settings import PreparationSettings
    from sample_stories import generate_stories

    lines = (json.dumps({"text": story}) + "\n" for story in [*generate_stories(300, seed=4), "重复" * 200])
    (tmp_path / "stories.jsonl").write_text("".join(lines))
    settings = PreparationSettings(vocab_size=300, val_fraction=0.1)
    prepare([tmp_path / "stories.jsonl"], tmp_path / "corpus", settings, workers=1, progress=None)
    (run / "run.json").write_text(json.dumps({"flags": {"max_seq_len": 64}, "corpus": str(tmp_path / "corpus")}))
    complete(run / "model")
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "language: [zh]" in card
    assert "- Tokenizer: byte-level BPE, 300 entries." in card
    assert "- Documents that repeat themselves: 1 left out." in card
    assert "| trigram | " in card
    assert str(tmp_path) not in card


def test_the_card_says_that_a_model_was_taught_to_answer(run: Path, tmp_path: Path) -> None:
    turns = ({"role": "user", "content": f"{n} 加一是多少？"} for n in range(40))
    answers = ({"role": "assistant", "content": f"是 {n + 1}。"} for n in range(40))
    chats = (json.dumps({"messages": pair}) + "\n" for pair in zip(turns, answers, strict=True))
    (tmp_path / "chats.jsonl").write_text("".join(chats))
    settings = PreparationSettings(vocab_size=300, val_fraction=0.1)
    prepare([tmp_path / "chats.jsonl"], tmp_path / "corpus", settings, workers=1, progress=None)
    flags = {"max_seq_len": 64, "init_from": "base"}
    (run / "run.json").write_text(json.dumps({"flags": flags, "corpus": str(tmp_path / "corpus")}))
    complete(run / "model")
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "It was taught to answer questions, by the conversations in its training text." in card.splitlines()
    assert "not taught" not in card and "The questions of conversations do not count." in card.splitlines()
    assert "prompt = tokenizer.apply_chat_template(" in card and "从前" not in card
