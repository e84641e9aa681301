"""Malformed command lines: one line with exit code 2, and nothing is left behind."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.study_fixtures import CommandResult, invoke

GOOD = '[model]\npath = "digits-vlm"\n[task]\nname = "digits"\n'
UNUSABLE_FILES = {
    "bad value": "[search]\nepochs = -1\n",
    "key of two lines": GOOD + '[search]\n"épochs\\n\\u0007" = 2\n',
    "storage": GOOD + '[study]\nstorage = "my.db"\n',
    "mysql": GOOD + '[study]\nstorage = "mysql://u@h/d"\n',
    "artifacts": GOOD + '[study]\nartifacts = "ftp://x/y"\n',
    "bucket with a path": GOOD + '[study]\nartifacts = "s3://bucket/path"\n',
    "server without artifacts": GOOD + '[study]\nstorage = "redis://localhost"\nartifacts = "a"\n',
}
LINES = (
    "",
    "frobnicate",
    "--frobnicate",
    "-x",
    "run",
    "check",
    "run a.toml b.toml",
    "run none.toml",
    "run .",
    "run ./",
    "check ''",
    "run good.toml --workers 0",
    "run good.toml --workers -1",
    "run good.toml --workers 1e3",
    "run good.toml --workers many",
    "run good.toml --workers",
    "run good.toml --set",
    "run good.toml --set x",
    "run good.toml --set =",
    "run good.toml --set search=1",
    "run good.toml --set .=1",
    "run good.toml --set search.epochs=",
    "run good.toml --set search.epochs=[",
    "run good.toml --set search.epochs=1e999",
    "run good.toml --set model.path=\udcff",
    "run good.toml --set task.data=x",
    "run good.toml --device ,",
    "run good.toml --device cuda:99",
    "run good.toml --set model.path=./none",
    "run good.toml --set pruning.towers=['third']",
    "run good.toml --set study.storage=sqlite:///none/x.db",
    "run good.toml --set study.storage=sqlite:////proc/x.db",
    "run good.toml --set study.storage=nonsense",
    "run good.toml --set latency.table=none/x.json",
    "run good.toml --json",
    "run good.toml -f json",
    "status",
    "status good.toml",
    "status good.toml --json",
    "status good.toml -f",
    "status good.toml -f xml",
    "status good.toml -q -v",
    "status good.toml --log-file .",
    "status good.toml --log-file none/x.log",
    "status good.toml --storage sqlite:///x.db",
    "status --study-name x",
    "status --storage sqlite:///none.db",
    "status --storage sqlite:///none.db --study-name x",
    "status --storage sqlite:/// --study-name x",
    "status --storage sqlite:// --study-name x",
    "status --storage sqlite:///:memory: --study-name x",
    "status --storage sqlite:///. --study-name x",
    "status --storage sqlite:///good.toml --study-name x",
    "status --storage sqlite:///empty.db --study-name x",
    "status --storage sqlite:///other.db --study-name x",
    "status --storage '' --study-name x",
    "status --storage nonsense --study-name x",
    "status --storage ://// --study-name x",
    "status --storage mysql://u@h/d --study-name x",
    "status --storage oracle://u@h/d --study-name x",
    "status --storage redis://localhost --study-name x",
    "status --storage postgresql+psycopg://u@127.0.0.1:1/d --study-name x",
    "status --storage journal:/// --study-name x",
    "status --storage journal:///none.log --study-name x",
    "status --storage journal:///good.toml --study-name x",
    "status --storage grpc:// --study-name x",
    "status --storage grpc://host --study-name x",
    "status --storage grpc://host:port --study-name x",
    "report good.toml",
    "resume good.toml",
    "resume good.toml --force --workers x",
    "worker good.toml --workers 2",
    "export good.toml",
    "export good.toml --trial x",
    "export good.toml --format gguf",
    "export --storage sqlite:///none.db --study-name x --out y",
    "export ./none --visual-tokens 0.5 --out x",
    "export digits-vlm --visual-tokens 0.5",
    "export digits-vlm --visual-tokens 0 --out x",
    "export digits-vlm --visual-tokens 2 --out x",
    "export digits-vlm --visual-tokens nan --out x",
    "export digits-vlm --visual-tokens 0.5 --out x --format onnx",
    "export digits-vlm --visual-tokens 0.5 --out x --trial 3",
    "export digits-vlm --visual-tokens 0.5 --out x --token-selection attention",
    "export good.toml --visual-tokens 0.5 --out x",
    "export digits-vlm --visual-tokens 0.5 --out x --study-name y",
    "export digits-vlm --visual-tokens 0.5 --out x --storage sqlite:///none.db",
    "export good.toml --token-selection random --out x",
    "export digits-vlm --token-selection random --out x",
    "recover good.toml",
    "recover good.toml --out x --part head",
    "recover good.toml --out x --steps 0",
    "recover good.toml --out x --samples 7",
    "evaluate good.toml --split train",
    "evaluate good.toml --limit 0",
    "evaluate good.toml --judge-prompt none.py",
    "evaluate good.toml --model ./none",
    "dashboard good.toml",
    "dashboard good.toml --port 65536",
    "dashboard good.toml --port x",
    "inspect",
    "inspect ./none",
    "inspect ./none --quick",
    "inspect digits-vlm --device abacus",
    "inspect digits-vlm -f toml",
    "inspect . --quick",
    "init",
    "init digits-vlm",
    "init digits-vlm --task",
    "init digits-vlm --task digitz",
    "init digits-vlm --task ''",
    "init good.toml --task digits",
    "init '' --task digits",
    "init none/none --task digits",
    "init ./none --task digits",
    "init . --task digits",
    "init digits-vlm --task qa",
    "init digits-vlm --task digits --data rows.jsonl",
    "init digits-vlm --task digits --keep-ratio 0",
    "init digits-vlm --task digits --keep-ratio 1.5",
    "init digits-vlm --task digits --keep-ratio nan",
    "init digits-vlm --task digits --keep-ratio -inf",
    "init digits-vlm --task digits --speedup 0.9",
    "init digits-vlm --task digits --speedup inf",
    "init digits-vlm --task digits --speedup fast",
    "init digits-vlm --task digits --speedup 2 --keep-ratio 0.5",
    "init digits-vlm --task digits --out good.toml",
    "init digits-vlm --task digits --out .",
    "init digits-vlm --task digits --out none/x.toml",
    "init digits-vlm --task digits --out /proc/x.toml",
    "init digits-vlm --task digits --out ''",
    "doctor none.toml",
    "doctor --repair",
    "doctor --study-name x",
    "doctor --storage sqlite:///none.db",
    "completion",
    "completion tcsh",
)


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)


def refused(*words: object, directory: Path) -> CommandResult:
    """Run a command, and check that it prints one line and changes no file."""
    before = contents(directory)
    done = invoke(*words, check=False)
    assert done.returncode == 2, (words, done)
    assert all(line.endswith(" ...") for line in done.stdout.splitlines())  # progress
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("\n")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert len(done.stderr.split()) > 2
    assert contents(directory) == before
    return done


def contents(directory: Path) -> dict[str, bytes | None]:
    """Return the content of each file of a directory; None for a subdirectory."""
    paths = sorted(directory.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize("name", UNUSABLE_FILES)
def test_an_unusable_study_file_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(UNUSABLE_FILES[name])
    assert refused("check", file, directory=tmp_path).stderr.startswith(f"{file}: ")


@pytest.mark.parametrize("line", LINES)
def test_a_malformed_command_line_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "good.toml").write_text(GOOD)
    (tmp_path / "empty.db").write_bytes(b"")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("create table mine (x integer)")
    other.close()
    words = [word.strip("'") for word in line.split(" ")] if line else []
    assert refused(*words, directory=tmp_path).returncode == 2
