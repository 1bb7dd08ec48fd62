"""What `make demo` says at its end."""

from __future__ import annotations

import os

from training.demo import beside


def test_a_program_is_called_by_its_name_only_where_that_finds_it(tmp_path, monkeypatch):
    for folder in ("active", "other"):
        program = tmp_path / folder / "deepspeed"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "active"))
    monkeypatch.chdir(tmp_path)
    assert beside(tmp_path / "active" / "deepspeed") == "deepspeed"
    assert beside(tmp_path / "other" / "deepspeed") == os.path.join("other", "deepspeed")
    assert beside(tmp_path / "none" / "deepspeed") == os.path.join("none", "deepspeed")
