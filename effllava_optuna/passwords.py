"""Hide the passwords of URLs in whatever is printed, logged or published."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

_HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"pass(?!file)|pwd|secret|token|credential|signature|\bsig\b|(api|access|private|ssl)_?key",
    re.IGNORECASE,
)
# Of a keyword of libpq or ODBC, a variable, or a field of a dictionary, as drivers show them.
_PAIR = re.compile(
    r"((?:password|passwd|passphrase|pwd|secret|access_key)['\"]?\s*(?:=|(?<=['\"]):)\s*)"
    r"('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\{[^}]*\}|[^\s'\"&;,)}]*[^\s'\"&;,)}.:])",
    re.IGNORECASE,
)
_END = r"(?=['\"`)\]}.,:]*(?:[&\s]|$))"  # of a value, in a sentence
_URL = re.compile(r"[\w+.-]+://")
_USER = re.compile(r"(://[^\s:/@'\"]*):\S*@")
_WHOLE_USER = re.compile(r"\A([^:@]*://[^:/@]*|[^:/@]+):.*@", re.DOTALL)
_PARAMETER = re.compile(rf"([?&#])([^\s=&?#]+)=([^&\s]*?){_END}")
_WHOLE_PARAMETER = re.compile(r"([?&#])([^=&?#]+)=([^&]*)", re.DOTALL)


def hide_passwords(text: str) -> str:
    """Return a text with the passwords in it replaced.

    Passwords are expected before the host of a URL, and in parameters, keywords and fields with
    such a name. One before a host, or of a parameter, may contain any character, encoded or not,
    except white space; see `shown_url` for those.

    Example:
        >>> hide_passwords("cannot reach postgresql://me:secret@host/name?sslpassword=a.")
        'cannot reach postgresql://me:***@host/name?sslpassword=***.'
    """
    hidden = _PAIR.sub(rf"\1{_HIDDEN}", text)
    return _PARAMETER.sub(_hidden_parameter, _USER.sub(rf"\1:{_HIDDEN}@", hidden))


def shown_url(url: str) -> str:
    """Return what is not secret of a URL, valid or not.

    Example:
        >>> shown_url("postgresql+psycopg://me:se cret@host/name")
        'postgresql+psycopg://me:***@host/name'
    """
    hidden = _WHOLE_USER.sub(rf"\1:{_HIDDEN}@", _PAIR.sub(rf"\1{_HIDDEN}", url))
    return _WHOLE_PARAMETER.sub(_hidden_parameter, hidden)


def hide_in_document(document: Any) -> Any:
    """Return a JSON document with the passwords in its texts replaced."""
    if isinstance(document, str):
        return (shown_url if _URL.match(document) else hide_passwords)(document)
    if isinstance(document, dict):
        return {key: hide_in_document(value) for key, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [hide_in_document(value) for value in document]
    return document


def _hidden_parameter(match: re.Match[str]) -> str:
    start, name, value = match.groups()
    # A value may be a list of keywords of its own, as that of `odbc_connect` or `options`.
    is_secret = _SECRET_NAME.search(unquote(name)) or _PAIR.search(unquote(unquote(value)))
    return f"{start}{name}={_HIDDEN}" if is_secret else match[0]
