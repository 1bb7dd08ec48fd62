"""The model of a run on the disk: whole, or as it was before."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from corpus.tokenizer import train_tokenizer
from model import CausalLM, ModelConfig, hf, load_model, save_model
from training.checkpointing.export import export_model
from training.checkpointing.write_failures import DiskFull

CONFIG = ModelConfig(
    vocab_size=300,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=32,
    use_moe=False,
)
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
}


@pytest.fixture(scope="module", autouse=True)
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(iter(["小红在河边。"]), 259).save(str(path))
    return path


@pytest.fixture
def export(tmp_path, tokenizer):
    """Exports a network whose every weight is `value`."""

    def run(value):
        model = CausalLM(CONFIG)
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(value)
        export_model(SimpleNamespace(module=model, device=torch.device("cpu")), CONFIG, tokenizer, tmp_path / "model")

    return run


def kept(tmp_path):
    """The value of the model on the disk, which must be whole and alone there."""
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    [value] = {weight.unique().item() for weight in load_model(tmp_path / "model").parameters()}
    return value


def test_the_newest_model_is_kept(tmp_path, export):
    export(1.0)
    export(2.0)
    assert kept(tmp_path) == 2.0


@pytest.mark.parametrize("fails_at", range(1, 23))
def test_a_disk_that_fills_up_at_any_moment_leaves_the_model_before(tmp_path, export, monkeypatch, fails_at):
    """Each call that could meet a full disk, in its turn."""
    export(1.0)
    calls = []

    def failing(real):
        def call(*args, **kwargs):
            calls.append(real.__name__)
            if len(calls) == fails_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((os, "fsync"), (os, "replace"), (Path, "write_text"), (hf, "save_file")):
            patch.setattr(owner, name, failing(getattr(owner, name)))
        with pytest.raises(DiskFull, match="model could not be written: no space left on the disk"):
            export(2.0)
    assert len(calls) == fails_at
    assert kept(tmp_path) == (2.0 if fails_at == 22 else 1.0)  # the last call is to flush what is in place already


def test_a_model_that_safetensors_cannot_write_leaves_the_one_before(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    model = CausalLM(CONFIG)
    save_model(tmp_path, CONFIG, model.state_dict())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("model.hf.save_file", full)
    with pytest.raises(OSError, match="No space left") as error:
        save_model(tmp_path, CONFIG, {name: weight + 1 for name, weight in model.state_dict().items()})
    assert error.value.errno == errno.ENOSPC
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_all_files_can_be_read_by_whom_the_first_can(tmp_path):
    save_model(tmp_path, CONFIG, CausalLM(CONFIG).state_dict())
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
