"""What the documentation says can be done: every command parses, every link resolves, and the quick start runs."""

import argparse
import gzip
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import zstandard

from sample_stories import generate_stories

ROOT = Path(__file__).resolve().parents[2]
README, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
OTHERS = [ROOT / "ds_configs" / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES = [README, CHINESE, *sorted((ROOT / "docs").rglob("*.md")), *(page for page in OTHERS if page.is_file())]
PROGRAMS = ("python", "deepspeed", "make", "pip", "tensorboard", "source", "pytest")

CODE = re.compile(r"^```\w*\n(.*?)^```$|((?:^ {4}[^\n]*\n)+)", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`((?:python|make|pytest|\w+\.py|deepspeed --\w+) [^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
IN_REPOSITORY = re.compile(r"(?:ds_configs|docs|tests|benchmarks|stress)/\S+|hostfile|requirements\S*\.txt|\w+\.py")
EXPLANATION = re.compile(r"\s{2,}.*")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(page: Path) -> list[str]:
    """Return the command lines of a page's code blocks, whole and without what explains them."""
    blocks = ("".join(groups) for groups in CODE.findall(text_of(page)))
    lines = re.sub(r"\\\n\s*", "", "".join(blocks)).splitlines()
    lines = [EXPLANATION.sub("", line.strip().removeprefix("$ ")) for line in lines]
    return [line for line in lines if line.partition(" ")[0] in PROGRAMS]


def inline_commands(page: Path) -> list[str]:
    """Return the commands within a page's sentences; `train.py --plan` there is short for `python train.py --plan`."""
    found = [" ".join(command.split()) for command in INLINE.findall(text_of(page))]
    return [f"python {command}" if command.partition(" ")[0].endswith(".py") else command for command in found]


def text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def words_of(command: str) -> list[str]:
    return [word for word in shlex.split(command, comments=True) if word != "..."]


FOUND = [(page, command) for page in PAGES for command in commands(page) + inline_commands(page)]
ALL = [pytest.param(command, id=f"{name_of(page)}: {command}") for page, command in FOUND]
ALL_WORDS = [words_of(command) for _, command in FOUND]


class Parsed(BaseException):
    """A command line that its own parser has taken; no `except Exception` of a script stops it."""


def parse(script: list[str], arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the parser of a script or of a module judge the arguments, and do nothing else."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser, args=None, namespace=None):
        raise Parsed(original(parser, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [script[-1], *arguments])
    try:
        if script[0] == "-m":
            for name in (script[1], f"{script[1]}.__main__"):  # of another test: runpy would warn
                if not hasattr(sys.modules.get(name), "__path__"):
                    monkeypatch.delitem(sys.modules, name, raising=False)
            runpy.run_module(script[1], run_name="__main__")
        else:
            assert "/" not in script[0], "packages are only importable from the repository's root: use python -m"
            runpy.run_path(str(ROOT / script[0]), run_name="__main__")
    except Parsed:
        return
    except SystemExit as left:
        pytest.fail(f"{script[-1]} does not take {arguments}: status {left.code}", pytrace=False)


def parse_train(arguments: list[str]) -> None:
    from training.config import command_line

    command_line.parse(arguments, "")


def after(words: list[str], flag: str) -> str | None:
    return words[words.index(flag) + 1] if flag in words else None


def run_folders() -> set[str]:
    """Return the folders of the runs that the pages' commands make, with the names that train.py gives."""
    folders = {"runs/demo"}
    for words in ALL_WORDS:
        if "train.py" not in words:
            continue
        data = Path(after(words, "--data") or "sample").name.partition(".")[0]
        folders |= {after(words, "--output") or "", f"runs/t4x2-{data}", f"runs/cpu_x2-{data}"}
    return folders


@pytest.mark.parametrize("command", ALL)
def test_a_command_does_what_its_parser_allows(command, monkeypatch, tmp_path):
    program, *arguments = words_of(command)
    if arguments[-1] == "--help":
        return
    for text in (word for word in arguments if ".jsonl" in word):
        (tmp_path / text).touch()
    monkeypatch.chdir(tmp_path)
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", text_of(ROOT / "Makefile"), re.MULTILINE)
    elif program == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        launcher = parse_args(arguments)
        assert launcher.user_script == "train.py"
        parse_train(launcher.user_args)
    elif program == "python" and arguments[0] == "train.py":
        parse_train(arguments[1:])
    elif program == "python":
        module = arguments[1].partition(".")[0] if arguments[0] == "-m" else ""
        if module and not (ROOT / module).is_dir():
            return  # another project's
        script = arguments[: 2 if module else 1]
        parse(script, arguments[len(script) :], monkeypatch)


@pytest.mark.parametrize("command", ALL)
def test_files_that_a_command_names_are_there_or_made_by_another(command):
    words = words_of(command)
    for word in words:
        if IN_REPOSITORY.fullmatch(word) and not word.endswith(".svg"):
            assert (ROOT / word).exists(), word
    made = {after(other, "--output") for other in ALL_WORDS if "prepare.py" in other}
    for flag, known in (("--checkpoint", run_folders()), ("--data", made), ("--report", made)):
        value = after(words, flag)
        if value and not re.search(r"\.jsonl|^[A-Z_]+$", value):
            assert value in known, f"no command makes {value}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_use_the_words_of_the_field(page):
    assert not re.findall(r"\b(?:mend\w*|rungs?|ladders?|the origin\b.*)", text_of(page))


def test_the_commands_are_found():
    assert {words[0] for words in ALL_WORDS} >= set(PROGRAMS) - {"pytest"}
    assert len(ALL_WORDS) > 40


def test_the_chinese_readme_has_the_same_commands_and_parts():
    english, chinese = commands(README), [command.removesuffix(" --lang zh") for command in commands(CHINESE)]
    assert [words_of(command) for command in english] == [words_of(command) for command in chinese]
    english_links, chinese_links = (set(LINK.findall(text_of(page))) for page in (README, CHINESE))
    assert english_links ^ chinese_links == {CHINESE.name, README.name}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in LINK.findall(text_of(page)):
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_can_be_reached_from_the_readme():
    seen, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = (link.partition("#")[0] for link in LINK.findall(text_of(page)))
        waiting += [(page.parent / link).resolve() for link in links if link and "://" not in link]
    assert set(PAGES) - {ROOT / "CONTRIBUTING.md"} <= seen


@pytest.mark.parametrize("readme", [README, CHINESE], ids=name_of)
def test_the_readme_lists_the_folders_that_there_are(readme):
    listed = set(re.findall(r"^    (\w+)/ ", text_of(readme), re.MULTILINE))
    packages = {file.relative_to(ROOT).parts[0] for file in ROOT.glob("[a-z]*/*.py")}
    assert listed == packages | {"ds_configs"}


def test_files_that_texts_name_are_there():
    """Paths in pages, and pages in the comments of code."""
    code = [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/**/*.py")]
    named = {
        (page, path)
        for page in PAGES
        for path in re.findall(r"`([a-z_]+/[\w/.]+\.(?:py|md)|ds_configs/\w+\.json)`", text_of(page))
    }
    named |= {(file, path) for file in code for path in re.findall(r"\bdocs/[\w/-]+\.md\b", text_of(file))}
    assert not [f"{name_of(where)}: {path}" for where, path in named if not (ROOT / path).exists()]


# --- for real ---------------------------------------------------------------------------------------------------------

TINY = (
    "--hidden_size 32 --num_hidden_layers 2 --num_attention_heads 2 --num_key_value_heads 1 --moe_intermediate_size 32 "
    "--max_seq_len 64 --vocab_size 400 --max_steps 6 --eval_interval 6"
)


def write_stories(file: Path, count: int, seed: int) -> None:
    lines = (json.dumps({"text": story}, ensure_ascii=False) + "\n" for story in generate_stories(count, seed=seed))
    opened = gzip.open if file.suffix == ".gz" else zstandard.open if file.suffix == ".zst" else open
    with opened(file, "wt", encoding="utf-8") as stream:
        stream.writelines(lines)


def run_page(page: str, folder: Path) -> str:
    """Run a page's python and deepspeed commands in a folder, on one process of a CPU and at a tiny size."""
    printed = []
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    for command in commands(ROOT / "docs" / page):
        words = words_of(command.replace("t4x2", "cpu_x2"))
        if "--tune" in words or "-m" in words:
            continue  # for minutes: test_tune.py has trials of its own, and benchmarks are no part of the tests
        if "train.py" in words:
            words = ["python", *words[words.index("train.py") :], *TINY.split()]
            words += [] if {"--plan", "--preflight"} & set(words) else ["--skip_preflight"]
        if words[0] == "python":
            words = [sys.executable, str(ROOT / words[1]), *words[2:]]
            done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            printed.append(done.stdout)
    return "\n".join(printed)


@pytest.mark.slow
def test_the_quick_start_and_the_python_of_generation_run(tmp_path, monkeypatch):
    write_stories(tmp_path / "your.jsonl", 600, seed=7)
    printed = run_page("quickstart.md", tmp_path)
    assert "preflight: " in printed
    assert (tmp_path / "your.html").is_file()

    import torch

    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", text_of(ROOT / "docs" / "generation.md"), re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(code.replace("runs/mine", "runs/cpu_x2-your"), names)
    assert isinstance(names["ids"], torch.Tensor)


@pytest.mark.slow
def test_the_page_on_data_runs_and_shows_every_line_of_the_report(tmp_path):
    for seed, name in enumerate(("a.jsonl", "stories.jsonl")):
        write_stories(tmp_path / name, 200, seed)
    stories = list(generate_stories(200, seed=2))
    for name in ("b.parquet", "news.parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": stories}), tmp_path / name)
    (tmp_path / "clean").mkdir()
    write_stories(tmp_path / "clean" / "00000.jsonl.gz", 100, seed=3)
    (tmp_path / "novels").mkdir()
    (tmp_path / "novels" / "one.txt").write_text("\n".join(stories[:20]), encoding="utf-8")
    rows = "".join(f"{number},{story}\n" for number, story in enumerate(stories))
    (tmp_path / "news.csv").write_text(f"title,content\n{rows}", encoding="utf-8")
    printed = run_page("data.md", tmp_path)
    assert (tmp_path / "corpus.html").is_file()
    shown = re.findall(r"^```\n(.*?)^```", text_of(ROOT / "docs" / "data.md"), re.MULTILINE | re.DOTALL)[0]
    label = re.compile(r"^([a-z][a-z-]*)  ", re.MULTILINE)
    assert set(label.findall(shown)) == set(label.findall(printed)) - {"mixture"}
