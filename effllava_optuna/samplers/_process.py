"""Names of processes, and what the operating system says about the process of a name.

A process id means something only inside its PID namespace: containers of one machine may share a
host name, and each of them has a process 1 (borgbackup issue 1196). So the operating system is
asked only about processes of the same boot and the same namespaces as this one. A process is
distinguished from a later one with its id by its start, on Linux counted in ticks since the boot:
the wall clock may be set while a process runs, for example when a suspended virtual machine
continues.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import socket
import sys
import uuid
from pathlib import Path

import psutil

_PROC = "/proc"
_UNKNOWN = "-"  # instead of a namespace or a start that cannot be read
_START_TOLERANCE = 1.0  # ticks on Linux, seconds elsewhere


def this_process() -> str:
    """Return the unique name of this process: ``host:pid:start:namespace:token``."""
    return _name_of(os.getpid())


@functools.cache  # by pid: a forked child is another process
def _name_of(pid: int) -> str:
    namespace = _namespace()
    start = None if namespace is None else _start_of(pid)
    parts = (socket.gethostname(), pid, start, namespace, secrets.token_hex(4))
    return ":".join(_UNKNOWN if part is None else str(part) for part in parts)


def process_exists(name: str) -> bool | None:
    """Return whether the process of a name exists, as far as the operating system knows.

    Args:
        name: What `this_process` returned in that process.

    Returns:
        None if it may run in another PID namespace or on another machine, or if it cannot be
        distinguished from a later process with its id.
    """
    if name == this_process():
        return True
    _, pid, start, namespace, *_ = [*name.rsplit(":", 4), "", "", "", ""]
    if not pid.isdecimal() or namespace != _namespace():
        return None
    if not _pid_is_used(int(pid)):
        return False
    current = _start_of(int(pid))
    if current is None or start == _UNKNOWN:
        return None
    return current != "" and abs(float(current) - float(start)) <= _START_TOLERANCE


def _namespace() -> str | None:
    """Return a digest of what process ids and starts refer to; None if that is not known."""
    if sys.platform != "linux":
        return f"{uuid.getnode():x}"
    proc = Path(_PROC)
    try:
        if (proc / "self").readlink() != Path(str(os.getpid())):
            return None  # the files are those of another PID namespace
        parts = [
            socket.gethostname(),
            (proc / "sys/kernel/random/boot_id").read_text().strip(),
            str((proc / "self/ns/pid").readlink()),
        ]
        time = proc / "self/ns/time"  # starts are counted in it; since Linux 5.6
        parts += [str(time.readlink())] if time.is_symlink() else []
    except OSError:
        return None
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


def _pid_is_used(pid: int) -> bool:
    if os.name != "posix":
        return bool(psutil.pid_exists(pid))  # on Windows, signal 0 would end the process
    try:
        os.kill(pid, 0)  # also sees processes that /proc hides from other users (``hidepid``)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _start_of(pid: int) -> str | None:
    """Return the start of a process; empty if it has ended, None if it cannot be read."""
    if sys.platform == "linux":
        try:
            state, *fields = Path(_PROC, str(pid), "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return "" if state in "ZX" else fields[18]  # field 22 of proc(5); a zombie has ended
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        return f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""
    except psutil.Error:
        return None
