from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.chat import OpenAIJudge, Patience
from effllava_optuna.tasks.judge import MMVetRow, judge_mmvet
from tests.desk import Answer, Desk, completion, serving

KEY = "sk-not-for-your-eyes/0123456789"
VARIABLE = "EFFLLAVA_TEST_KEY"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@dataclass
class Waits:
    """Time that is written down instead of waited for."""

    seconds: list[float] = field(default_factory=list)

    def judge(self, desk: Desk, *, retries: int = 3, timeout: float = 10.0) -> OpenAIJudge:
        patience = Patience(timeout=timeout, retries=retries, sleep=self.seconds.append)
        return OpenAIJudge("judge", desk.url, key_variable=VARIABLE, patience=patience)


def failed(judge: OpenAIJudge) -> TaskError:
    with pytest.raises(TaskError) as caught:
        judge("grade this")
    seen: list[BaseException] = []
    error: BaseException | None = caught.value
    while error is not None:
        seen.append(error)
        error = error.__cause__ or error.__context__
    for one in seen:
        assert KEY not in f"{one!s} {one!r}"
        assert "\n" not in str(one)
    return caught.value


def test_a_prompt_goes_out_as_a_chat_and_the_reply_knows_its_model() -> None:
    with serving(Answer()) as desk:
        judge = replace(Waits().judge(desk), temperature=0.2, max_tokens=3, system="Be fair.")
        reply = judge("grade 猫")
    assert (reply, reply.model) == ("0.5", "judge-2026-01-01")
    assert desk.paths == ["/v1/chat/completions"]
    assert desk.headers[0]["authorization"] == f"Bearer {KEY}"
    assert desk.headers[0]["content-type"] == "application/json"
    assert desk.asked == [
        {
            "model": "judge",
            "messages": [
                {"role": "system", "content": "Be fair."},
                {"role": "user", "content": "grade 猫"},
            ],
            "temperature": 0.2,
            "max_tokens": 3,
        }
    ]


def test_what_is_none_is_not_sent() -> None:
    with serving(Answer()) as desk:
        judge = OpenAIJudge(
            "judge", f"{desk.url}/", key_variable=None, temperature=None, max_tokens=None
        )
        judge("x")
    assert desk.paths == ["/v1/chat/completions"]
    assert "authorization" not in desk.headers[0]
    assert desk.asked[0].keys() == {"model", "messages"}


def test_an_overloaded_server_is_asked_again_after_the_time_it_says() -> None:
    busy = Answer(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "7"})
    slow = replace(busy, status=408)
    waits = Waits()
    with serving(busy, slow, Answer()) as desk:
        assert waits.judge(desk)("x") == "0.5"
    assert waits.seconds == [7.0, 7.0]
    assert len(desk.asked) == 3
    assert desk.asked[0] == desk.asked[2]


def test_a_date_to_come_back_at_is_understood() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=30)
    dates = [format_datetime(soon, usegmt=True), format_datetime(soon.replace(tzinfo=None))]
    past = format_datetime(datetime.now(UTC) - timedelta(days=3), usegmt=True)
    busy = [Answer(503, b"", {"Retry-After": value}) for value in (*dates, past, "soon", "nan")]
    waits = Waits()
    with serving(*busy, Answer()) as desk:
        waits.judge(desk, retries=5)("x")
    assert min(waits.seconds[:2]) > 25
    assert max(waits.seconds[:2]) <= 30
    assert waits.seconds[2:] == [0.0, 8.0, 16.0]


def test_a_server_that_wants_to_be_left_alone_for_long_is_given_up() -> None:
    waits = Waits()
    busy = Answer(429, b'{"error": {"message": "quota"}}', {"Retry-After": "3600"})
    with serving(busy) as desk:
        assert "asks to come back in 3600 s: 429: quota." in failed(waits.judge(desk)).message
    assert (len(desk.asked), waits.seconds) == (1, [])


def test_a_broken_server_is_asked_until_patience_is_over() -> None:
    waits = Waits()
    with serving(Answer(500, b'{"error": "out of\\nmemory"}')) as desk:
        error = failed(waits.judge(desk, retries=8))
    port = desk.url.split(":")[2].removesuffix("/v1")
    assert error.message == (
        f"The judge judge at 127.0.0.1:{port} failed 9 times, at last so: 500: out of memory."
    )
    assert len(desk.asked) == 9
    assert waits.seconds == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


@pytest.mark.parametrize(
    ("status", "body", "message", "hint"),
    [
        (401, b'{"error": {"message": "bad key"}}', "answered 401: bad key.", VARIABLE),
        (403, b'{"detail": "not yours."}', "answered 403: not yours.", VARIABLE),
        (404, b'{"message": "no such model"}', "answered 404: no such model.", "model id"),
        (400, b'{"error": {"code": 3}}', 'answered 400: {"error": {"code": 3}}.', "max_tokens"),
        (422, b"", "answered 422.", "max_tokens"),
        (301, b"moved", "answered 301: moved.", "base_url"),
    ],
)
def test_a_refusal_is_told_at_once_in_the_words_of_the_server(
    status: int, body: bytes, message: str, hint: str
) -> None:
    waits = Waits()
    with serving(Answer(status, body, {"Location": "http://127.0.0.1:9/"})) as desk:
        error = failed(waits.judge(desk))
    assert error.message.endswith(message)
    assert hint in error.hint
    assert (len(desk.asked), waits.seconds) == (1, [])


@pytest.mark.parametrize("status", [200, 401, 500])
@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"error": {"message": f"The key\n{KEY} is wrong. " + "Long. " * 200}}).encode(),
        json.dumps({"unknown": [f"x{KEY}x"]}).replace("/", "\\/").encode(),
        f"<html>{KEY}\x1b[31m</html>".encode(),
        f"{'y' * 290}{KEY}".encode(),
    ],
)
def test_a_key_that_the_server_repeats_is_not_printed(status: int, body: bytes) -> None:
    with serving(Answer(status, body)) as desk:
        error = failed(Waits().judge(desk, retries=0))
    assert "sk-" not in error.message
    assert "\x1b" not in error.message
    assert len(error.message) < 500


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": [',
        b"<html>Welcome</html>",
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"message": {}}]}',
        b'{"choices": [{"message": {"content": 0.5}}]}',
        b'{"error": {"message": "upstream is down"}}',
    ],
)
def test_what_is_no_chat_completion_is_asked_for_again(body: bytes) -> None:
    with serving(Answer(200, body), Answer()) as desk:
        assert Waits().judge(desk)("x") == "0.5"
    with serving(Answer(200, body)) as desk:
        assert "failed 2 times" in failed(Waits().judge(desk, retries=1)).message


def test_a_refusal_to_judge_is_an_empty_reply_and_a_failure_of_one_row() -> None:
    row = MMVetRow("v1_0", "q", "a", "p", ("rec",))
    other = MMVetRow("v1_1", "q", "a", "p", ("rec",))
    with serving(Answer(200, completion(None)), Answer(200, completion("1.0"))) as desk:
        judged = judge_mmvet([row, other], Waits().judge(desk), name="judge", tries=1)
    assert (judged.score, judged.counted, judged.failures) == (100.0, 1, 1)
    assert judged.answered_by == ("judge-2026-01-01",)


def test_a_model_that_the_server_does_not_name_stays_unnamed() -> None:
    bare = b'{"model": 3, "choices": [{"message": {"content": "1"}}]}'
    with serving(Answer(200, bare)) as desk:
        reply = Waits().judge(desk)("x")
    assert (reply, reply.model) == ("1", "")


def test_a_silent_server_is_a_time_out() -> None:
    waits = Waits()
    with serving(Answer(silent=True)) as desk:
        error = failed(waits.judge(desk, retries=1, timeout=0.1))
    assert "failed 2 times, at last so: ReadTimeout" in error.message
    assert waits.seconds == [1.0]


def test_a_server_that_keeps_the_line_open_with_blanks_is_a_time_out() -> None:
    with serving(Answer(drip=0.02)) as desk:
        error = failed(Waits().judge(desk, retries=0, timeout=1.0))
    assert "no whole reply in 1.0 s" in error.message


def test_a_lost_connection_is_tried_again() -> None:
    with serving(Answer(0), Answer()) as desk:
        assert Waits().judge(desk)("x") == "0.5"
    gone = failed(Waits().judge(desk, retries=2))
    assert "failed 3 times, at last so: ConnectError" in gone.message


def test_a_missing_key_is_told_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", " \n", "two words", "k\u00e9y", "a\tb", '"quoted"'):
        monkeypatch.setenv(VARIABLE, value)
        with pytest.raises(TaskError, match=f"variable {VARIABLE} has no API key") as caught:
            OpenAIJudge("judge", key_variable=VARIABLE)
        assert not value.strip() or value not in str(caught.value)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(TaskError, match=f"variable {VARIABLE} has no API key"):
        OpenAIJudge("judge", key_variable=VARIABLE)


def test_a_key_with_a_line_break_at_its_end_is_sent_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, f"{KEY}\n")
    with serving(Answer()) as desk:
        Waits().judge(desk)("x")
    assert desk.headers[0]["authorization"] == f"Bearer {KEY}"


def test_the_key_is_neither_kept_nor_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(Answer(500), Answer()) as desk:
        judge = Waits().judge(desk)
        judge("x")
    assert caplog.records
    assert KEY not in caplog.text
    assert KEY not in repr(judge)


@pytest.mark.parametrize(
    "url",
    [
        "", "host/v1", "ftp://host/v1", "http://", "http://me:pass@host/v1", "http://host/v1?k=pass",
        "http://host/v1#pass", "http://[::1/v1", "http://host:pass/v1",
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_used_or_printed_is_refused(url: str) -> None:
    with pytest.raises(TaskError, match="base_url is not of the form") as caught:
        OpenAIJudge("judge", url, key_variable=None)
    assert "pass@" not in str(caught.value)


def test_a_judge_needs_a_model_and_some_patience() -> None:
    with pytest.raises(TaskError, match="no model id"):
        OpenAIJudge(" ", key_variable=None)
    for timeout, retries in ((1.0, -1), (0.0, 1), (float("nan"), 1)):
        with pytest.raises(TaskError, match="cannot be waited for"):
            Patience(timeout=timeout, retries=retries)


def test_a_missing_library_is_told_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(TaskError, match=r"pip install 'effllava-optuna\[judge\]'"):
        OpenAIJudge("judge", key_variable=None)
