"""A pickle that would write a file if anything ran it, given wherever a user can give a file: refused, and not run."""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import diagnose
import generate
import prepare
from common.errors import UserError
from corpus.pipeline import prepare as make_corpus
from corpus.settings import PreparationSettings
from corpus.tokenizer import write_hf_tokenizer
from model import CausalLM, ModelConfig, save_model
from model.init import init_weights
from training import run
from training.checkpointing import checkpoint
from training.checkpointing.run_state import RunState


class Evil:
    """What unpickles to the opening of a file to write: the file is there afterwards."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that must not appear."""
    return tmp_path / "ran"


@pytest.fixture(params=["pickle", "torch.save", "torch.save without zip"])
def evil(request: pytest.FixtureRequest, mark: Path) -> bytes:
    """The bytes of the malicious file, in each form that PyTorch reads."""
    path = mark.with_name("evil")
    if request.param == "pickle":
        path.write_bytes(pickle.dumps({"weights": Evil(mark)}))
    else:
        torch.save({"weights": Evil(mark)}, path, _use_new_zipfile_serialization=request.param == "torch.save")
    data = path.read_bytes()
    path.unlink()
    return data


def test_the_pickle_is_a_real_one(evil: bytes, mark: Path, tmp_path: Path) -> None:
    (tmp_path / "evil").write_bytes(evil)
    with suppress(RuntimeError):  # the plain pickle runs, and only then is found to be none of torch.save's
        torch.load(tmp_path / "evil", weights_only=False)
    assert mark.exists()


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """text.jsonl, corpus/ made of it, model/ of ours and stranger/ of transformers: all small, none malicious."""
    place = tmp_path_factory.mktemp("good")
    texts = (f"第{number}篇：从前有座山，山里有座庙，the cat sat {number}。" for number in range(60))
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    (place / "text.jsonl").write_text(lines, encoding="utf-8")
    make_corpus([place / "text.jsonl"], place / "corpus", PreparationSettings(vocab_size=300), workers=1, progress=None)
    config = ModelConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_experts=2,
    )
    model = CausalLM(config)
    init_weights(model, config, 0)
    save_model(place / "model", config, model.state_dict())
    write_hf_tokenizer(place / "corpus" / "tokenizer.json", place / "model")
    return place


@pytest.fixture
def place(good: Path, tmp_path: Path) -> Path:
    """A copy of `good` to put malicious files into."""
    return Path(shutil.copytree(good, tmp_path / "place"))


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], mark: Path) -> Callable[[int], str]:
    """What a script said that must have ended with status 2, no traceback and nothing run."""

    def check(status: int) -> str:
        shown = capfd.readouterr()
        said = shown.err + shown.out
        assert status == 2 and "Traceback" not in said, said
        assert not mark.exists(), "the file was run"
        # progress, and the list of bad lines below a sentence, are no sentences
        sentences = [line for line in said.splitlines() if line and not line.startswith(("...", " ", "reading"))]
        assert len(sentences) == 1, said
        return sentences[0]

    return check


def prepare_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, arguments)])
    return prepare.main()


@pytest.mark.parametrize("main", [generate.main, diagnose.main])
def test_as_the_checkpoint_itself(main, evil, place, refused):
    (place / "model.pt").write_bytes(evil)
    more = ["--prompt", "山"] if main is generate.main else []
    assert "is a file" in refused(main(["--checkpoint", str(place / "model.pt"), *more]))


@pytest.mark.parametrize("main", [generate.main, diagnose.main])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_as_a_file_of_a_model_of_ours(main, name, evil, place, refused):
    (place / "model" / name).write_bytes(evil)
    more = ["--prompt", "山"] if main is generate.main else ["--data", str(place / "text.jsonl")]
    assert name in refused(main(["--checkpoint", str(place / "model"), *more])) or name == "config.json"


def strange_folder(place: Path) -> Path:
    """The same model without what makes it ours: transformers has to load it."""
    folder = place / "model"
    config = json.loads((folder / "config.json").read_text())
    del config["bufudu"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("sharded", [False, True])
def test_as_the_weights_of_a_hugging_face_folder(name, sharded, evil, place, refused):
    folder = strange_folder(place)
    (folder / "model.safetensors").unlink()
    if sharded:
        stem, _, suffix = name.rpartition(".")
        index = {"metadata": {}, "weight_map": {"model.norm.weight": f"{stem}-00001-of-00001.{suffix}"}}
        (folder / f"{name}.index.json").write_text(json.dumps(index))
        name = f"{stem}-00001-of-00001.{suffix}"
    (folder / name).write_bytes(evil)
    said = refused(diagnose.main(["--checkpoint", str(folder), "--data", str(place / "text.jsonl")]))
    assert str(folder) in said


@pytest.mark.parametrize(
    "names",
    [
        ["pytorch_model.bin", "optimizer.pt", "training_args.bin", "scheduler.pt", "rng_state.pth"],
        ["vocab.pkl", "tokenizer.pkl", "vocab.bin"],
    ],
)
def test_beside_good_weights_it_is_not_even_read(names, evil, place, mark, capfd):
    folder = strange_folder(place)
    for name in names:
        (folder / name).write_bytes(evil)
    assert diagnose.main(["--checkpoint", str(folder), "--data", str(place / "text.jsonl"), "--quick"]) == 0
    assert not mark.exists()


def test_as_text_and_as_tokenizer(evil, place, refused, monkeypatch):
    (place / "evil.jsonl").write_bytes(evil)
    (place / "evil.json").write_bytes(evil)
    output = ["--output", place / "out"]
    assert "evil.jsonl: " in refused(prepare_main(monkeypatch, "--input", place / "evil.jsonl", *output))
    flags = ["--input", place / "text.jsonl", "--tokenizer", place / "evil.json", *output]
    assert "evil.json" in refused(prepare_main(monkeypatch, *flags))
    assert not (place / "out").exists()
    assert "evil.jsonl" in refused(
        diagnose.main(["--checkpoint", str(place / "model"), "--data", str(place / "evil.jsonl")])
    )


@pytest.mark.parametrize("name", ["manifest.json", "train-00000.bin", "tokenizer.json"])
def test_as_a_file_of_a_prepared_folder(name, evil, place):
    from corpus.shards import Corpus

    (place / "corpus" / name).write_bytes(evil)
    with pytest.raises(UserError, match=name):
        Corpus.open(place / "corpus")


def resume(place: Path, path: Path) -> int:
    return run.main(["--data", str(place / "corpus"), "--output", str(place / "run"), "--resume", str(path)], "")


def test_as_what_is_resumed_from(evil, place, refused):
    """The file itself, and a folder as DeepSpeed would have left it."""
    (place / "evil.pt").write_bytes(evil)
    assert "no checkpoint there" in refused(resume(place, place / "evil.pt"))
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        file = place / "old" / "global_step10" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(evil)
    (place / "old" / "latest").write_text("global_step10")
    assert "no checkpoint there" in refused(resume(place, place / "old"))


def forged(place: Path, evil: bytes) -> Path:
    """A checkpoint whose hashes are right and whose only share is the pickle."""
    folder = place / "run" / "checkpoints" / "step-00000006"
    folder.mkdir(parents=True)
    (folder / "rank-00000.safetensors").write_bytes(evil)
    content = {
        "format": checkpoint.FORMAT,
        **RunState(step=6).model_dump(),
        "engine": {
            "split": {},
            "global_steps": 6,
            "global_samples": 24,
            "skipped_steps": 0,
            "optimizer_steps": 6,
            "scheduler": None,
            "loss_scaler": {},
        },
        "files": {"rank-00000.safetensors": {"bytes": len(evil), "sha256": hashlib.sha256(evil).hexdigest()}},
    }
    write_state(folder, content)
    return folder


def write_state(folder: Path, content: dict[str, Any]) -> None:
    """run_state.json with a hash that is right."""
    content.pop("sha256", None)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / checkpoint.STATE_FILE).write_text(json.dumps(content | {"sha256": digest}))


def test_as_run_state(evil, place, mark):
    folder = forged(place, evil)
    (folder / checkpoint.STATE_FILE).write_bytes(evil)
    with pytest.raises(UserError, match=r"run_state\.json cannot be read"):
        checkpoint.choose(place / "run", str(folder))
    assert not mark.exists()


def test_as_a_share_of_a_forged_checkpoint(evil, place, mark):
    from training.checkpointing import engine_state

    folder = forged(place, evil)
    assert checkpoint.choose(place / "run", "auto") == (folder, [])  # nothing in the folder gives it away
    with pytest.raises(UserError, match=r"rank-00000\.safetensors cannot be read"):
        engine_state.restore(None, [folder / "rank-00000.safetensors"], {}, step=6, local_files=[])
    assert not mark.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--data", "{place}/evil.jsonl"], "no text in this archive"),
        (["--data", "{place}/text.jsonl", "--tokenizer", "{place}/evil.json"], "evil.json"),
    ],
)
def test_in_train_py_as_text_and_as_tokenizer(given, says, place, mark, processes, train_py, flags):
    torch.save({"weights": Evil(mark)}, place / "evil.json")
    (place / "evil.jsonl").write_bytes((place / "evil.json").read_bytes())
    done = processes.ranks(1, [train_py, *flags(place / "run", *(word.format(place=place) for word in given))])
    assert done.status == 2 and says in done.output and "Traceback" not in done.output, done.output
    assert not mark.exists()


@pytest.mark.slow
def test_in_train_py_as_the_shares_of_a_checkpoint(finished_run, workplace, mark, processes, train_py, flags):
    place = Path(shutil.copytree(finished_run, workplace / "runs" / "forged"))
    shutil.rmtree(place / "checkpoints" / "step-00000012")
    folder = place / "checkpoints" / "step-00000006"
    content = json.loads((folder / checkpoint.STATE_FILE).read_text())
    for name in content["files"]:
        torch.save({"weights": Evil(mark)}, folder / name)
        data = (folder / name).read_bytes()
        content["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_state(folder, content)
    done = processes.ranks(2, [train_py, *flags("runs/forged", "--resume", folder)])
    assert done.status == 2 and "safetensors cannot be read" in done.output, done.output
    assert "Traceback" not in done.output and not mark.exists()


def test_nothing_here_reads_a_pickle_from_a_file():
    """corpus/workers.py speaks pickle with its own child processes, over pipes; a preparation that continues reads what
    it has recorded through an unpickler that makes nothing but our records (test_partial_folder.py).

    Trainers to race against save with torch.save: their weights are read by torch.load, which must be told
    `weights_only`, in the one module that judges them.
    """
    loads = {
        "torch": {"load"},
        "pickle": {"load", "loads", "Unpickler"},
        "joblib": {"load"},
        "yaml": {"load"},
        "marshal": {"load", "loads"},
        "dill": {"load", "loads"},
        "shelve": {"open"},
    }
    root = Path(__file__).resolve().parents[3]
    judge = root / "benchmarks" / "race" / "peers" / "score.py"
    trusted = [root / "corpus" / "workers.py", root / "corpus" / "partial_folder.py"]
    for path in root.rglob("*.py"):
        if path.relative_to(root).parts[0] in (".venv", "runs", "tests") or path in trusted:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        told = (
            {
                node.func
                for node in ast.walk(tree)
                if isinstance(node, ast.Call) and any(word.arg == "weights_only" for word in node.keywords)
            }
            if path == judge
            else set()
        )
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node not in told:
                assert node.attr not in loads.get(node.value.id, ()), f"{path}:{node.lineno}"
            if isinstance(node, ast.ImportFrom) and node.module in loads:
                assert not {name.name for name in node.names} & loads[node.module], f"{path}:{node.lineno}"
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code", "weights_only"):
                wanted = node.arg == "weights_only"
                assert isinstance(node.value, ast.Constant) and node.value.value is wanted, f"{path}:{node.lineno}"
