"""The habits that no linter knows: which package may import which, how long things may be, and the words in use."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "common": set(),
    "model": {"common"},
    "corpus": {"common"},
    "sample_stories": {"common"},
    "evaluation": {"model", "corpus", "common"},
    "chat": {"evaluation", "model", "corpus", "common"},
    "serving": {"chat", "model", "corpus", "common"},
    "exporting": {"evaluation", "model", "corpus", "common"},
    "diagnosis": {"evaluation", "model", "corpus", "common"},
    "experiments": {"training", "diagnosis", "evaluation", "model", "corpus", "common"},
    "training": {"exporting", "evaluation", "model", "corpus", "sample_stories", "common"},
}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
PRODUCT = set(MAY_IMPORT) | SCRIPTS
MEASURING = {"benchmarks", "stress"}
MODULES_A_FOLDER, LINES_A_MODULE, LINES_A_FUNCTION = 15, 400, 60
BANNED_WORDS = re.compile(r"\b(mend|mended|mends|rungs?|ladders?|the origin)\b|\btold\(", re.IGNORECASE)
OLD_KEYS = ('"ladder"', '"rungs"', '"mend"')  # keys of JSON files that earlier versions wrote, or that users read
PRIVATE_ATTRIBUTE = re.compile(r"\b(engine|optimizer|lr_scheduler|loss_scaler)\._[a-z]\w*")
DEEPSPEED_SEAM = ROOT / "training" / "engine"


@cache
def sources(*packages: str) -> dict[str, Path]:
    """The file of every module below the packages, or of the scripts of that name."""
    found = {}
    for package in packages:
        single = ROOT / f"{package}.py"
        for path in [single] if single.is_file() else sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def modules(*packages: str) -> dict[str, Path]:
    return sources(*sorted(packages or PRODUCT | MEASURING))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def import_statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import that may run, those inside functions included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not for_types_only(child):
            yield from import_statements(child)
        else:
            for other in child.orelse:
                yield from import_statements(other)


def imported(path: Path) -> set[str]:
    """The modules of this repository that a file imports."""
    names = set()
    for statement in import_statements(tree(path)):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        else:
            inside = [f"{statement.module}.{alias.name}" for alias in statement.names]
            names |= {name if name in modules() else str(statement.module) for name in inside}
    return names & set(modules())


@cache
def graph() -> dict[str, set[str]]:
    return {name: imported(path) - {name} for name, path in modules().items()}


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """A path that ends where it began; empty if there is none."""
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return []
        for target in sorted(edges.get(name, ())):
            if found := visit(target, [*path, name]):
                return found
        finished.add(name)
        return []

    return next((found for name in sorted(edges) if (found := visit(name, []))), [])


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_the_cycle_finder_finds_one():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_module_imports_itself_in_a_circle():
    assert " -> ".join(cycle(graph())) == ""


@pytest.mark.parametrize("package", sorted(PRODUCT | MEASURING))
def test_imports_go_in_the_direction_of_the_arrows(package: str):
    may = MAY_IMPORT.get(package, PRODUCT | MEASURING if package == "benchmarks" else PRODUCT) | {package}
    against = {
        f"{name} imports {target}"
        for name in modules(package)
        for target in graph()[name]
        if target.split(".")[0] not in may
    }
    assert not against


def test_every_folder_of_python_files_is_one_of_these():
    folders = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("[a-z]*/**/*.py")}
    assert folders - {"tests", "docs", "runs", "data", "examples"} == set(MAY_IMPORT) | MEASURING


def test_folders_are_small_enough_to_look_through():
    folders: dict[Path, int] = {}
    for path in modules().values():
        if path.name != "__init__.py":
            folders[path.parent] = folders.get(path.parent, 0) + 1
    large = {str(folder.relative_to(ROOT)): count for folder, count in folders.items() if count > MODULES_A_FOLDER}
    large.pop(".", None)
    assert not large


def test_modules_and_functions_are_short():
    long = set()
    for name, path in modules().items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        long |= {f"{name} ({lines} lines)"} if lines > LINES_A_MODULE else set()
        long |= {f"{name}.{function} ({n} lines)" for function, n in functions(path) if n > LINES_A_FUNCTION}
    assert long == set()


def test_no_tricks_with_paths_imports_or_the_formatter():
    tricks = re.compile(r"sys\.path\b|#\s*fmt:\s*(skip|off)|^\s*from \.", re.MULTILINE)
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path.name not in (Path(__file__).name, "forked.py")]
    files = [*modules().values(), *tests]
    assert [str(path) for path in files if tricks.search(path.read_text(encoding="utf-8"))] == []


def test_private_attributes_of_deepspeed_are_read_in_one_place():
    found = [
        f"{path.relative_to(ROOT)}: {hit.group()}"
        for path in modules(*PRODUCT).values()
        if DEEPSPEED_SEAM not in path.parents
        for hit in PRIVATE_ATTRIBUTE.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found


@pytest.mark.parametrize("package", sorted(PRODUCT | MEASURING))
def test_the_vocabulary_is_that_of_the_field(package: str):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in [*modules(package).values(), *ROOT.glob(f"{package}/**/*.html")]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if BANNED_WORDS.search(line) and not any(key in line for key in OLD_KEYS)
    ]
    assert not found
