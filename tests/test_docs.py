"""README and docs/: every block of code runs, every link leads somewhere, the site builds.

A page is one story: its blocks run in order in one directory, in this process, where torch is
imported already. What differs from a reader's machine is said here and nowhere else:

- study files, those of `init` too, are written with the sizes of `SHORT`, in float32 and with
  hardly any time for timing; what else they say stays;
- ``studies/`` has the files of the project, shortened in the same way, ``benchmarks/`` is its own;
- a page that says ``<!-- begins with small.toml -->`` finds the README's study, finished;
- ``llava-hf/llava-1.5-7b-hf`` and ``derek-thomas/ScienceQA`` are no LLaVA and no ScienceQA, but
  directories of that name with the embedded drawn-vlm and with rows that are drawn from digits;
- `dashboard` is asked for its page on a free port, and stopped; `recover` takes two steps;
  `evaluate --split full` asks 16 samples.

A block after ``<!-- not run: why -->`` is not run. What can be told without running it is: that
its command lines parse, and that scripts, options and imports are there.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
import runpy
import shlex
import shutil
import socket
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest

from docs import generate
from effllava_optuna.study import Epochs, StudySpec
from effllava_optuna.study.cli import main
from tests.study.conftest import cli, started

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").rglob("*.md")))
NOT_RUN = 14
SHORT: dict[str, dict[str, Any]] = {
    "task": {"proxy": 16, "validation": 8, "test": 8},
    "pruning": {"shares": [0.05, 0.2, 0.5, 1.0], "multiple_of": 8},
    "latency": {"seconds": 0, "checks": 4, "repeats": 2, "batch": 8},
    "search": {"epochs": 2, "generations": 2, "population": 6},
    "projector": {"steps": 2, "every": 1},
    "report": {"finalists": 2},
}
MINIMAL: dict[str, dict[str, Any]] = {  # to which a fragment of a study file is added
    "study": {"name": "page"},
    "model": {"path": "m"},
    "task": {"name": "qa"},
}
STUDY = ["python", "-m", "effllava_optuna.study"]
BLOCK = re.compile(
    r"(?P<before>[^\n]*)\n+```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n"
    r"(?P<text>.*?)\n```\n",
    re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        marker = re.fullmatch(r"<!-- not run: (.+) -->", match["before"])
        line = text[: match.start("text")].count("\n") + 1
        idle = marker and marker[1]
        found.append(Block(page, line, match["language"], match["title"], match["text"], idle))
    fences = len(re.findall(r"^ *```", text, re.MULTILINE))
    assert fences == 2 * len(found), f"{page}: a block that this test does not see"
    return found


def commands_of(text: str) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Give the commands of a shell block, loops unrolled: what they set, and their words."""
    text = re.sub(r"\\\n\s*", " ", text)
    loop = re.compile(r"^for (\w+) in ([^;]+); do\n(.*?)\ndone", re.DOTALL | re.MULTILINE)
    text = loop.sub(
        lambda m: "\n".join(m[3].replace(f"${m[1]}", value) for value in m[2].split()), text
    )
    for line in text.splitlines():
        for command in line.split(" && "):
            words = shlex.split(command, comments=True)
            told: dict[str, str] = {}
            while words and re.match(r"[A-Z_]+=", words[0]):
                name, _, value = words.pop(0).partition("=")
                told[name] = value
            if words[:1] == ["eval"]:  # what is evaluated is a command, too
                words = shlex.split(words[1].removeprefix("$(").removesuffix(")"))
            if words:
                yield told, words


def shortened(text: str) -> str:
    """Give a study file with the sizes of `SHORT`, all other keys as they are."""
    document = tomllib.loads(text)
    for table, sizes in SHORT.items():
        document.setdefault(table, {}).update(sizes)
    if document.get("model", {}).get("dtype"):
        document["model"]["dtype"] = "float32"
    folds = document.get("pruning", {}).get("folds", 2)
    document["projector"]["parts"] = folds
    lines = []
    for table, keys in document.items():
        lines.append(f"[{table}]")
        for key, value in keys.items():
            inline = isinstance(value, dict)
            pairs = ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) if inline else ""
            lines.append(f"{key} = {{ {pairs} }}" if inline else f"{key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


@dataclass
class Story:
    """A page that runs in one directory."""

    place: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    def run(self, block: Block) -> None:
        if block.not_run is not None:
            checked(block)
        elif block.language in ("sh", "python", "toml", "pycon", "json"):
            getattr(self, f"_{block.language}")(block)
        else:
            assert block.language == "text", f"{block}: nobody runs {block.language!r}"

    def _write(self, block: Block, text: str) -> None:
        file = self.place / str(block.title)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def _toml(self, block: Block) -> None:
        document = tomllib.loads(block.text)
        tables = {key: MINIMAL.get(key, {}) | document.get(key, {}) for key in MINIMAL | document}
        StudySpec.of(tables, place=str(block))
        if block.title is not None:
            self._write(block, shortened(block.text))

    def _json(self, block: Block) -> None:
        for line in block.text.splitlines():
            json.loads(line)
        if block.title is not None:
            self._write(block, block.text)

    def _python(self, block: Block) -> None:
        if block.title is not None:
            self._write(block, block.text)
        else:
            exec(compile(block.text, str(block), "exec"), self.names)
            closed(self.names)

    def _pycon(self, block: Block) -> None:
        parser = doctest.DocTestParser()
        test = parser.get_doctest(block.text + "\n", self.names, str(block), str(block), 0)
        told: list[str] = []
        doctest.DocTestRunner().run(test, out=told.append, clear_globs=False)
        self.names.update(test.globs)
        assert not told, "".join(told)

    def _sh(self, block: Block) -> None:
        for told, words in commands_of(block.text):
            with pytest.MonkeyPatch.context() as patch:
                for name, value in told.items():
                    patch.setenv(name, value)
                if words[:3] == STUDY:
                    self._study(words[3:])
                else:
                    assert words[0] == "python", f"{block}: nobody runs {words}"
                    self._script(words[1:])

    def _study(self, words: list[str]) -> None:
        verb = words[0]
        if verb == "dashboard":
            served(words)
            return
        if verb == "recover":
            words = [*words, "--steps", "2"]
        if verb == "evaluate" and "full" in words:
            words = [*words, "--limit", "16"]
        done = cli(*words)
        assert done.stdout or done.stderr
        if verb == "init":
            file = self.place / words[words.index("--out") + 1]
            file.write_text(shortened(file.read_text(encoding="utf-8")), encoding="utf-8")

    def _script(self, words: list[str]) -> None:
        script = self.place / words[0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words)
            patch.syspath_prepend(str(script.parent))
            closed(runpy.run_path(str(script), run_name="__main__"))


def closed(names: dict[str, Any]) -> None:
    """Put a script's models away, as the end of its process does."""
    for value in names.values():
        if isinstance(value, Epochs):
            value.bench.close()


def served(words: list[str]) -> None:
    """Ask a dashboard for its page, and stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = started(*words, "--port", port)
    try:
        until = time.monotonic() + 120
        while True:
            assert process.is_alive(), words
            assert time.monotonic() < until, words
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/dashboard/", timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        with page:
            assert "Optuna Dashboard" in page.read().decode()
    finally:
        process.terminate()
        process.join(60)


def checked(block: Block) -> None:
    """Check of a block what can be told without running it."""
    if block.language == "python":
        for node in ast.walk(ast.parse(block.text)):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            if node.module.startswith("effllava_") and "lmms" not in node.module:
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name), f"{block}: {name.name}"
        return
    assert block.language == "sh", f"{block}: is not run, and nothing is known of it"
    for _, words in commands_of(block.text):
        if words[:3] == STUDY:
            parsed(block, words[3:])
        elif words[0] == "python" and words[1].endswith(".py"):
            source = (ROOT / words[1]).read_text()
            for word in words[2:]:
                assert not word.startswith("--") or f'"{word}"' in source, f"{block}: {word}"
        elif words[:2] == ["pip", "install"]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            for word in re.findall(r"\[(.+)\]", " ".join(words)):
                assert set(word.split(",")) <= set(extras["optional-dependencies"]), block
        elif words[0] in ("bash", "tests/checks.sh"):
            assert (ROOT / words[-1 if words[0] == "bash" else 0]).is_file(), block
        else:
            known = ("pytest", ".", "python3", "mkdocs")
            assert words[0] in known or words[:3] == ["python", "-m", "lmms_eval"], words


def parsed(block: Block, words: list[str]) -> None:
    """Let click parse a command line; its arguments need not exist."""
    command = main.commands[words[0]]
    there = str(Path(__file__))  # a file that exists, for what is asked to
    words = [there if word.endswith(".py") else word for word in words]
    try:
        command.make_context(words[0], list(words[1:]))
    except click.UsageError as error:
        raise AssertionError(f"{block}: {' '.join(words)}: {error.format_message()}") from error


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the README's study, which has run."""
    place = tmp_path_factory.mktemp("small")
    (block,) = [block for block in blocks_of(README) if block.title == "small.toml"]
    Story(place)._toml(block)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        cli("run", "small.toml")
    return place


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: Path) -> Iterator[Path]:
    """A directory for a story, with what stands in for what is on the hub."""
    place = tmp_path / "story"
    place.mkdir()
    stand_in = place / "llava-hf" / "llava-1.5-7b-hf"
    shutil.copytree(ROOT / "effllava_optuna" / "embedded" / "drawn-vlm", stand_in)
    shutil.copytree(drawn / "scienceqa", place / "derek-thomas" / "ScienceQA")
    (place / "studies").mkdir()
    for file in (ROOT / "studies").glob("*.toml"):
        (place / "studies" / file.name).write_text(shortened(file.read_text()))
    (place / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    yield place
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{place}/"):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_all_that_a_page_shows_runs(page: Path, place: Path, request: Any) -> None:
    if "<!-- begins with small.toml -->" in page.read_text(encoding="utf-8"):
        shutil.copytree(request.getfixturevalue("finished"), place, dirs_exist_ok=True)
    story = Story(place)
    for block in blocks_of(page):
        try:
            story.run(block)
        except BaseException as error:
            error.add_note(f"in the block at {block}")
            raise


def test_the_tutorial_goes_from_a_model_to_a_smaller_one() -> None:
    """It is a newcomer's whole path, and runs as a page above."""
    blocks = blocks_of(ROOT / "docs" / "tutorial.md")
    shell = [block.text for block in blocks if block.language == "sh" and block.not_run is None]
    verbs = [words[3] for text in shell for _, words in commands_of(text)]
    path = ("init", "check", "run", "dashboard", "report", "pick", "export")
    assert [verb for verb in dict.fromkeys(verbs) if verb in path] == list(path)
    (loads,) = [block.text for block in blocks if block.language == "pycon"]
    assert 'load_pruned("digits.pruned")' in loads


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    idle = [block for page in PAGES for block in blocks_of(page) if block.not_run]
    assert len(idle) == NOT_RUN, "\n".join(f"{block}: {block.not_run}" for block in idle)


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        place = ROOT / target
        assert place.is_file(), target


def test_every_verb_has_a_section_and_an_example_that_parses() -> None:
    page = "\n".join(generate.commands())
    for verb in main.commands:
        (section,) = re.findall(rf"\n## {verb}\n(.*?)(?=\n## |\Z)", page, re.DOTALL)
        (example,) = re.findall(r"```sh\n(.*?)\n```", section, re.DOTALL)
        checked(Block(ROOT / "docs" / "commands", 0, "sh", None, example, "an example"))
        assert f"effllava_optuna.study {verb} " in example


def test_every_key_of_a_study_file_has_a_row() -> None:
    page = "\n".join(generate.study_file())
    for table, kind in StudySpec.model_fields.items():
        (section,) = re.findall(rf"\n## \[{table}\]\n(.*?)(?=\n## |\Z)", page, re.DOTALL)
        model: Any = kind.annotation
        for key in model.model_fields:
            assert re.search(rf"^\| `{key}[`.]", section, re.MULTILINE), f"{table}.{key}"
    assert "| `kept_share` | number, above 0, at most 1 | not given |" in page
    assert "| `folds` | whole number, at least 2, at most 8 | `2` ([why](" in page
