"""The layout of the package and its vocabulary: see docs/development.md."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "effllava_optuna"
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if "embedded" not in path.parts]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
FOLDERS = sorted({path.parent for path in MODULES})

MOST_MODULES, MOST_LINES = 14, 2500  # of a folder
MOST_PARAMETERS = 6  # of a function
LONGEST_CLASS = 155  # lines of a class in search/

# Words of older versions, and what has replaced them. The tests of messages about old study files
# and databases, and the table that they come from, still contain some of them.
LEFT_OUT = (
    "anatomy", "anatomies", "basis", "bundle", "mend", "whoever", "workbench", "vault", "ledger",
    "kept_share", "kept share", "refit", "refits", "re-fit", "damage curve", "best two numbers",
    "two_numbers", "one_number", "StudySpec", "SpecError", "read_spec", "SiteId", "site_id",
    "prunable sites",
)  # fmt: skip
ALLOWED = {
    "effllava_optuna/cli/program.py",
    "effllava_optuna/config/validation_messages.py",
    "effllava_optuna/storage/names.py",
    "effllava_optuna/surgery/loading/policy_file.py",
    "tests/cli/test_program.py",
    "tests/config/test_schema.py",
    "tests/storage/test_studies.py",
    "tests/surgery/loading/test_policy_file.py",
    "tests/test_layout.py",
}
UNREAD = (".png", ".svg", ".safetensors", ".jsonl", ".tables")


def tracked_files() -> list[str]:
    """Return the files of the repository that git knows, without binary ones."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode:
        pytest.skip("not a git checkout")
    files = [name for name in listing.stdout.splitlines() if not name.endswith(UNREAD)]
    return [name for name in files if (ROOT / name).is_file() and name not in ALLOWED]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_folder_can_be_read_in_one_sitting(folder: Path) -> None:
    modules = [path for path in folder.glob("*.py") if not path.stem.startswith("__")]
    assert len(modules) <= MOST_MODULES
    assert sum(len(path.read_text().splitlines()) for path in folder.glob("*.py")) <= MOST_LINES


def test_no_two_modules_have_one_name() -> None:
    names = Counter(path.stem.strip("_") for path in MODULES if not path.stem.startswith("__"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_two_public_classes_have_one_name() -> None:
    places = defaultdict(list)
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_classes_of_the_search_are_small() -> None:
    sizes = {
        node.name: (node.end_lineno or 0) - node.lineno
        for path, tree in TREES.items()
        if "search" in path.parts
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    assert {name: size for name, size in sizes.items() if size > LONGEST_CLASS} == {}


def test_functions_have_few_parameters() -> None:
    """Click calls the functions of commands with one parameter for each option."""
    long = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef):
                continue
            decorators = " ".join(ast.unparse(one) for one in node.decorator_list)
            if "click." in decorators or "command" in decorators:
                continue
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
            count = len([name for name in names if name not in ("self", "cls")])
            if count + len(node.args.kwonlyargs) > MOST_PARAMETERS:
                long.append(f"{path.relative_to(PACKAGE)}: {node.name}")
    assert long == []


def test_docstrings_begin_with_a_specific_verb() -> None:
    vague = re.compile(r"(Give|Gives|Tell|Say|Let|Put)\b")
    offences = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                docstring = ast.get_docstring(node) or ""
                if vague.match(docstring):
                    offences.append(f"{path.relative_to(PACKAGE)}: {docstring.splitlines()[0]}")
    assert offences == []


def test_words_of_older_versions_are_gone() -> None:
    words = re.compile(rf"(?<![a-zA-Z])(?:{'|'.join(LEFT_OUT)})(?![a-zA-Z])", re.IGNORECASE)
    offences = []
    for name in tracked_files():
        if words.search(name):
            offences.append(name)
        for number, line in enumerate((ROOT / name).read_text("utf-8", "replace").splitlines(), 1):
            if words.search(line):
                offences.append(f"{name}:{number}: {line.strip()[:80]}")
    assert offences == []
