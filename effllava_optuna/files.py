"""Write files so that a reader sees the old content or the new one, and never a part of it."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from effllava_optuna.errors import EffllavaError

DRAFT = ".part"
"""How the name of a draft ends. Its process was killed if one is left."""


def write_atomically(path: Path, content: bytes | str, *, overwrite: bool = True) -> None:
    """Write a file: after a crash or a power cut it has its old content or the new one.

    The content goes to a draft beside the file, is flushed to the disk, and takes the file's
    place. An existing file keeps its mode. A symbolic link stays one: its target is written.
    Devices and pipes are written directly.

    Args:
        path: The file, in a directory that exists.
        content: The whole content; text is written as UTF-8 without a translation of line ends.
        overwrite: Replace an existing file.

    Raises:
        FileExistsError: The file exists, and ``overwrite`` is false.
        OSError: The file cannot be written. It is as before, and no draft stays.
        UnicodeEncodeError: The text is not valid Unicode. The file is as before.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder, "a.txt"), "old")
        ...     write_atomically(Path(folder, "a.txt"), "new")
        ...     [(file.name, file.read_text()) for file in Path(folder).iterdir()]
        [('a.txt', 'new')]
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    target = Path(os.path.realpath(path))  # unlike `Path.resolve` on Python 3.11, accepts a loop
    if overwrite and target.exists() and not target.is_file():
        target.write_bytes(data)
        return
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}{DRAFT}")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not overwrite:
            os.link(draft, target)  # in one step fails where another process took the name
            return
        if target.exists():
            shutil.copymode(target, draft)
        draft.replace(target)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """Create an empty directory beside ``target``, and remove it with all its content at the end.

    What is complete there can be renamed to ``target``: both are on one file system.

    Args:
        target: A file or directory to write; its parents are created.

    Raises:
        OSError: The directory cannot be created.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        yield Path(scratch)


@contextmanager
def write_errors_as(error: type[EffllavaError], path: Path, *, hint: str) -> Iterator[None]:
    """Raise ``error``, which names ``path`` and the reason, where something cannot be written.

    Args:
        error: The kind of error.
        path: The file or directory, as the user named it.
        hint: What to do about it.

    Raises:
        EffllavaError: An ``OSError`` or a ``UnicodeEncodeError`` occurred; of the kind ``error``.
    """
    try:
        yield
    except (OSError, UnicodeEncodeError) as cause:
        reason = getattr(cause, "strerror", None) or cause
        raise error(f"{path} cannot be written: {reason}.", hint=hint) from cause
