"""What differs between two ranks, in words."""

import re
import shutil
from pathlib import Path

import pytest

from common.errors import UserError
from training.processes import agreement
from training.processes.agreement import check_agreement, code_facts, difference, file_digest
from training.processes.process_group import World


def test_equal_facts_do_not_differ():
    facts = {"torch": "2.13.0", "JSON": {"optimizer": {"params": {"lr": 1e-3}}}, "flags": {}}
    assert difference(facts, {**facts}) == ""


def test_the_differing_key_is_named_with_both_values():
    here = {"JSON": {"optimizer": {"params": {"lr": 1e-3}}, "zero": {}}, "flags": {"seed": 42}}
    there = {"JSON": {"optimizer": {"params": {"lr": 2e-3}}, "zero": {}}, "flags": {"seed": 42, "epochs": 5.0}}
    assert difference(here, there) == (
        "JSON.optimizer.params.lr is 0.002 there and 0.001 here; flags.epochs is 5.0 there and not set here"
    )


def test_a_long_list_of_differences_is_cut():
    here, there = ({"flags": {str(i): value * 100 for i in range(5)}} for value in ("a", "b"))
    text = difference(here, there)
    assert text.endswith("(and 2 more)")
    assert f"flags.0 is {'b' * 59}… there" in text


def test_the_code_is_one_of_the_facts(monkeypatch, tmp_path):
    root = Path(agreement.__file__).parents[2]
    shutil.copytree(root / "common", tmp_path / "common")
    monkeypatch.setattr(agreement, "_ROOT", tmp_path)
    digests = []
    for text in ("A = 1\n", "A = 2\n"):
        (tmp_path / "common" / "new.py").write_text(text)
        digests.append(code_facts.__wrapped__())
    said = r"this project's code is \w{12} there and \w{12} here \(check out the same commit on both, .*\)"
    assert re.fullmatch(said, difference(*digests))
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "common", tmp_path / "elsewhere" / "common")
    monkeypatch.setattr(agreement, "_ROOT", tmp_path / "elsewhere")
    assert difference(digests[1], code_facts.__wrapped__()) == ""  # wherever it lies


def test_a_file_is_known_by_its_content(tmp_path):
    assert file_digest(tmp_path / "none") == "missing"
    (tmp_path / "some").write_text("text")
    assert file_digest(tmp_path / "some") == "982d9e3eb996"  # sha256sum


def test_the_rank_and_its_machine_are_named(monkeypatch):
    everybody = [("mA", {"manifest.json": "1"}), ("mA", {"manifest.json": "1"}), ("mB", {"manifest.json": "2"})]
    world = World(0, 3, 0, 3)
    monkeypatch.setattr(agreement, "gather_from_ranks", lambda mine: everybody[:2])
    check_agreement(world, {}, "")
    monkeypatch.setattr(agreement, "gather_from_ranks", lambda mine: everybody)
    with pytest.raises(UserError) as error:
        check_agreement(world, {}, "copy it")
    assert str(error.value) == ("rank 2 on mB differs from rank 0 on mA: manifest.json is 2 there and 1 here: copy it")
