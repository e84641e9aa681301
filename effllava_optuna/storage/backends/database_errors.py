"""What to do about an error of a database."""

from __future__ import annotations

_KEPT = "What was stored before is kept."
_CURES = (
    (
        ("malformed", "not a database", "corrupt", "invalid page", "could not decode"),
        "The database is damaged. Keep a copy of it, and restore an earlier one, or what "
        "`sqlite3 FILE .recover` can read.",
    ),
    (
        ("locked", "busy", "deadlock", "lock timeout"),
        "Wait for the process that locks the database, or end it, then repeat the command. "
        f"{_KEPT}",
    ),
    (
        ("is full", "no space", "quota", "too large"),
        f"Free disk space, then continue with `resume`. {_KEPT}",
    ),
    (
        ("readonly", "read-only", "permission denied", "unable to open"),
        "Make sure that the file and its directory exist and can be written, then repeat the "
        "command.",
    ),
    (
        ("i/o error", "input/output"),
        "Check the disk and its file system, and copy the database before anything else.",
    ),
    (
        ("password", "authentication", "no pg_hba"),
        "Use another user or password in the URL of the storage.",
    ),
    (
        ("storage upgrade", "no such column", "alembic", "schema version"),
        "Run `optuna storage upgrade --storage {url}`.",
    ),
    (
        ("no such table", "does not exist", "no studies in it"),
        "Use the URL of the database of the study, or start one with `run`.",
    ),
    (
        ("connect", "resolve", "server", "timeout", "timed out"),
        f"Check that the server runs and can be reached, then repeat the command. {_KEPT}",
    ),
)


def cure_of(reason: str, url: str = "URL") -> str:
    """Return what to do about an error, by its message; drivers have no common error codes.

    Args:
        reason: The message of SQLite, of the driver of a server, or of the operating system.
        url: URL of the storage, without a password.

    Example:
        >>> cure_of("database disk image is malformed")[:24]
        'The database is damaged.'
        >>> cure_of("something else")
        'Remove the cause, then repeat the command.'
    """
    lower = reason.lower()
    for words, cure in _CURES:
        if any(word in lower for word in words):
            return cure.replace("{url}", url)
    return "Remove the cause, then repeat the command."
