"""The task that a study names."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from effllava_optuna.errors import SpecError
from effllava_optuna.tasks import Digits, checked

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.study.spec import StudySpec
    from effllava_optuna.tasks import Task


def task_of(spec: StudySpec) -> Task:
    """Make the task that a spec names.

    Raises:
        SpecError: It names a function that cannot be imported.
        TaskError: Two splits share a unit.
    """
    table = spec.task
    build: Callable[..., Task] = Digits
    if ":" in table.name:
        module, _, function = table.name.partition(":")
        sys.path.insert(0, str(Path.cwd()))
        try:
            build = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise SpecError(
                f"task.name = {table.name!r}: {error}.",
                hint="Name a function of a module that Python finds here.",
            ) from error
        finally:
            sys.path.pop(0)
    sizes = {"proxy": table.proxy, "validation": table.validation, "test": table.test}
    return checked(build(seed=spec.task_seed, **sizes))
