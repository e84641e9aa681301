"""Whatever is wrong is told in one line, with exit code 2, and leaves nothing behind."""

from __future__ import annotations

import sqlite3
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from effllava_optuna.study.spec import StudySpec
from tests.study.conftest import Done, cli

GOOD = '[model]\npath = "digits-vlm"\n[task]\nname = "digits"\n'


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)


def refused(*words: object, where: Path) -> Done:
    before = listing(where)
    done = cli(*words, check=False)
    assert done.returncode == 2, (words, done)
    assert all(line.endswith(" ...") for line in done.stdout.splitlines())  # of progress
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("\n")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert len(done.stderr.split()) > 2
    assert listing(where) == before
    return done


def listing(where: Path) -> dict[str, bytes | None]:
    """Give what is in a folder, and what is in that."""
    found = sorted(where.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in found}


SPECS: dict[str, bytes | str] = {
    "empty": "",
    "white": " \n\t\n",
    "comment": "# nothing else\n",
    "byte order mark": b"\xef\xbb\xbf" + GOOD.encode(),
    "utf-16": GOOD.encode("utf-16"),
    "binary": bytes(range(256)),
    "zip": b"PK\x03\x04" + bytes(100),
    "null": "\0",
    "json": '{"model": {"path": "digits-vlm"}}',
    "yaml": "model:\n  path: digits-vlm\n",
    "half a table": "[model",
    "half a string": '[model]\npath = "digits',
    "no value": "[model]\npath =\n",
    "duplicate key": GOOD + 'name = "digits"\n',
    "duplicate table": GOOD + '[model]\npath = "drawn-vlm"\n',
    "table and value": 'model = 1\n[model]\npath = "digits-vlm"\n',
    "table as a list": '[[model]]\npath = "digits-vlm"\n[task]\nname = "digits"\n',
    "deep": "a = " + "[" * 5000 + "]" * 5000,
    "deep keys": "[" + ".".join("a" * 2000) + "]\nb = 1\n",
    "digits": GOOD + f"[search]\nepochs = {'9' * 5000}\n",
    "huge": GOOD + f"[search]\nepochs = {10**300}\n",
    "more epochs than a study may have": GOOD + "[search]\nepochs = 1000001\n",
    "seed": GOOD + f"[study]\nseed = {2**63}\n",
    "negative seed": GOOD + "[study]\nseed = -1\n",
    "infinite": GOOD + "[latency]\nseconds = inf\n",
    "no number": GOOD + "[latency]\nseconds = nan\n",
    "date": GOOD + "[study]\nseed = 2026-11-22\n",
    "time": GOOD + "[study]\nseed = 07:32:00\n",
    "no model": '[task]\nname = "digits"\n',
    "no task": '[model]\npath = "digits-vlm"\n',
    "no path": '[model]\n[task]\nname = "digits"\n',
    "empty path": '[model]\npath = ""\n[task]\nname = "digits"\n',
    "unknown table": GOOD + "[serch]\nepochs = 2\n",
    "unknown key": GOOD + "[search]\nepoch = 2\n",
    "unknown key in other letters": GOOD + '[search]\n"épochs\\n\\u0007" = 2\n',
    "unknown emoji": GOOD + '["🦙"]\nx = 1\n',
    "unknown task": '[model]\npath = "digits-vlm"\n[task]\nname = "digit s"\n',
    "unknown sampler": GOOD + '[search]\nsampler = "bohb"\n',
    "unknown order": GOOD + '[pruning]\norder = "chaos"\n',
    "capitals": GOOD + '[search]\nsampler = "NSGA2"\n',
    "two budgets": GOOD + "[search]\nkept_share = 0.5\nspeedup = 2.0\n",
    "no budget": GOOD + '[search]\nsampler = "sep-cma"\n',
    "few": GOOD + '[search]\nsampler = "cma"\npopulation = 4\n',
    "slower": GOOD + "[search]\nspeedup = 0.5\n",
    "keep nothing": GOOD + "[search]\nkept_share = 0.0\n",
    "keep more": GOOD + "[search]\nkept_share = 1.01\n",
    "share as a string": GOOD + '[search]\nkept_share = "0.5"\n',
    "true as a number": GOOD + "[search]\nepochs = true\n",
    "fraction": GOOD + "[search]\nepochs = 2.5\n",
    "no shares": GOOD + "[pruning]\nshares = []\n",
    "no dense share": GOOD + "[pruning]\nshares = [0.5]\n",
    "no towers": GOOD + "[pruning]\ntowers = []\n",
    "trained and cut": GOOD + '[pruning]\ntowers = ["language", "projector"]\n',
    "parts": GOOD + "[projector]\nparts = 3\n",
    "bias and portable": GOOD + '[pruning]\nrefit = "bias"\n[export]\nform = "portable"\n',
    "rows of digits": GOOD + 'data = "rows.jsonl"\n',
    "few samples": GOOD + "proxy = 7\n",
    "slash": GOOD + '[study]\nname = "/x"\n',
    "name of two lines": GOOD + '[study]\nname = "a\\nb"\n',
    "no name": GOOD + '[study]\nname = ""\n',
    "long name": GOOD + f'[study]\nname = "{"x" * 201}"\n',
    "storage": GOOD + '[study]\nstorage = "my.db"\n',
    "mysql": GOOD + '[study]\nstorage = "mysql://u@h/d"\n',
    "artifacts": GOOD + '[study]\nartifacts = "ftp://x/y"\n',
    "bucket with a path": GOOD + '[study]\nartifacts = "s3://bucket/path"\n',
    "server without artifacts": GOOD
    + '[study]\nstorage = "redis://localhost"\nartifacts = "a"\n',
    "table with a null": GOOD + '[latency]\ntable = "a\\u0000b"\n',
}  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_a_malformed_study_file(name: str, tmp_path: Path) -> None:
    content = SPECS[name]
    file = tmp_path / "bad.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    told = refused("check", file, where=tmp_path).stderr
    assert told.startswith(f"{file}: ")
    assert refused("run", file, where=tmp_path).stderr == told


def every_wrong_value() -> list[str]:
    """For every key of a study file, what it can never be."""
    found = []
    for table, field in StudySpec.model_fields.items():
        kind: Any = field.annotation
        for key, entry in kind.model_fields.items():
            wrong = ["nan", "[[1]]", "{ nonsense = [1] }"]
            if int in (entry.annotation, *typing.get_args(entry.annotation)):
                wrong += ["-1", str(10**40)]
            found += [f"{table}.{key}={value}" for value in wrong]
        found.append(f"{table}.no_such_key=1")
        found.append(f"{table}.{next(iter(kind.model_fields))}.below=1")
    return found


def test_a_wrong_value_of_any_key(tmp_path: Path) -> None:
    file = tmp_path / "good.toml"
    file.write_text(GOOD)
    wrong = every_wrong_value()
    assert len(wrong) > 200
    for change in wrong:
        told = refused("run", file, "--set", change, where=tmp_path).stderr
        assert change.partition(".")[0] in told.removeprefix(str(file))


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode())))
@example(b"\r")
@example("a = '\u2028'".encode())
def test_noise_in_a_study_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "noise.toml").write_bytes(content)
    refused("check", tmp_path / "noise.toml", where=tmp_path)


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
    "anatomy",
    "anatomy ./none",
    "anatomy ./none --quick",
    "anatomy digits-vlm --device abacus",
    "anatomy digits-vlm -f toml",
    "anatomy . --quick",
    "init",
    "init digits-vlm",
    "init digits-vlm --task",
    "init digits-vlm --task digitz",
    "init digits-vlm --task ''",
    "init '' --task digits",
    "init none/none --task digits",
    "init ./none --task digits",
    "init . --task digits",
    "init digits-vlm --task qa",
    "init digits-vlm --task digits --data rows.jsonl",
    "init digits-vlm --task digits --kept-share 0",
    "init digits-vlm --task digits --kept-share 1.5",
    "init digits-vlm --task digits --kept-share nan",
    "init digits-vlm --task digits --kept-share -inf",
    "init digits-vlm --task digits --speedup 0.9",
    "init digits-vlm --task digits --speedup inf",
    "init digits-vlm --task digits --speedup fast",
    "init digits-vlm --task digits --speedup 2 --kept-share 0.5",
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


def test_there_are_enough_of_them() -> None:
    assert len(SPECS) + len(LINES) > 180


@pytest.mark.parametrize("line", LINES)
def test_a_malformed_command_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "good.toml").write_text(GOOD)
    (tmp_path / "empty.db").write_bytes(b"")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("create table mine (x integer)")
    other.close()
    words = [word.strip("'") for word in line.split(" ")] if line else []
    assert refused(*words, where=tmp_path).returncode == 2
