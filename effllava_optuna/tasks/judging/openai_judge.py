"""A judge behind a server with OpenAI's chat completions API.

The protocol is one POST (https://platform.openai.com/docs/api-reference/chat), which vLLM,
llama.cpp, Azure and others implement, too. httpx2 sends it: huggingface_hub needs httpx2 anyway,
while the openai package adds 30 MB, and a second of import time, for this one call.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import TaskError, shorten
from effllava_optuna.tasks.judging.judgements import JudgeReply

if TYPE_CHECKING:
    import httpx2

    from effllava_optuna.tasks.judging.judgements import Judge

_REQUEST_TIMEOUT, _TOO_MANY_REQUESTS, _SERVER_ERROR = 408, 429, 500
_MAX_MESSAGE = 300  # characters of a server's message in an error


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed request is repeated, and how often.

    Attributes:
        timeout_s: Largest duration of one request, in seconds.
        max_retries: Largest number of repetitions, at least 0.
        first_delay_s: Seconds before the first retry; doubled before each further one.
        max_delay_s: Largest delay. A server that asks for a longer one is not called again.
        sleep: Waits for a number of seconds.
    """

    timeout_s: float = 120.0
    max_retries: int = 6
    first_delay_s: float = 1.0
    max_delay_s: float = 60.0
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if self.max_retries < 0 or not self.timeout_s > 0:
            raise TaskError(
                f"A judge cannot have a time-out of {self.timeout_s} s and {self.max_retries} "
                "retries.",
                hint="Use more than 0 s, and at least 0 retries.",
            )

    def delay(self, retry: int) -> float:
        """Return the seconds before retry number ``retry``, which counts from 0."""
        return min(self.max_delay_s, self.first_delay_s * 2.0 ** min(retry, 64))


_DEFAULT_RETRY = RetryPolicy()


@dataclass(frozen=True, slots=True)
class OpenAIJudge:
    """A judge behind an OpenAI-compatible server.

    The key is read from the environment for every request; no attribute and no message contains
    it. A status of 408, 429 or 5xx, a time-out, a lost connection and a body that is not a chat
    completion are retried, after the delay in ``Retry-After`` if there is one. A refusal of the
    model is an empty reply.

    Attributes:
        model: Model id, with its date if the server has dated ids: an alias changes.
        base_url: URL without ``/chat/completions``.
        key_variable: Environment variable with the API key; None: no key is sent.
        temperature: Officially 0 for MM-Vet and 0.2 for LLaVA-Bench; None: not sent.
        max_tokens: Officially 3 for MM-Vet and 1024 for LLaVA-Bench; None: not sent. A reasoning
            model needs more.
        system: The system message; empty: none. The official one of LLaVA-Bench is in
            ``get_eval`` of ``eval_gpt_review_bench.py`` (haotian-liu/LLaVA).
        retry: When failed requests are repeated.

    Raises:
        TaskError: At construction: httpx2 is not installed, the model is empty, the URL cannot be
            used, or the environment has no key. At a call: the server refuses the request, or
            fails after all retries.

    Example:
        >>> judge = OpenAIJudge("some-model", "http://127.0.0.1:8000/v1", key_variable=None)
        >>> judge.endpoint
        'http://127.0.0.1:8000/v1/chat/completions'
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    key_variable: str | None = "OPENAI_API_KEY"
    temperature: float | None = 0.0
    max_tokens: int | None = 1024
    system: str = ""
    retry: RetryPolicy = _DEFAULT_RETRY

    def __post_init__(self) -> None:
        if find_spec("httpx2") is None:
            raise TaskError(
                "A judge behind a server needs httpx2, which is not installed.",
                hint="Run `pip install 'effllava-optuna[judge]'`.",
            )
        if not self.model.strip():
            raise TaskError("The judge has no model id.", hint="Set `model`, with its date.")
        _host(self.base_url)
        self._key()

    @property
    def endpoint(self) -> str:
        """Return the URL that receives the requests."""
        return f"{self.base_url.rstrip('/')}/chat/completions"

    def __call__(self, prompt: str) -> JudgeReply:
        """Send ``prompt`` and return the reply.

        Raises:
            TaskError: The server refuses the request, or fails after all retries.
        """
        import httpx2

        name = f"The judge {self.model} at {_host(self.base_url)}"
        with httpx2.Client(timeout=self.retry.timeout_s, headers=self._headers()) as client:
            retry = 0
            while isinstance(outcome := self._send(client, prompt, name), _Failure):
                if retry == self.retry.max_retries:
                    raise TaskError(
                        f"{name} failed {retry + 1} times, the last time with: {outcome.reason}.",
                        hint="Try again later, or allow more retries or a longer time-out.",
                    )
                self._wait(outcome, retry, name)
                retry += 1
            return outcome

    def _key(self) -> str:
        """Read the key. Reject one that a header cannot carry: httpx2 would print it."""
        if self.key_variable is None:
            return ""
        key = os.environ.get(self.key_variable, "").strip()
        if not key or not key.isascii() or not key.isprintable() or set(key) & set(" \"'\\"):
            raise TaskError(
                f"The environment variable {self.key_variable} has no API key that can be sent.",
                hint="Set it, or set key_variable to None for a server without keys.",
            )
        return key

    def _headers(self) -> dict[str, str]:
        key = self._key()
        authorization = {"Authorization": f"Bearer {key}"} if key else {}
        return {"Content-Type": "application/json", **authorization}

    def _body(self, prompt: str) -> bytes:
        system = [{"role": "system", "content": self.system}] if self.system else []
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*system, {"role": "user", "content": prompt}],
        }
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        return json.dumps(body).encode()

    def _send(self, client: httpx2.Client, prompt: str, name: str) -> JudgeReply | _Failure:
        """Send one request; return a failure if it may be retried."""
        import httpx2

        deadline = time.monotonic() + self.retry.timeout_s
        body = bytearray()
        try:
            with client.stream("POST", self.endpoint, content=self._body(prompt)) as response:
                for part in response.iter_bytes():
                    body += part
                    # httpx2 limits each read; some servers send blanks to keep a line open.
                    if time.monotonic() > deadline:
                        return _Failure(f"no complete reply in {self.retry.timeout_s} s")
        except httpx2.RequestError as error:
            return _Failure(self._printable(f"{type(error).__name__} {error}"))
        if response.is_success:
            reply = _parse_completion(bytes(body))
            if reply is None:
                message = self._printable(_error_message(body))
                return _Failure(f"not a chat completion but {shorten(message)}")
            return reply
        status = response.status_code
        reason = f"{status}: {self._printable(_error_message(body))}".rstrip(": .")
        if status in (_REQUEST_TIMEOUT, _TOO_MANY_REQUESTS) or status >= _SERVER_ERROR:
            return _Failure(reason, _parse_retry_after(response.headers.get("Retry-After")))
        raise TaskError(f"{name} answered {reason}.", hint=self._hint(status))

    def _wait(self, failure: _Failure, retry: int, name: str) -> None:
        delay = failure.retry_after_s
        if delay is not None and delay > self.retry.max_delay_s:
            raise TaskError(
                f"{name} asks for a retry after {delay:.0f} s: {failure.reason}.",
                hint=f"Try again then; the longest delay is {self.retry.max_delay_s:.0f} s.",
            )
        self.retry.sleep(self.retry.delay(retry) if delay is None else delay)

    def _hint(self, status: int) -> str:
        if status in (401, 403):
            if self.key_variable is None:
                return "Set key_variable to the environment variable with the key."
            return f"Check the key in {self.key_variable}."
        if 300 <= status < 400 or status in (404, 405):
            return "Check base_url and the model id."
        return "Check the model id, temperature and max_tokens."

    def _printable(self, text: str) -> str:
        """Convert a message of a server to one short line without the key."""
        key = self._key()
        redacted = text.replace(key, "***") if key else text
        line = " ".join("".join(c if c.isprintable() else " " for c in redacted).split())
        return line if len(line) <= _MAX_MESSAGE else f"{line[:_MAX_MESSAGE]}..."


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a request failed, and the delay before a retry that the server asks for."""

    reason: str
    retry_after_s: float | None = None


def _host(base_url: str) -> str:
    """Return host and port. Reject a URL with credentials, which messages would print."""
    import httpx2

    try:
        url = httpx2.URL(base_url)
        valid = url.scheme in ("http", "https") and bool(url.host)
    except httpx2.InvalidURL:
        valid = False
    if not valid or url.userinfo or url.query or url.fragment:
        raise TaskError(
            "The judge's base_url is not of the form https://host/path.",
            hint="Remove user, password, query and fragment.",
        )
    return url.netloc.decode("ascii")


def _parse_completion(body: bytes) -> JudgeReply | None:
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return None
    match payload:
        case {"choices": [{"message": {"content": str() | None as text}}, *_]}:
            model = payload.get("model")
            return JudgeReply(text or "", model if isinstance(model, str) else "")
    return None


def _error_message(body: bytes | bytearray) -> str:
    """Return the message in the body of an error; servers use different keys for it."""
    text = bytes(body).decode("utf-8", "replace")
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError):
        return text
    match payload:
        case (
            {"error": {"message": str(message)}}
            | {"error": str(message)}
            | {"message": str(message)}
            | {"detail": str(message)}
        ):
            return message
    return json.dumps(payload, ensure_ascii=False)


def _parse_retry_after(header: str | None) -> float | None:
    """Parse Retry-After (RFC 9110, 10.2.3): seconds, or a date; None if it is neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except (ValueError, OverflowError):
            return None
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


if TYPE_CHECKING:
    _: Judge = OpenAIJudge("some-model")
