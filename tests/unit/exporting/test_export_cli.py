"""export.py as a user calls it: what it prints and its exit status."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import export


def test_export_and_verify(
    models: dict[str, Path], texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    target = tmp_path / "m.gguf"
    folder = str(models["dense"])
    assert export.main(["--checkpoint", folder, "--gguf", str(target), "--type", "q8_0"]) == 0
    printed = capsys.readouterr().out
    assert f"{target}: 0.1 MB in q8_0, 24 tensors, read back" in printed
    assert "m.Modelfile: ollama create NAME -f" in printed
    assert export.main(["--checkpoint", folder, "--verify", folder, "--data", str(texts)]) == 0
    assert "is the trained model" in capsys.readouterr().out
    assert export.main(["--verify", folder, folder, "--data", str(texts)]) == 0
    assert export.main(["--checkpoint", folder, "--verify", str(models["top2"]), "--data", str(texts)]) == 1
    assert "NOT the trained model" in capsys.readouterr().out
    assert export.main(["--verify", str(target), "--data", str(texts)]) == 2
    assert capsys.readouterr().err == "give --checkpoint the folder of the trained model, such as runs/NAME\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing to do: give --hf, --gguf FILE or --verify PATH ... --data FILE\n"),
        (["--gguf", "x.gguf", "--diagnosis", "d.json"], "--diagnosis goes with --hf, which writes what it says"),
        (["--hf", "--data", "x.jsonl"], "--data goes with --verify PATH ...: say what is to be compared"),
        (["--verify", "x.gguf"], "--verify needs --data FILE: texts to compare on, which the model need not know\n"),
        (["--gguf", "x.gguf", "--type", "q4_k"], "argument --type: invalid choice: 'q4_k'"),
        (["--hf"], "none does not exist: give --checkpoint the folder of a run, such as runs/NAME\n"),
    ],
)
def test_wrong_flags_are_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert export.main(["--checkpoint", str(tmp_path / "none"), *arguments]) == 2
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(("name", "flags"), [("gguf", ["--gguf", "m.gguf"]), ("transformers", ["--verify"])])
def test_a_missing_library_is_named_with_its_command(
    models: dict[str, Path],
    texts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    flags: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, name, None)
    folder = str(models["dense"])
    more = [folder, "--data", str(texts)] if flags == ["--verify"] else []
    assert export.main(["--checkpoint", folder, *flags, *more]) == 2
    assert f"needs {name}, which " in capsys.readouterr().err
    assert not list(tmp_path.glob("m.*"))
