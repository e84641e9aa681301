"""Worker processes: several processes on this machine search one study."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from effllava_optuna.errors import ConfigError
from effllava_optuna.logging import get_logger
from effllava_optuna.storage.urls import sqlite_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_logger = get_logger(__name__)
_MOST_ON_SQLITE = 4  # processes that one SQLite file serves without a queue of writers


def devices_for(processes: int, names: str | None) -> list[str | None]:
    """Assign devices to processes, in turn.

    Args:
        processes: Number of processes.
        names: Device names separated by commas; None: one GPU each if there are several, else as
            the study file says.

    Returns:
        A device for each process; None: as the study file says.

    Raises:
        ConfigError: A name is empty.
    """
    if names is not None:
        devices: list[str | None] = [name.strip() for name in names.split(",")]
        if not all(devices):
            raise ConfigError(
                f"--device {names!r} contains an empty name.", hint="Use cuda:0,cuda:1 ..."
            )
    else:
        import torch

        count = torch.cuda.device_count() if processes > 1 else 0
        devices = [f"cuda:{index}" for index in range(count)] if count > 1 else [None]
    return [devices[process % len(devices)] for process in range(processes)]


@contextmanager
def running_workers(url: str, name: str, devices: Sequence[str | None]) -> Iterator[None]:
    """Run a worker process for each device; wait for all of them at the end.

    If this process leaves with an exception, the workers are terminated; another process will
    measure their trials again.

    Args:
        url: URL of the storage.
        name: Name of the study.
        devices: A device for each worker; None: as the study file says.
    """
    if len(devices) + 1 > _MOST_ON_SQLITE and sqlite_file(url) is not None:
        _logger.warning(
            f"{len(devices) + 1} processes share one SQLite file and will wait for each other; "
            "use PostgreSQL or a journal file for more than four."
        )
    # Every user of a machine can read the arguments of a process, and the URL may have a password.
    environment = os.environ | {"OPTUNA_STORAGE": url}
    workers = []
    try:
        for device in devices:
            command = [sys.executable, "-m", "effllava_optuna.study", "worker"]
            command += ["--study-name", name]
            command += [] if device is None else ["--device", device]
            workers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment))
        yield
    except BaseException:
        for worker in workers:
            worker.terminate()
        raise
    finally:
        for worker in workers:
            worker.wait()
