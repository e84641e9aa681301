from __future__ import annotations

import itertools
import json
import logging
import sys
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import pytest

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.judging import openai_judge
from effllava_optuna.tasks.judging.benchmark_judges import AnsweredQuestion, judge_mmvet
from effllava_optuna.tasks.judging.openai_judge import OpenAIJudge, RetryPolicy
from tests.judge_server import JudgeServer, Response, completion, serving

KEY = "sk-not-for-your-eyes/0123456789"
VARIABLE = "EFFLLAVA_TEST_KEY"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@dataclass
class Delays:
    """Records the delays before retries instead of waiting."""

    seconds: list[float] = field(default_factory=list)

    def judge(
        self, server: JudgeServer, *, retries: int = 3, timeout: float = 10.0
    ) -> OpenAIJudge:
        retry = RetryPolicy(timeout_s=timeout, max_retries=retries, sleep=self.seconds.append)
        return OpenAIJudge("judge", server.url, key_variable=VARIABLE, retry=retry)


def failed(judge: OpenAIJudge) -> TaskError:
    """Return the error of a call, after a check that its whole chain does not have the key."""
    with pytest.raises(TaskError) as caught:
        judge("grade this")
    error: BaseException | None = caught.value
    while error is not None:
        assert KEY not in f"{error!s} {error!r}"
        assert "\n" not in str(error)
        error = error.__cause__ or error.__context__
    return caught.value


def test_a_prompt_is_sent_as_a_chat_and_the_reply_has_its_model() -> None:
    with serving(Response()) as server:
        judge = replace(Delays().judge(server), temperature=0.2, max_tokens=3, system="Be fair.")
        reply = judge("grade 猫")
    assert (reply, reply.model) == ("0.5", "judge-2026-01-01")
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert server.headers[0]["content-type"] == "application/json"
    assert server.requests == [
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


def test_options_that_are_none_are_not_sent() -> None:
    with serving(Response()) as server:
        judge = OpenAIJudge(
            "judge", f"{server.url}/", key_variable=None, temperature=None, max_tokens=None
        )
        judge("x")
    assert server.paths == ["/v1/chat/completions"]
    assert "authorization" not in server.headers[0]
    assert server.requests[0].keys() == {"model", "messages"}


def test_an_overloaded_server_is_called_again_after_the_delay_that_it_asks_for() -> None:
    busy = Response(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "7"})
    slow = replace(busy, status=408)
    delays = Delays()
    with serving(busy, slow, Response()) as server:
        assert delays.judge(server)("x") == "0.5"
    assert delays.seconds == [7.0, 7.0]
    assert len(server.requests) == 3
    assert server.requests[0] == server.requests[2]


def test_the_delay_can_be_a_date() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=50)
    dates = [format_datetime(soon, usegmt=True), format_datetime(soon.replace(tzinfo=None))]
    past = format_datetime(datetime.now(UTC) - timedelta(days=3), usegmt=True)
    busy = [Response(503, b"", {"Retry-After": value}) for value in (*dates, past, "soon", "nan")]
    delays = Delays()
    with serving(*busy, Response()) as server:
        delays.judge(server, retries=5)("x")
    assert all(2.0 < seconds <= 50 for seconds in delays.seconds[:2])  # 2.0: the default delay
    assert delays.seconds[2:] == [0.0, 8.0, 16.0]


def test_a_server_that_asks_for_too_long_a_delay_is_not_called_again() -> None:
    delays = Delays()
    busy = Response(429, b'{"error": {"message": "quota"}}', {"Retry-After": "3600"})
    with serving(busy) as server:
        assert "asks for a retry after 3600 s: 429: quota." in failed(delays.judge(server)).message
    assert (len(server.requests), delays.seconds) == (1, [])


def test_delays_double_up_to_a_limit_until_there_are_no_retries_left() -> None:
    delays = Delays()
    with serving(Response(500, b'{"error": "out of\\nmemory"}')) as server:
        error = failed(delays.judge(server, retries=8))
    port = server.url.split(":")[2].removesuffix("/v1")
    assert error.message == (
        f"The judge judge at 127.0.0.1:{port} failed 9 times, "
        "the last time with: 500: out of memory."
    )
    assert len(server.requests) == 9
    assert delays.seconds == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


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
def test_a_refused_request_is_reported_at_once_with_the_message_of_the_server(
    status: int, body: bytes, message: str, hint: str
) -> None:
    delays = Delays()
    with serving(Response(status, body, {"Location": "http://127.0.0.1:9/"})) as server:
        error = failed(delays.judge(server))
    assert error.message.endswith(message)
    assert hint in error.hint
    assert (len(server.requests), delays.seconds) == (1, [])


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
    with serving(Response(status, body)) as server:
        error = failed(Delays().judge(server, retries=0))
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
def test_a_body_that_is_not_a_chat_completion_is_retried(body: bytes) -> None:
    with serving(Response(200, body), Response()) as server:
        assert Delays().judge(server)("x") == "0.5"
    with serving(Response(200, body)) as server:
        assert "failed 2 times" in failed(Delays().judge(server, retries=1)).message


def test_a_refusal_to_judge_is_an_empty_reply_and_a_failure_of_one_row() -> None:
    rows = [AnsweredQuestion(f"v1_{n}", "q", "a", "p", ("rec",)) for n in range(2)]
    with serving(Response(200, completion(None)), Response(200, completion("1.0"))) as server:
        judged = judge_mmvet(rows, Delays().judge(server), name="judge", attempts=1)
    assert (judged.score, judged.n_parsed, judged.n_unparsed) == (100.0, 1, 1)
    assert judged.reply_models == ("judge-2026-01-01",)


def test_a_model_that_the_server_does_not_name_stays_unnamed() -> None:
    bare = b'{"model": 3, "choices": [{"message": {"content": "1"}}]}'
    with serving(Response(200, bare)) as server:
        reply = Delays().judge(server)("x")
    assert (reply, reply.model) == ("1", "")


def test_a_silent_server_causes_a_time_out() -> None:
    delays = Delays()
    with serving(Response(silent=True)) as server:
        error = failed(delays.judge(server, retries=1, timeout=0.1))
    assert "failed 2 times" in error.message
    assert "Timeout" in error.message
    assert delays.seconds == [1.0]


def test_a_server_that_sends_blanks_without_end_causes_a_time_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(monotonic=itertools.count().__next__)  # a second for each reading
    monkeypatch.setattr(openai_judge, "time", clock)
    with serving(Response(drip=0.01)) as server:
        error = failed(Delays().judge(server, retries=0, timeout=9.0))
    assert "no complete reply in 9.0 s" in error.message


def test_a_lost_connection_is_retried() -> None:
    with serving(Response(0), Response()) as server:
        assert Delays().judge(server)("x") == "0.5"
    gone = failed(Delays().judge(server, retries=2))
    assert "failed 3 times, the last time with: ConnectError" in gone.message


def test_the_message_about_a_missing_key_names_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
    with serving(Response()) as server:
        Delays().judge(server)("x")
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_the_key_is_neither_kept_nor_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(Response(500), Response()) as server:
        judge = Delays().judge(server)
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


def test_a_judge_needs_a_model_and_a_time_out() -> None:
    with pytest.raises(TaskError, match="no model id"):
        OpenAIJudge(" ", key_variable=None)
    for timeout, retries in ((1.0, -1), (0.0, 1), (float("nan"), 1)):
        with pytest.raises(TaskError, match="cannot have a time-out"):
            RetryPolicy(timeout_s=timeout, max_retries=retries)


def test_the_message_about_a_missing_library_has_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(TaskError, match=r"pip install 'effllava-optuna\[judge\]'"):
        OpenAIJudge("judge", key_variable=None)
