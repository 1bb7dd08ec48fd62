"""examples/kaggle.ipynb from top to bottom, and a second session that goes on where the first one stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from sample_stories import write_sample_corpus
from training.processes.network import free_port

ROOT = Path(__file__).resolve().parents[2]
TINY = ["hidden_size=32", "num_hidden_layers=1", "num_attention_heads=2", "num_key_value_heads=1", "max_seq_len=64"]
TINY += ["moe_intermediate_size=32", "eval_tokens=1000"]


def session(folder: Path, text: Path, steps: int, earlier: Path) -> Any:
    """Return the notebook with the parameters of a session that keeps its files in `folder`."""
    notebook = nbformat.read(ROOT / "examples" / "kaggle.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    flags = [word for flag in [*TINY, f"max_steps={steps}"] for word in ("--" + flag).split("=")]
    flags += ["--set", "train_micro_batch_size_per_gpu=2", "gradient_accumulation_steps=2", "train_batch_size=auto"]
    values = {"REPOSITORY": ROOT, "CODE": ROOT, "TEXT": text, "WORK": folder, "EARLIER": earlier}
    values = {name: str(path) for name, path in values.items()} | {"MODEL": flags, "PIP": [], "TUNE_MINUTES": 0}
    for other in notebook.cells:  # other tests may hold the launcher's usual port
        other.source = other.source.replace('"--num_gpus"', f'"--master_port", {free_port()}, "--num_gpus"')
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    return notebook


def run(notebook: Any, folder: Path) -> str:
    """Execute all cells; return what they print."""
    folder.mkdir(exist_ok=True)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) <= 1
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.slow
def test_a_session_trains_shows_and_exports_and_the_next_one_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    text, first, second = tmp_path / "stories.jsonl", tmp_path / "first", tmp_path / "second"
    write_sample_corpus(text, 400)
    printed = run(session(first, text, 4, tmp_path / "none"), first)
    assert "a new run" in printed and "step 4/4" in printed and "bigram" in printed
    assert "the run ended: finished" in printed
    assert (first / "run" / "model" / "model.safetensors").is_file()
    assert {"curve.svg", "diagnosis.html", "model.gguf"} <= {path.name for path in first.iterdir()}
    notebook = session(second, text, 6, first)
    trains = next(place for place, cell in enumerate(notebook.cells) if "--time_limit" in cell.source)
    notebook.cells = notebook.cells[: trains + 2]
    printed = run(notebook, second)
    assert "the run goes on" in printed and "(step 4" in printed and "step 6/6" in printed
