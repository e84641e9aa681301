"""More processes for one study on this machine."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from effllava_optuna.errors import SpecError
from effllava_optuna.logging import get_logger
from effllava_optuna.study.storage import sqlite_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_logger = get_logger(__name__)
_CROWDED = 4  # processes whose writes one SQLite file takes without a queue


def devices_for(workers: int, told: str | None) -> list[str | None]:
    """Deal devices out to workers, in turn.

    Args:
        workers: How many processes there are.
        told: Names separated by commas; None: one GPU each where there are several, else what the
            spec says.

    Raises:
        SpecError: A name is empty.
    """
    if told is not None:
        names: list[str | None] = [name.strip() for name in told.split(",")]
        if not all(names):
            raise SpecError(f"--device {told!r}: a name is empty.", hint="Use cuda:0,cuda:1 ...")
    else:
        import torch

        count = torch.cuda.device_count() if workers > 1 else 0
        names = [f"cuda:{index}" for index in range(count)] if count > 1 else [None]
    return [names[worker % len(names)] for worker in range(workers)]


@contextmanager
def crew(url: str, name: str, devices: Sequence[str | None]) -> Iterator[None]:
    """Run a worker on each device beside this process; wait for them at the end.

    Where this process leaves by an exception, the workers are terminated; what they had taken is
    tried again by whoever goes on.

    Args:
        url: Of the storage.
        name: Of the study.
        devices: One for each worker; None: what the spec says.
    """
    if len(devices) + 1 > _CROWDED and sqlite_file(url) is not None:
        _logger.warning(
            f"{len(devices) + 1} processes share one SQLite file and will wait for each other; "
            "use PostgreSQL or a journal file for more than four."
        )
    processes = []
    try:
        for device in devices:
            words = [sys.executable, "-m", "effllava_optuna.study", "worker"]
            words += ["--storage", url, "--study-name", name]
            words += [] if device is None else ["--device", device]
            processes.append(subprocess.Popen(words, stdout=subprocess.DEVNULL))
        yield
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.wait()
