"""Read texts, resolve paths that users write, and write files atomically.

A reader of a file sees its old content or its new content, never a part.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import secrets
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from effllava_optuna.errors import EffllavaError

if TYPE_CHECKING:
    from collections.abc import Iterator

DRAFT_SUFFIX = ".part"
"""Suffix of the name of a draft. A draft that remains was left by a killed process."""

_OTHER_ENCODINGS = {  # by their byte order marks; the first one begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def expand_home(path: str | Path) -> Path:
    """Replace a leading ``~`` or ``~user`` by the home directory.

    A shell does so only at the start of a word: not in ``--out=~/a``, in a study file, or in
    Python. The home directory of an unknown user, and every other path, does not change.

    Example:
        >>> expand_home("~/a") == Path.home() / "a", expand_home("a~").name
        (True, 'a~')
    """
    with suppress(RuntimeError):  # the user, or the home directory, is unknown
        if str(path).startswith("~"):  # the path of "./~" would be "~"
            return Path(path).expanduser()
    return Path(path)


def read_text(path: Path) -> str:
    """Read a text file as `decode_text` does, and translate line ends to those of Unix.

    Raises:
        OSError: The file cannot be read.
        ValueError: It has another encoding; the message begins with the place.
    """
    return decode_text(path.read_bytes()).replace("\r\n", "\n").replace("\r", "\n")


def decode_text(content: bytes) -> str:
    r"""Decode a text in UTF-8, with or without the byte order mark that some editors write.

    Raises:
        ValueError: It has another encoding; the message begins with the place.

    Example:
        >>> decode_text("\ufeffa\n".encode())
        'a\n'
    """
    for mark, encoding in _OTHER_ENCODINGS.items():
        if content.startswith(mark):
            raise ValueError(f"line 1 is not valid UTF-8: the file is {encoding}")
    if 0 in content[:4]:
        raise ValueError("line 1 is not valid UTF-8: the file is UTF-16, UTF-32 or binary")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise ValueError(
            f"line {line} is not valid UTF-8: it has the byte 0x{byte:02x}"
        ) from error


def write_atomically(path: Path, content: bytes | str, *, overwrite: bool = True) -> None:
    """Write a file that has its old or its new content after a crash or power failure.

    The content is written to a draft beside the file and flushed to the disk; then the draft
    replaces the file. An existing file keeps its mode. If it is a symbolic link, its target is
    replaced. Devices and pipes are written directly.

    Args:
        path: The file, in a directory that exists.
        content: The whole content; text is encoded as UTF-8, line ends are not translated.
        overwrite: Replace an existing file.

    Raises:
        FileExistsError: The file exists, and ``overwrite`` is false.
        OSError: The file cannot be written. It is unchanged, and the draft is removed.
        UnicodeEncodeError: The text is not valid Unicode. The file is unchanged.

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
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}{DRAFT_SUFFIX}")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not overwrite:
            _move_new(draft, target)
            _flush_directory(target.parent)
            return
        if target.exists():
            shutil.copymode(target, draft)
        draft.replace(target)
        _flush_directory(target.parent)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _move_new(draft: Path, target: Path) -> None:
    """Rename a draft, unless there is a file of that name.

    Raises:
        FileExistsError: There is, perhaps since a moment ago.
    """
    try:
        os.link(draft, target)
    except FileExistsError:
        raise
    except OSError:  # exFAT and many network file systems have no links
        target.touch(exist_ok=False)
        draft.replace(target)


def _flush_directory(directory: Path) -> None:
    """Make new names in a directory durable: flushing a file does not flush its name."""
    with suppress(OSError):  # not every system and file system can
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """Create an empty directory beside ``target``, and remove it with its content on exit.

    A file in it can be renamed to ``target``, because both are on one file system.

    Args:
        target: A file or directory to write; its parents are created.

    Raises:
        OSError: The directory cannot be created.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        yield Path(scratch)


def is_scratch(path: Path, target: Path) -> bool:
    """Return whether `scratch_beside` may have created a directory for ``target``."""
    return re.fullmatch(rf"\.{re.escape(target.name)}-[a-z0-9_]{{8}}", path.name) is not None


@contextmanager
def write_errors_as(error: type[EffllavaError], path: Path, *, hint: str) -> Iterator[None]:
    """Convert write errors inside the context into ``error`` with ``path`` and the reason.

    Args:
        error: Class of the exception.
        path: The file or directory, as the user named it.
        hint: What to do about it.

    Raises:
        EffllavaError: Of class ``error``: an `OSError` or `UnicodeEncodeError` occurred, or an
            error of the system in a library that has exceptions of its own for them.
    """
    try:
        yield
    except EffllavaError:
        raise
    except Exception as cause:
        reason = _why_not_written(cause)
        if not reason:
            raise
        raise error(f"{path} cannot be written: {reason}.", hint=hint) from cause


def _why_not_written(error: Exception) -> str:
    """Return the reason of a write error; empty for another error."""
    if isinstance(error, (OSError, UnicodeEncodeError)):
        return str(getattr(error, "strerror", None) or error)
    # The exceptions of libraries in Rust (safetensors, tokenizers) have no common class.
    number = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(number[1])) if number else ""


def why_unwritable(path: Path) -> str:
    """Return why a file or directory can certainly not be written or created; empty if it may.

    Nothing is written. A full disk is not recognised.
    """
    place = path.absolute()
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        if os.access(place, os.W_OK) and (place.is_dir() or place == path.absolute()):
            return ""
        if not place.is_dir() and place != path.absolute():
            return f"{place} is not a directory"
        if os.statvfs(place).f_flag & os.ST_RDONLY:
            return os.strerror(errno.EROFS)
    except OSError as error:  # such as a name that is too long
        return str(error.strerror)
    return os.strerror(errno.EACCES)
