"""Ask a judge behind a server that speaks OpenAI's chat completions.

The protocol is one POST (https://platform.openai.com/docs/api-reference/chat), and vLLM,
llama.cpp, Azure and others speak it too. httpx2 sends it: huggingface_hub needs it anyway, while
the openai package adds 30 MB, and a second to the start, for this one call.
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

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.verdict import Reply

if TYPE_CHECKING:
    import httpx2

    from effllava_optuna.tasks.verdict import Judge

_TIMED_OUT, _TOO_MANY, _BROKEN = 408, 429, 500
_LONGEST_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server is waited for.

    Attributes:
        timeout: Seconds that one request may take.
        retries: How often it is sent again after the first time, at least 0.
        first: Seconds before the second request; twice as many before each further one.
        longest: Most seconds before any; a server that asks for more is given up.
        sleep: Waits.
    """

    timeout: float = 120.0
    retries: int = 6
    first: float = 1.0
    longest: float = 60.0
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if self.retries < 0 or not self.timeout > 0:
            raise TaskError(
                f"A judge cannot be waited for {self.timeout} s with {self.retries} retries.",
                hint="Use more than 0 s, and at least 0 retries.",
            )

    def pause(self, retry: int) -> float:
        """Give the seconds before the ``retry``-th retry, from 0 on."""
        return min(self.longest, self.first * 2.0 ** min(retry, 64))


_PATIENCE = Patience()


@dataclass(frozen=True, slots=True)
class OpenAIJudge:
    """A judge behind an OpenAI-compatible server.

    The key is read from the environment for every request; it is in no attribute and no message.
    A status of 408, 429 or 5xx, a time-out, a lost connection and a body that is no chat
    completion are tried again; ``Retry-After`` is honoured. A refusal is an empty reply.

    Attributes:
        model: The model id, with its date where the server has one: an alias moves.
        base_url: Up to and without ``/chat/completions``.
        key_variable: The environment variable that has the API key; None sends no key.
        temperature: Officially 0 for MM-Vet and 0.2 for LLaVA-Bench; None sends none.
        max_tokens: Officially 3 for MM-Vet and 1024 for LLaVA-Bench; None sends none. A judge
            that thinks before it answers needs many.
        system: The system message; none where it is empty. LLaVA-Bench has one in ``get_eval``
            of ``eval_gpt_review_bench.py`` (haotian-liu/LLaVA).
        patience: How long the server is waited for.

    Raises:
        TaskError: When made: httpx2 is not installed, the model is empty, the URL cannot be
            used, or the environment has no key. When called: the server refuses, with its
            message, or fails until ``patience`` is over.

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
    patience: Patience = _PATIENCE

    def __post_init__(self) -> None:
        if find_spec("httpx2") is None:
            raise TaskError(
                "A judge behind a server needs httpx2, which is not installed.",
                hint="Run `pip install 'effllava-optuna[judge]'`.",
            )
        if not self.model.strip():
            raise TaskError("The judge has no model id.", hint="Name it, with its date.")
        _host(self.base_url)
        self._key()

    @property
    def endpoint(self) -> str:
        """Give the URL that requests go to."""
        return f"{self.base_url.rstrip('/')}/chat/completions"

    def __call__(self, prompt: str) -> Reply:
        """Ask ``prompt`` and give the reply.

        Raises:
            TaskError: See the class.
        """
        import httpx2

        who = f"The judge {self.model} at {_host(self.base_url)}"
        with httpx2.Client(timeout=self.patience.timeout, headers=self._headers()) as client:
            retry = 0
            while isinstance(outcome := self._sent(client, prompt, who), _Trouble):
                if retry == self.patience.retries:
                    raise TaskError(
                        f"{who} failed {retry + 1} times, at last so: {outcome.what}.",
                        hint="Try again later, or give it more retries or time.",
                    )
                self._wait(outcome, retry, who)
                retry += 1
            return outcome

    def _key(self) -> str:
        """Read the key; what a header cannot carry would be printed by the one who refuses it."""
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
        bearer = {"Authorization": f"Bearer {key}"} if key else {}
        return {"Content-Type": "application/json", **bearer}

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

    def _sent(self, client: httpx2.Client, prompt: str, who: str) -> Reply | _Trouble:
        """Send one request; what a further one could mend comes back as trouble."""
        import httpx2

        over = time.monotonic() + self.patience.timeout
        body = bytearray()
        try:
            with client.stream("POST", self.endpoint, content=self._body(prompt)) as response:
                for part in response.iter_bytes():
                    body += part
                    # httpx2 limits each read; some servers send blanks to keep a line open.
                    if time.monotonic() > over:
                        return _Trouble(f"no whole reply in {self.patience.timeout} s")
        except httpx2.RequestError as error:
            return _Trouble(self._line(f"{type(error).__name__} {error}"))
        if response.is_success:
            reply = _reply(bytes(body))
            if reply is None:
                return _Trouble(f"no chat completion but {self._line(_message(body))!r}")
            return reply
        status = response.status_code
        said = f"{status}: {self._line(_message(body))}".rstrip(": .")
        if status in (_TIMED_OUT, _TOO_MANY) or status >= _BROKEN:
            return _Trouble(said, _seconds(response.headers.get("Retry-After")))
        raise TaskError(f"{who} answered {said}.", hint=self._cure(status))

    def _wait(self, trouble: _Trouble, retry: int, who: str) -> None:
        asked = trouble.wait
        if asked is not None and asked > self.patience.longest:
            raise TaskError(
                f"{who} asks to come back in {asked:.0f} s: {trouble.what}.",
                hint=f"Try again then; a judge is waited for {self.patience.longest:.0f} s.",
            )
        self.patience.sleep(self.patience.pause(retry) if asked is None else asked)

    def _cure(self, status: int) -> str:
        if status in (401, 403):
            return f"Check the key in {self.key_variable or 'a variable, and name that one'}."
        if 300 <= status < 400 or status in (404, 405):
            return "Check base_url and the model id."
        return "Check the model id, temperature and max_tokens."

    def _line(self, text: str) -> str:
        """Make a server's words fit to print: one line, not long, and without the key."""
        key = self._key()
        shown = text.replace(key, "***") if key else text
        line = " ".join("".join(c if c.isprintable() else " " for c in shown).split())
        return line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]}..."


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why a request has to be sent again, and after how many seconds if the server says."""

    what: str
    wait: float | None = None


def _host(base_url: str) -> str:
    """Give host and port; credentials in a URL would be printed with it."""
    import httpx2

    try:
        url = httpx2.URL(base_url)
        fits = url.scheme in ("http", "https") and bool(url.host)
    except httpx2.InvalidURL:
        fits = False
    if not fits or url.userinfo or url.query or url.fragment:
        raise TaskError(
            "The judge's base_url is not of the form https://host/path.",
            hint="Leave out user, password, query and fragment.",
        )
    return url.netloc.decode("ascii")


def _reply(body: bytes) -> Reply | None:
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return None
    match payload:
        case {"choices": [{"message": {"content": str() | None as text}}, *_]}:
            model = payload.get("model")
            return Reply(text or "", model if isinstance(model, str) else "")
    return None


def _message(body: bytes | bytearray) -> str:
    """Find the sentence of an error; servers differ in where they put it."""
    text = bytes(body).decode("utf-8", "replace")
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError):
        return text
    match payload:
        case (
            {"error": {"message": str(said)}}
            | {"error": str(said)}
            | {"message": str(said)}
            | {"detail": str(said)}
        ):
            return said
    return json.dumps(payload, ensure_ascii=False)


def _seconds(header: str | None) -> float | None:
    """Read Retry-After (RFC 9110, 10.2.3): seconds, or a date; None where it says neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except (ValueError, OverflowError):
            return None
        known = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (known - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


if TYPE_CHECKING:
    _: Judge = OpenAIJudge("some-model")
