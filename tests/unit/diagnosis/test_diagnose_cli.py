"""diagnose.py end to end: on a run of ours, on a folder of transformers', on what is broken, in both languages."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import diagnose
from common.errors import UserError
from common.training_text import TrainingText
from corpus.pipeline import prepare
from corpus.settings import PreparationSettings
from corpus.shards import Corpus
from corpus.tokenizer import write_hf_tokenizer
from diagnosis.diagnosis import _note_state
from diagnosis.inputs import Reporter
from diagnosis.models import load_model_under_test
from diagnosis.report.messages import Messages
from evaluation.run_record import RunRecord
from model import CausalLM, ModelConfig, save_model
from model.init import init_weights
from sample_stories import generate_stories

SEQ_LEN, STEPS = 64, 24
KEYS = {
    "version",
    "language",
    "subject",
    "verdict",
    "ladder",
    "repetition",
    "causes",
    "offsets",
    "curves",
    "expert_load",
    "samples",
    "decoding",
    "figures",
    "corpus",
    "alarms",
    "preflight",
    "notes",
}
CURVES = {
    "train_loss",
    "val_loss",
    "lr",
    "grad_norm",
    "loss_scale",
    "repetition",
    "true_repetition",
    "loops",
    "update_ratio",
    "unchanged",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with stories, their corpus, and a run of a few steps on it."""
    folder = tmp_path_factory.mktemp("diagnosis")
    lines = (json.dumps({"text": story}, ensure_ascii=False) for story in generate_stories(500, seed=3))
    (folder / "stories.jsonl").write_text("\n".join(lines), encoding="utf-8")
    prepare(
        [folder / "stories.jsonl"],
        folder / "corpus",
        PreparationSettings(vocab_size=400, val_fraction=0.05),
        workers=1,
        progress=None,
    )
    train(folder / "run", Corpus.open(folder / "corpus"))
    return folder


def train(folder: Path, corpus: Corpus) -> None:
    """What train.py would leave behind, made in this process."""
    manifest = corpus.manifest
    config = ModelConfig(
        vocab_size=manifest.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        moe_intermediate_size=32,
        bos_token_id=manifest.bos_id,
        eos_token_id=manifest.eos_id,
        pad_token_id=manifest.pad_id,
        max_position_embeddings=128,
    )
    model = CausalLM(config)
    init_weights(model, config, 42)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train, val = corpus.split("train"), corpus.split("val")
    metrics = [{"step": 0, "split": "val", "tokens": 0, "loss": loss_on(model, val)}]
    for step in range(1, STEPS + 1):
        ids = torch.from_numpy(train.batch(range(8 * step, 8 * step + 8), SEQ_LEN))
        loss = model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        metrics.append(
            {
                "step": step,
                "split": "train",
                "tokens": 512 * step,
                "loss": loss.item(),
                "lr": 1e-2,
                "grad_norm": 1.0,
                "expert_load": [[0.25] * 4] * 2,
            }
        )
    best = loss_on(model, val)
    metrics.append({"step": STEPS, "split": "val", "tokens": 512 * STEPS, "loss": best})
    save_model(folder / "model", config, dict(model.named_parameters()))
    write_hf_tokenizer(corpus.tokenizer_path, folder / "model")
    write(folder / "metrics.jsonl", "\n".join(map(json.dumps, metrics)) + '\n{"step": 99, "half a li')
    write(folder / "samples.jsonl", json.dumps({"step": 9, "prompt": "有一天", "text": "下雨"}) + "\n")
    write(folder / "summary.json", json.dumps({"best_step": STEPS, "best_val_loss": best, "total_steps": STEPS}))
    write(
        folder / "run.json",
        json.dumps({"flags": {"seed": 42, "max_seq_len": SEQ_LEN, "eval_tokens": 0}, "corpus": str(corpus.folder)}),
    )


def loss_on(model, stream):
    ids = torch.from_numpy(stream.batch(range(stream.num_rows(SEQ_LEN)), SEQ_LEN))
    with torch.no_grad():
        return model.loss_sum(ids[:, :-1], ids[:, 1:]).item() / ids[:, 1:].numel()


def write(path, text):
    path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def stranger(place):
    """A transformers model of another family, random weights, with a tokenizer of its own."""
    transformers = pytest.importorskip("transformers")
    folder = place / "stranger"
    prepare([place / "stories.jsonl"], place / "other", PreparationSettings(vocab_size=300), workers=1, progress=None)
    write_hf_tokenizer(place / "other" / "tokenizer.json", folder)
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=96,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


def result(tmp_path, *arguments):
    """The object that --json writes."""
    file = tmp_path / "out.json"
    assert diagnose.main([*map(str, arguments), "--json", str(file)]) == 0
    return json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [value] if isinstance(value, float) else []


def test_a_run_gives_the_whole_object(place, tmp_path, capsys):
    found = result(tmp_path, "--checkpoint", place / "run")
    assert set(found) == KEYS and set(found["curves"]) == CURVES
    assert all(map(math.isfinite, numbers(found)))
    assert [row["name"] for row in found["ladder"]["rungs"]] == ["uniform", "unigram", "bigram", "trigram"]
    assert [row["who"] for row in found["repetition"]] == ["true", "sampled", "greedy"]
    assert [row["offset"] for row in found["offsets"]] == [0, 1, 2, 3]
    assert found["subject"]["kind"] == "run" and found["subject"]["step"] == STEPS
    assert len(found["decoding"]["grid"]) >= 6 and 0 <= found["decoding"]["best"] < len(found["decoding"]["grid"])
    assert len(found["curves"]["train_loss"]) == STEPS and len(found["expert_load"]["layers"]) == 2
    assert found["samples"] == [{"step": 9, "prompt": "有一天", "text": "下雨"}]
    assert found["corpus"]["documents"] > 0
    shown = capsys.readouterr()
    assert found["verdict"]["headline"] in " ".join(shown.out.split())
    assert "Warning" not in shown.err


def test_the_recomputed_loss_is_the_recorded_one(place, tmp_path):
    found = result(tmp_path, "--checkpoint", place / "run", "--quick")
    recorded = json.loads((place / "run" / "summary.json").read_text())["best_val_loss"]
    assert found["ladder"]["model"]["nats"] == pytest.approx(recorded, abs=1e-4)
    assert found["decoding"] is None
    assert "evaluation_differs" not in [cause["id"] for cause in found["causes"]]


def test_a_recorded_loss_of_another_model_is_noticed(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    record = json.loads((place / "run" / "summary.json").read_text())
    write(tmp_path / "run" / "summary.json", json.dumps(record | {"best_val_loss": record["best_val_loss"] + 0.4}))
    found = result(tmp_path, "--checkpoint", tmp_path / "run", "--quick")
    assert "evaluation_differs" in [cause["id"] for cause in found["causes"]]


def test_chinese_from_end_to_end(place, tmp_path, capsys):
    found = result(tmp_path, "--checkpoint", place / "run", "--quick", "--lang", "zh")
    said = [
        found["verdict"]["headline"],
        found["ladder"]["sentence"],
        *(row["label"] for row in found["repetition"]),
        *(row["label"] for row in found["ladder"]["rungs"]),
    ]
    said += [text for cause in found["causes"] for text in (cause["title"], cause["next"], *cause["evidence"])]
    assert found["language"] == "zh"
    assert all(re.search(r"[\u4e00-\u9fff]", text) for text in said)
    assert "原因" in capsys.readouterr().out or not found["causes"]


def test_an_encoder_is_no_causal_model(stranger, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "encoder"
    shutil.copytree(stranger, folder)
    (folder / "model.safetensors").unlink()
    shape = transformers.BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    shape.initializer_range = 0.2
    transformers.BertForMaskedLM(shape).save_pretrained(folder)
    with pytest.raises(UserError, match=r"encoder: the model looks at the tokens that follow.*causal language model"):
        load_model_under_test(folder, "cpu")


def test_our_model_with_an_output_layer_of_its_own_is_judged_through_transformers(place, tmp_path):
    pytest.importorskip("transformers")
    shutil.copytree(place / "run" / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["lm_head.weight"] = 2 * weights["model.embed_tokens.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | {"tie_word_embeddings": False}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="does not hold the weights"):  # nobody but us can have changed it
        load_model_under_test(tmp_path / "model", "cpu")
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"transformers_version": "5.0.0"}))
    found, ours = (load_model_under_test(path, "cpu") for path in (tmp_path / "model", place / "run" / "model"))
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.allclose(found.logits(ids), 2 * ours.logits(ids), atol=1e-3)


def test_a_transformers_model_on_text(place, stranger, tmp_path, capsys):
    found = result(tmp_path, "--checkpoint", stranger, "--data", place / "stories.jsonl")
    assert set(found) == KEYS
    assert found["subject"]["kind"] == "huggingface" and found["subject"]["vocab_size"] == 300
    assert found["ladder"]["model"]["nats"] == pytest.approx(math.log(300), abs=0.3)  # random weights
    assert found["causes"][0]["id"] == "not_learning"
    assert "train.py" not in found["causes"][0]["next"]  # nobody here has trained it
    assert len(found["decoding"]["grid"]) >= 6
    shown = capsys.readouterr()
    assert all(line.startswith("...") for line in shown.err.splitlines()), shown.err


def test_a_transformers_model_on_a_corpus_of_another_tokenizer(place, stranger, tmp_path):
    found = result(tmp_path, "--checkpoint", stranger, "--data", place / "corpus", "--quick")
    assert found["ladder"]["rungs"][0]["nats"] == pytest.approx(math.log(300))
    assert found["corpus"]["documents"] > 0


def test_our_own_model_folder_without_its_run(place, tmp_path):
    shutil.copytree(place / "run" / "model", tmp_path / "moved")
    found = result(tmp_path, "--checkpoint", tmp_path / "moved", "--data", place / "corpus", "--quick")
    assert found["subject"]["kind"] == "huggingface" and found["curves"]["train_loss"] == []
    inside = result(tmp_path, "--checkpoint", place / "run" / "model", "--quick")
    assert inside["subject"]["kind"] == "run"  # the model of a run is judged with its run


def test_a_run_without_a_model_is_judged_by_its_records(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    write(tmp_path / "run" / "run.json", json.dumps(record | {"model": {"vocab_size": 400}}))
    found = result(tmp_path, "--checkpoint", tmp_path / "run")
    assert found["repetition"] == [] and found["offsets"] == []
    assert found["verdict"]["parrots"] is None and found["verdict"]["healthy"] is not True
    assert found["ladder"]["model"]["nats"] > 0
    assert any("no saved model" in text.lower() or "no model/" in text.lower() for text in found["notes"])


def test_characters_that_the_training_text_never_had_are_noted(tmp_path):
    (tmp_path / "model").mkdir()
    TrainingText(characters="小明", unused_tokens=[]).write(tmp_path / "model")
    reporter = Reporter(Messages("en"), lambda _: None)
    _note_state(RunRecord(tmp_path, samples=[{"prompt": "小猫 和明"}]), reporter)
    assert len(reporter.notes) == 1 and reporter.notes[0].endswith(": 猫、和")


def test_a_model_that_is_not_finite_has_diverged(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    from model import load_model

    model = load_model(tmp_path / "run" / "model")
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    save_model(tmp_path / "run" / "model", model.config, dict(model.named_parameters()))
    found = result(tmp_path, "--checkpoint", tmp_path / "run")
    assert found["causes"][0]["id"] == "diverged"
    # it could not write, so nobody knows whether it parrots
    assert found["verdict"]["parrots"] is None and found["verdict"]["healthy"] is False
    assert "not known" in found["verdict"]["headline"] and "held-out" not in found["ladder"]["sentence"]


def test_html_is_one_page(place, tmp_path):
    assert diagnose.main(["--checkpoint", str(place / "run"), "--quick", "--html", str(tmp_path / "p.html")]) == 0
    assert "<html" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_json_alone_on_the_standard_output(place, capsys):
    assert diagnose.main(["--checkpoint", str(place / "run"), "--quick", "--json", "-"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == KEYS


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--checkpoint", "nowhere"], "does not exist"),
        (["--checkpoint", "{place}/stories.jsonl"], "is a file"),
        (["--checkpoint", "{place}"], "neither a run nor a model"),
        (["--checkpoint", "{place}/run", "--lang", "fr"], "give en or zh"),
        (["--checkpoint", "{place}/run", "--html", "{place}/none/x.html"], "no folder"),
        (["--checkpoint", "{place}/run", "--json", "{place}"], "is a folder"),
        (["--checkpoint", "{place}/run", "--json", ""], "is a folder"),
        (["--checkpoint", "{place}/run", "--data", "{place}/none"], "no such file"),
        (["--checkpoint", "{place}/run", "--device", "nonsense"], "--device"),
        (["--checkpoint", "{place}/run", "--device", "meta"], "--device meta"),
        (["--chekpoint", "x"], "--help"),
        (["--checkpoint", "{place}/stranger"], "--data is missing"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(place, stranger, capsys, arguments, says):
    assert diagnose.main([argument.format(place=place) for argument in arguments]) == 2
    error = capsys.readouterr().err.splitlines()
    assert says in error[-1] and "Traceback" not in "".join(error)


def test_text_that_is_none_is_refused(place, stranger, tmp_path, capsys):
    write(tmp_path / "empty.jsonl", '{"title": "no text"}\n')
    assert diagnose.main(["--checkpoint", str(stranger), "--data", str(tmp_path / "empty.jsonl")]) == 2
    write(tmp_path / "one.jsonl", '{"text": "一篇"}\n')
    assert diagnose.main(["--checkpoint", str(stranger), "--data", str(tmp_path / "one.jsonl")]) == 2
    assert "too few" in capsys.readouterr().err


def without_weights_of_a_layer(folder: Path) -> None:
    change_config(folder, num_hidden_layers=2)


def without_a_tokenizer(folder: Path) -> None:
    for file in folder.glob("token*"):
        file.unlink()


def with_a_larger_tokenizer(folder: Path) -> None:
    write_hf_tokenizer(folder.parent / "large" / "tokenizer.json", folder)


def with_half_a_config(folder: Path) -> None:
    write(folder / "config.json", '{"model_type": "llama", ')


def change_config(folder: Path, **changes: object) -> None:
    write(folder / "config.json", json.dumps(json.loads((folder / "config.json").read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (without_weights_of_a_layer, "the weights lack model.layers.1"),
        (without_a_tokenizer, "tokenizer"),
        (with_a_larger_tokenizer, "300 embeddings"),
        (with_half_a_config, "config.json is no JSON object"),
    ],
)
def test_a_damaged_model_folder_is_refused(place, stranger, tmp_path, capsys, damage, says):
    shutil.copytree(stranger, tmp_path / "damaged")
    prepare(
        [place / "stories.jsonl"], tmp_path / "large", PreparationSettings(vocab_size=420), workers=1, progress=None
    )
    damage(tmp_path / "damaged")
    assert diagnose.main(["--checkpoint", str(tmp_path / "damaged"), "--data", str(place / "stories.jsonl")]) == 2
    error = capsys.readouterr().err.splitlines()
    assert says in error[-1] and "Traceback" not in "".join(error)


@pytest.mark.parametrize(
    ("settings", "is_same_text"), [({"vocab_size": 420}, False), ({"val_fraction": 0.3}, False), ({}, True)]
)
def test_a_corpus_prepared_anew_is_not_the_runs_own(place, tmp_path, settings, is_same_text):
    """Its rows are others, so a recorded loss that differs proves nothing; a larger tokenizer has ids beyond V."""
    shutil.copytree(place / "run", tmp_path / "run")
    shutil.copytree(place / "corpus", tmp_path / "corpus")
    state = {"identity": {"corpus": Corpus.open(place / "corpus").manifest.fingerprint}}
    (tmp_path / "run" / "checkpoints" / "step-00000024").mkdir(parents=True)
    write(tmp_path / "run" / "checkpoints" / "step-00000024" / "run_state.json", json.dumps(state))
    write(
        tmp_path / "run" / "run.json",
        json.dumps(json.loads((place / "run" / "run.json").read_text()) | {"corpus": str(tmp_path / "corpus")}),
    )
    wanted = PreparationSettings(**{"vocab_size": 400, "val_fraction": 0.05} | settings)
    prepare([place / "stories.jsonl"], tmp_path / "corpus", wanted, workers=1, progress=None)
    found = result(tmp_path, "--checkpoint", tmp_path / "run", "--quick")
    assert "evaluation_differs" not in [cause["id"] for cause in found["causes"]]
    assert any("not the run's own" in note for note in found["notes"]) is not is_same_text


def test_a_healthy_run_is_not_accused_on_text_of_another_kind(place, tmp_path):
    lines = (json.dumps({"text": f"ZQ{number:07d}-XW{number * 7919 % 10007}"}) for number in range(3000))
    write(tmp_path / "numbers.jsonl", "\n".join(lines))
    record = json.loads((place / "run" / "summary.json").read_text())
    shutil.copytree(place / "run", tmp_path / "run")
    write(tmp_path / "run" / "summary.json", json.dumps(record | {"best_val_loss": 2.0}))
    found = result(tmp_path, "--checkpoint", tmp_path / "run", "--quick", "--data", tmp_path / "numbers.jsonl")
    assert [cause["id"] for cause in found["causes"]] == ["other_text"]


def test_a_corpus_that_was_moved_is_still_the_runs_own(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    state = {"identity": {"corpus": Corpus.open(place / "corpus").manifest.fingerprint}}
    (tmp_path / "run" / "checkpoints" / "step-00000024").mkdir(parents=True)
    write(tmp_path / "run" / "checkpoints" / "step-00000024" / "run_state.json", json.dumps(state))
    shutil.copytree(place / "corpus", tmp_path / "moved")
    found = result(tmp_path, "--checkpoint", tmp_path / "run", "--quick", "--data", tmp_path / "moved")
    assert not any("not the run's own" in note for note in found["notes"])


def test_shares_of_experts_that_are_none_are_passed_over(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps({"step": 1, "split": "train", "expert_load": [1, "half"]}) + "\n")
    assert diagnose.main(["--checkpoint", str(tmp_path / "run"), "--quick", "--html", str(tmp_path / "p.html")]) == 0


def test_code_in_a_model_folder_is_not_run(place, stranger, tmp_path, capsys):
    shutil.copytree(stranger, tmp_path / "bad")
    config = json.loads((stranger / "config.json").read_text())
    write(
        tmp_path / "bad" / "config.json",
        json.dumps(
            config
            | {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
        ),
    )
    write(tmp_path / "bad" / "evil.py", f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert diagnose.main(["--checkpoint", str(tmp_path / "bad"), "--data", str(place / "stories.jsonl")]) == 2
    assert not (tmp_path / "ran").exists()
    assert "never executed" in capsys.readouterr().err


def test_figures_alone(place, tmp_path, capsys):
    assert diagnose.main(["--checkpoint", str(place / "run"), "--figures", "--lang", "zh"]) == 0
    assert "最小对立对" in capsys.readouterr().out
    found = result(tmp_path, "--checkpoint", place / "run", "--figures")["figures"]
    assert found["minimal_pairs"]["all"]["pairs"] > 20
    assert 0 <= found["minimal_pairs"]["all"]["low"] < found["minimal_pairs"]["all"]["high"] <= 1
    # the buckets of both are the same text
    sizes = [sum(bucket["bytes"] for bucket in found[f"bits_per_byte_by_{key}"]) for key in ("position", "length")]
    assert sizes[0] == sizes[1] > 1000
