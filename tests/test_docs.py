"""README and docs/: code blocks parse and run, links lead to files, references are complete.

The blocks of a page run in order, in one directory of their own and in this process. This differs
from a reader's machine only as follows:

- study files, those of ``init`` included, get the sizes of `SHORT`, float32 and minimal timing;
- ``studies/`` has the study files of the project with these sizes, ``benchmarks/`` its scripts;
- a page with ``<!-- begins with small.toml -->`` finds the README's study, finished; all of these
  pages share one run of it;
- ``llava-hf/llava-1.5-7b-hf`` and ``derek-thomas/ScienceQA`` are directories of these names with
  the embedded drawn-vlm and with generated rows;
- ``dashboard`` is only parsed (tests/dashboard serves one), ``recover`` takes two steps, and
  ``evaluate --split full`` uses 16 samples.

A block after ``<!-- not run: reason -->`` is only checked, as all blocks are in the default run.
"""

from __future__ import annotations

import doctest
import json
import re
import runpy
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from docs import generate
from effllava_optuna.cli.program import main
from effllava_optuna.study import SearchSession, StudyConfig
from tests.page_blocks import (
    PAGES,
    README,
    Block,
    blocks_of,
    check_block,
    commands_of,
    program_arguments,
)
from tests.study_fixtures import ROOT, invoke

NOT_RUN = 29
IN_THE_DEFAULT_RUN = ROOT / "docs" / "models.md"  # takes a second
SHORT: dict[str, dict[str, Any]] = {
    "task": {"proxy": 16, "validation": 8, "test": 8},
    "pruning": {"width_ratios": [0.05, 0.2, 0.5, 1.0], "multiple_of": 8},
    "latency": {"seconds": 0, "checks": 4, "repeats": 2, "batch": 8},
    "search": {"epochs": 2, "generations": 2, "population": 6},
    "projector": {"steps": 2, "every": 1},
    "report": {"finalists": 2},
}


def shortened(text: str) -> str:
    """Return a study file with the sizes of `SHORT` and all other keys as they are."""
    document = tomllib.loads(text)
    for table, sizes in SHORT.items():
        document.setdefault(table, {}).update(sizes)
    if document["model"].get("dtype"):
        document["model"]["dtype"] = "float32"
    document["projector"]["parts"] = document["pruning"].get("folds", 2)
    lines = []
    for table, keys in document.items():
        lines.append(f"[{table}]")
        for key, value in keys.items():
            if isinstance(value, dict):
                pairs = ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items())
                lines.append(f"{key} = {{ {pairs} }}")
            else:
                lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


@dataclass
class PageRunner:
    """A page that runs in the current directory."""

    directory: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    def run(self, block: Block) -> None:
        """Write the file of a block, or run its commands."""
        if block.not_run is not None or block.language in ("toml", "json", "text"):
            check_block(block)
        if block.title is not None:
            text = shortened(block.text) if block.language == "toml" else block.text
            (self.directory / block.title).write_text(text, encoding="utf-8")
        elif block.runs:
            getattr(self, f"_run_{block.language}")(block)

    def _run_python(self, block: Block) -> None:
        exec(compile(block.text, str(block), "exec"), self.names)
        close_sessions(self.names)

    def _run_pycon(self, block: Block) -> None:
        parser = doctest.DocTestParser()
        test = parser.get_doctest(block.text + "\n", self.names, str(block), str(block), 0)
        output: list[str] = []
        doctest.DocTestRunner().run(test, out=output.append, clear_globs=False)
        self.names.update(test.globs)
        assert not output, "".join(output)

    def _run_sh(self, block: Block) -> None:
        for variables, words in commands_of(block.text):
            arguments = program_arguments(words)
            with pytest.MonkeyPatch.context() as patch:
                for name, value in variables.items():
                    patch.setenv(name, value)
                if arguments is None:
                    self._run_script(words[1:])
                else:
                    self._run_program(block, arguments)

    def _run_program(self, block: Block, arguments: list[str]) -> None:
        verb = arguments[0]
        if verb == "dashboard":
            check_block(block)
            return
        if verb == "recover":
            arguments = [*arguments, "--steps", "2"]
        if verb == "evaluate" and "full" in arguments:
            arguments = [*arguments, "--limit", "16"]
        result = invoke(*arguments)
        assert result.stdout or result.stderr
        if verb == "init":
            file = self.directory / arguments[arguments.index("--out") + 1]
            file.write_text(shortened(file.read_text(encoding="utf-8")), encoding="utf-8")

    def _run_script(self, words: list[str]) -> None:
        script = self.directory / words[0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words)
            patch.syspath_prepend(str(script.parent))
            close_sessions(runpy.run_path(str(script), run_name="__main__"))


def close_sessions(names: dict[str, Any]) -> None:
    """Close the sessions of a script, as the end of its process does."""
    for value in names.values():
        if isinstance(value, SearchSession):
            value.close()


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the README's study, finished and exported."""
    directory = tmp_path_factory.mktemp("small")
    (block,) = [block for block in blocks_of(README) if block.title == "small.toml"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        PageRunner(directory).run(block)
        invoke("run", "small.toml")
    return directory


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PageRunner]:
    """A runner in a directory with the project's scripts and study files."""
    directory = tmp_path / "page"
    (directory / "studies").mkdir(parents=True)
    for file in (ROOT / "studies").glob("*.toml"):
        (directory / "studies" / file.name).write_text(shortened(file.read_text()))
    (directory / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(directory)
    monkeypatch.syspath_prepend(str(directory))
    yield PageRunner(directory)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{directory}/"):
            del sys.modules[name]


def add_stand_ins(directory: Path, drawn: Path) -> None:
    """Add directories that stand in for a model and a dataset on the hub."""
    model = directory / "llava-hf" / "llava-1.5-7b-hf"
    shutil.copytree(ROOT / "effllava_optuna" / "embedded" / "drawn-vlm", model)
    shutil.copytree(drawn / "scienceqa", directory / "derek-thomas" / "ScienceQA")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_parse_and_import_what_exists(page: Path) -> None:
    for block in blocks_of(page):
        check_block(block)


def run_page(page: Path, runner: PageRunner, drawn: Callable[[], Path] | None = None) -> int:
    """Run the blocks of a page in their order; return how many of them are run.

    Stand-ins for the hub appear with the first block that needs them: those before it use shipped
    studies, in which a directory of the working directory is no model.
    """
    blocks = blocks_of(page)
    for block in blocks:
        if drawn is not None and "llava-hf/" in block.text:
            add_stand_ins(runner.directory, drawn())
            drawn = None
        try:
            runner.run(block)
        except BaseException as error:
            error.add_note(f"in the block at {block}")
            raise
    return sum(block.runs for block in blocks)


RUNNING_PAGES = [page for page in PAGES if any(block.runs for block in blocks_of(page))]
PAGES_OF_SMALL_STUDY = [
    page
    for page in RUNNING_PAGES
    if "<!-- begins with small.toml -->" in page.read_text(encoding="utf-8")
]


# Two classes: pytest-xdist runs each in one process (--dist loadscope), and one study is shared.
@pytest.mark.docs
class TestPagesOfTheSmallStudy:
    @pytest.mark.parametrize("page", PAGES_OF_SMALL_STUDY, ids=lambda page: page.stem)
    def test_the_blocks_of_a_page_run(
        self, page: Path, runner: PageRunner, small_study: Path
    ) -> None:
        shutil.copytree(small_study, runner.directory, dirs_exist_ok=True)
        assert run_page(page, runner) > 0


class TestOtherPages:
    @pytest.mark.parametrize(
        "page",
        [
            pytest.param(page, marks=pytest.mark.docs if page != IN_THE_DEFAULT_RUN else ())
            for page in RUNNING_PAGES
            if page not in PAGES_OF_SMALL_STUDY
        ],
        ids=lambda page: page.stem,
    )
    def test_the_blocks_of_a_page_run(
        self, page: Path, runner: PageRunner, request: pytest.FixtureRequest
    ) -> None:
        assert run_page(page, runner, lambda: request.getfixturevalue("drawn")) > 0


def test_the_tutorial_goes_from_a_model_to_a_smaller_one() -> None:
    blocks = blocks_of(ROOT / "docs" / "tutorial.md")
    shell = [block.text for block in blocks if block.language == "sh" and block.runs]
    commands = [program_arguments(words) for text in shell for _, words in commands_of(text)]
    verbs = dict.fromkeys(arguments[0] for arguments in commands if arguments)
    path = ("init", "check", "run", "dashboard", "report", "pick", "export")
    assert [verb for verb in verbs if verb in path] == list(path)
    (session,) = [block.text for block in blocks if block.language == "pycon"]
    assert 'load_pruned("digits.pruned")' in session


def test_few_blocks_are_not_run_and_each_has_a_reason() -> None:
    not_run = [block for page in PAGES for block in blocks_of(page) if block.not_run]
    assert len(not_run) == NOT_RUN, "\n".join(f"{block}: {block.not_run}" for block in not_run)


def test_the_readme_has_two_commands_and_its_links_lead_to_files() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert [block.language for block in blocks_of(README)].count("sh") == 2
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / target).is_file(), target


def test_every_verb_has_a_section_and_an_example_that_parses() -> None:
    page = "\n".join(generate.commands())
    for verb in main.commands:
        (section,) = re.findall(rf"\n## {verb}\n(.*?)(?=\n## |\Z)", page, re.DOTALL)
        (example,) = re.findall(r"```sh\n(.*?)\n```", section, re.DOTALL)
        check_block(Block(ROOT / "docs/reference/commands.md", 0, "sh", None, example, None))
        assert f"effllava-optuna {verb} " in example


def test_every_key_of_a_study_file_has_a_row() -> None:
    page = "\n".join(generate.study_file())
    for table, kind in StudyConfig.model_fields.items():
        (section,) = re.findall(rf"\n## \[{table}\]\n(.*?)(?=\n## |\Z)", page, re.DOTALL)
        model: Any = kind.annotation
        for key in model.model_fields:
            assert re.search(rf"^\| `{key}[`.]", section, re.MULTILINE), f"{table}.{key}"
    assert "| `keep_ratio` | number, above 0, at most 1 | not set |" in page
    assert "| `folds` | integer, at least 2, at most 8 | `2` ([why](" in page
