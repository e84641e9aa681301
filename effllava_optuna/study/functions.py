"""Functions of the user's own, which a study file names as ``module:function``."""

from __future__ import annotations

import hashlib
import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import SpecError
from effllava_optuna.hooks import train_projector
from effllava_optuna.samplers import EpochStockSampler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from effllava_optuna.policy import Policy
    from effllava_optuna.samplers import MakeSampler
    from effllava_optuna.study.spec import StudySpec
    from effllava_optuna.surgery import Loaded


def function_of(key: str, name: str) -> Callable[..., Any]:
    """Import the function that a key of a study file names; the current directory comes first.

    Args:
        key: ``task.name``, say; it is named in the error.
        name: ``module:function``.

    Raises:
        SpecError: It cannot be imported, or is no function.
    """
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's module may raise anything
        told = f"{error}" if isinstance(error, ImportError | AttributeError) else f"{error!r}"
        raise SpecError(
            f"{key} = {name!r}: {' '.join(told.split())}.",
            hint="Name a function of a module that Python finds here.",
        ) from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise SpecError(f"{key} = {name!r} is {found!r}.", hint="Name a function.")
    function: Callable[..., Any] = found
    return function


@dataclass(frozen=True, slots=True)
class Own:
    """What a study does by functions of its user.

    Attributes:
        sampler: Makes an Optuna sampler; None: ``search.sampler`` is one of ours.
        term: What a policy costs beside its risk, in accuracy; None: nothing.
        train: Trains the projector between epochs, as `train_projector` does.
        digests: Of the files that the functions are in, by key: they belong to the manifest.
    """

    sampler: MakeSampler | None = None
    term: Callable[[Policy, Loaded], float] | None = None
    train: Callable[..., Any] = train_projector
    digests: Mapping[str, str] = field(default_factory=dict)


def own_of(spec: StudySpec) -> Own:
    """Import the functions that a spec names.

    Raises:
        SpecError: One cannot be imported, or makes no sampler that can search for two objectives.
    """
    named = {
        "search.sampler": spec.search.sampler,
        "quality.term": spec.quality.term or "",
        "projector.train": spec.projector.train or "",
    }
    found = {key: function_of(key, name) for key, name in named.items() if ":" in name}
    sampler = found.get("search.sampler")
    if sampler is not None:
        try:
            EpochStockSampler(None, sampler)
        except Exception as error:  # the user's sampler may raise anything
            raise SpecError(
                f"search.sampler = {spec.search.sampler!r}: {' '.join(str(error).split())}",
                hint="Name a function that takes a seed and returns an Optuna sampler that "
                "searches for two objectives.",
            ) from error
    return Own(
        sampler,
        found.get("quality.term"),
        found.get("projector.train", train_projector),
        {key: _digest(named[key]) for key in found},
    )


def _digest(name: str) -> str:
    file = sys.modules[name.partition(":")[0]].__file__
    return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
