"""The code blocks of the README and of docs/: reading them, and checking them without running."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from effllava_optuna.cli import PROGRAM
from effllava_optuna.cli.program import main
from effllava_optuna.study import StudyConfig
from tests.study_fixtures import ROOT

README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").rglob("*.md")))
MODULE = ["python", "-m", "effllava_optuna.study"]
REQUIRED_TABLES: dict[str, dict[str, Any]] = {  # added to a fragment of a study file
    "study": {"name": "page"},
    "model": {"path": "m"},
    "task": {"name": "qa"},
}
_BLOCK = re.compile(
    r"(?P<before>[^\n]*)\n+```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n"
    r"(?P<text>.*?)\n```\n",
    re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        title: The file that it is the content of; None: it is no file.
        not_run: The reason of ``<!-- not run: reason -->`` before it; None: there is none.
    """

    page: Path
    line: int
    language: str
    title: str | None
    text: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self) -> bool:
        """Return whether the block executes something."""
        code = ("sh", "pycon") if self.title else ("sh", "pycon", "python")
        return self.language in code and self.not_run is None


def blocks_of(page: Path) -> list[Block]:
    """Read the blocks of a page."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for match in _BLOCK.finditer(text):
        marker = re.fullmatch(r"<!-- not run: (.+) -->", match["before"])
        line = text[: match.start("text")].count("\n") + 1
        reason = marker and marker[1]
        blocks.append(Block(page, line, match["language"], match["title"], match["text"], reason))
    fences = len(re.findall(r"^ *```", text, re.MULTILINE))
    assert fences == 2 * len(blocks), f"{page}: a block that this test cannot read"
    return blocks


def commands_of(text: str) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Yield the variables and the words of each command of a shell block; loops are unrolled."""
    text = re.sub(r"\\\n\s*", " ", text)
    loop = re.compile(r"^for (\w+) in ([^;]+); do\n(.*?)\ndone", re.DOTALL | re.MULTILINE)
    text = loop.sub(
        lambda m: "\n".join(m[3].replace(f"${m[1]}", value) for value in m[2].split()), text
    )
    for line in text.splitlines():
        for command in line.split(" && "):
            words = shlex.split(command, comments=True)
            variables: dict[str, str] = {}
            while words and re.match(r"[A-Z_]+=", words[0]):
                name, _, value = words.pop(0).partition("=")
                variables[name] = value
            if words[:1] == ["eval"]:  # of the output of a command
                words = shlex.split(words[1].removeprefix("$(").removesuffix(")"))
            if words:
                yield variables, words


def program_arguments(words: list[str]) -> list[str] | None:
    """Return the arguments of a command line of this package; None: it is another program."""
    if words[:1] == [PROGRAM]:
        return words[1:]
    return words[3:] if words[:3] == MODULE else None


def check_block(block: Block) -> None:
    """Check that a block would run, as far as that can be seen without running it."""
    if block.language == "python":
        check_imports(block)
    elif block.language == "toml":
        check_study_file(block)
    elif block.language == "json":
        for line in block.text.splitlines():
            json.loads(line)
    elif block.language == "pycon":
        for example in doctest.DocTestParser().get_examples(f"{block.text}\n"):
            compile(example.source, str(block), "single")
    elif block.language == "sh":
        for _, words in commands_of(block.text):
            check_command(block, words)
    else:
        assert block.language == "text", f"{block}: unknown language {block.language!r}"


def check_imports(block: Block) -> None:
    """Check that what a Python block imports from this package exists."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("effllava_"):
            if node.module == "effllava_optuna.evaluation.lmms_eval":  # imports lmms-eval
                continue
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name), f"{block}: {name.name}"


def check_study_file(block: Block) -> None:
    """Check that a study file, or a fragment of one, is valid."""
    document = tomllib.loads(block.text)
    names = REQUIRED_TABLES | document
    tables = {name: REQUIRED_TABLES.get(name, {}) | document.get(name, {}) for name in names}
    StudyConfig.of(tables, source=str(block))


def check_command(block: Block, words: list[str]) -> None:
    """Check that the arguments of a command parse, and that its scripts and extras exist."""
    arguments = program_arguments(words)
    if arguments is not None:
        parse_arguments(block, arguments)
    elif words[0] == "python" and words[1].endswith(".py"):
        if words[1] in {other.title for other in blocks_of(block.page)}:
            return
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        for word in words[2:]:
            assert not word.startswith("--") or f'"{word}"' in source, f"{block}: {word}"
    elif words[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for extras in re.findall(r"\[(.+)\]", " ".join(words)):
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), block
    elif words[0] in ("bash", "tests/checks.sh"):
        assert (ROOT / words[-1 if words[0] == "bash" else 0]).is_file(), block
    else:
        known = ("pytest", ".", "python3", "mkdocs", "vllm", "vllm/bin/pip", "npm", "llama-server")
        modules = ("lmms_eval", "vllm.entrypoints.openai.api_server")
        is_module = words[0].endswith("python") and words[1] == "-m" and words[2] in modules
        assert words[0] in known or is_module, f"{block}: {words}"


def parse_arguments(block: Block, arguments: list[str]) -> None:
    """Let click parse the arguments of this package; the files need not exist."""
    command = main.commands[arguments[0]]
    # Options that need an existing file get this one.
    words = [__file__ if word.endswith(".py") else word for word in arguments[1:]]
    try:
        command.make_context(arguments[0], words)
    except click.UsageError as error:
        raise AssertionError(f"{block}: {' '.join(words)}: {error.format_message()}") from error
