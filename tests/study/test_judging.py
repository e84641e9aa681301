"""A judge behind a server, and files for the benchmarks' own, from the command line."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.study.conftest import Done, cli

TASK = """
[model]
path = "digits-vlm"
[task]
name = "{name}"
data = "{data}"
new_tokens = 2
proxy = 8
validation = 6
test = 6
"""


@dataclass
class Desk:
    """A server: what it was asked, and what it says."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    says: list[str] = field(default_factory=list)


@pytest.fixture
def desk() -> Iterator[Desk]:
    found = Desk()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.asked.append(body)
            text = found.says[(len(found.asked) - 1) % len(found.says)]
            said = {
                "model": "judge-2026-01-01",
                "choices": [{"message": {"role": "assistant", "content": text}}],
            }
            answer = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


def study(drawn: Path, where: Path, name: str) -> Path:
    file = where / f"{name}.toml"
    file.write_text(TASK.format(name=name, data=drawn / name))
    return file


def judged(file: Path, desk: Desk, *words: object, check: bool = True) -> Done:
    options = ("--model", "dense", "--judge", "judge", "--judge-url", desk.url, "--judge-key", "")
    return cli("evaluate", file, *options, "--json", *words, check=check)


def test_mmvet_is_judged_and_replies_are_not_paid_for_twice(
    drawn: Path, tmp_path: Path, desk: Desk
) -> None:
    file = study(drawn, tmp_path, "mmvet")
    desk.says = ["0.5", "1.0"]
    found = json.loads(judged(file, desk).stdout)["judged"]
    assert (found["benchmark"], found["judge"], found["counted"]) == ("MM-Vet", "judge", 6)
    assert found["answered_by"] == ["judge-2026-01-01"]
    assert found["score"] == pytest.approx(75.0)
    assert len(desk.asked) == 6
    assert {(body["model"], body["max_tokens"]) for body in desk.asked} == {("judge", 3)}
    desk.says = ["0.0"]
    (replies,) = (tmp_path / "mmvet.answers").glob("*.replies.jsonl")
    whole = replies.read_text()
    replies.write_text(whole[:-9])  # as a kill leaves it: one reply is asked for again
    again = json.loads(judged(file, desk).stdout)["judged"]
    assert (again["counted"], len(desk.asked)) == (6, 7)
    assert json.loads(judged(file, desk).stdout)["judged"] == again
    assert len(desk.asked) == 7
    replies.write_text(whole)
    desk.asked = desk.asked[:6]
    assert json.loads(judged(file, desk).stdout)["judged"] == found
    assert len(desk.asked) == 6


def test_replies_that_cannot_be_read_are_counted_and_in_no_score(
    drawn: Path, tmp_path: Path, desk: Desk
) -> None:
    file = study(drawn, tmp_path, "llava-bench")
    desk.says = ["8 4\nbecause", "nonsense", "nonsense", "nonsense"]
    printed = judged(file, desk)
    found = json.loads(printed.stdout)["judged"]
    assert found["counted"] + found["failures"] == 6
    assert found["failures"] > 0
    assert found["score"] == pytest.approx(50.0)
    table = " ".join(
        cli(
            "evaluate", file, "--model", "dense", "--judge", "judge", "--judge-url", desk.url,
            "--judge-key", "",
        ).stdout.split()
    )  # fmt: skip
    assert "LLaVA-Bench (in the wild): 50.0" in table
    assert f"{found['counted']} of 6 replies could be read" in table
    assert "token F1, a proxy for LLaVA-Bench" in table.replace("\n", " ")


def test_a_task_without_a_judge_says_so(tmp_path: Path, drawn: Path, desk: Desk) -> None:
    failed = judged(study(drawn, tmp_path, "vizwiz"), desk, check=False)
    assert failed.returncode == 2
    assert "--judge is given, but task 'vizwiz' has none. It is for mmvet, ll" in failed.stderr
    failed = cli(
        "evaluate", study(drawn, tmp_path, "mmvet"), "--model", "dense", "--judge", "judge",
        "--judge-key", "NO_SUCH_KEY_HERE", check=False,
    )  # fmt: skip
    assert failed.returncode == 2
    assert "NO_SUCH_KEY_HERE" in failed.stderr


def test_answers_are_written_as_the_servers_read_them(drawn: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet"
    words = ("--model", "dense", "--submit", sheet, "--split", "full", "--limit", 9)
    cli("evaluate", study(drawn, tmp_path, "mmvet"), *words)
    assert [*json.loads(sheet.read_text())] == [f"v1_{number}" for number in range(9)]
    cli("evaluate", study(drawn, tmp_path, "llava-bench"), *words)
    lines = [json.loads(line) for line in sheet.read_text().splitlines()]
    assert [line["question_id"] for line in lines] == list(range(9))
    vizwiz = study(drawn, tmp_path, "vizwiz")
    vizwiz.write_text(f'{vizwiz.read_text()}\n[task.splits]\ntest = "test"\n')
    table = cli("evaluate", vizwiz, *words).stdout
    assert "9 samples have no right answer to compare with" in " ".join(table.split())
    found = json.loads(sheet.read_text())
    assert [*found[0]] == ["image", "answer"]
    assert found[0]["image"].startswith("VizWiz_test_00000000")
