"""Import the user's functions, which a study file names as ``module:function``."""

from __future__ import annotations

import hashlib
import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import ConfigError
from effllava_optuna.samplers import EpochStockSampler
from effllava_optuna.training import train_projector

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.policy import Policy
    from effllava_optuna.samplers import MakeSampler
    from effllava_optuna.surgery import LoadedModel


@dataclass(frozen=True, slots=True)
class UserFunctions:
    """The user's functions of a study.

    Attributes:
        sampler: Creates an Optuna sampler; None: ``search.sampler`` is a sampler of this package.
        term: Returns a value that is subtracted from the accuracy of a policy beside its risk;
            None: no such term.
        train: Trains the projector between epochs; called like `train_projector`.
        digests: Hashes of the files that contain the functions, by key of the study file.
    """

    sampler: MakeSampler | None = None
    term: Callable[[Policy, LoadedModel], float] | None = None
    train: Callable[..., Any] = train_projector
    digests: Mapping[str, str] = field(default_factory=dict)


def import_function(key: str, name: str) -> Callable[..., Any]:
    """Import ``module:function``; modules in the current directory take precedence.

    ``key`` is the key of the study file, for messages.

    Raises:
        ConfigError: The function cannot be imported, or is not callable.
    """
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function: Any = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's module may raise anything
        is_plain = isinstance(error, ImportError | AttributeError)
        reason = " ".join((str(error) if is_plain else repr(error)).split())
        raise ConfigError(
            f"{key} = {name!r}: {reason}.",
            hint="Use a function of a module in this directory or an installed package.",
        ) from error
    finally:
        sys.path.pop(0)
    if not callable(function):
        raise ConfigError(f"{key} = {name!r} is {function!r}.", hint="Use a function.")
    imported: Callable[..., Any] = function
    return imported


def user_functions(config: StudyConfig) -> UserFunctions:
    """Import the functions that a study file names.

    Raises:
        ConfigError: A function cannot be imported, or ``search.sampler`` does not create a
            sampler for two objectives.
    """
    names = {
        "search.sampler": config.search.sampler,
        "quality.term": config.quality.term or "",
        "projector.train": config.projector.train or "",
    }
    functions = {key: import_function(key, name) for key, name in names.items() if ":" in name}
    sampler = functions.get("search.sampler")
    if sampler is not None:
        _check_sampler(config.search.sampler, sampler)
    return UserFunctions(
        sampler=sampler,
        term=functions.get("quality.term"),
        train=functions.get("projector.train", train_projector),
        digests={key: _file_digest(names[key]) for key in functions},
    )


def _check_sampler(name: str, make_sampler: MakeSampler) -> None:
    try:
        EpochStockSampler(None, make_sampler)
    except Exception as error:  # the user's sampler may raise anything
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(
            f"search.sampler = {name!r}: {reason}.",
            hint="Use a function that takes a seed and returns an Optuna sampler for two "
            "objectives.",
        ) from error


def _file_digest(name: str) -> str:
    """Return a hash of the file that contains a function; empty for built-in modules."""
    file = sys.modules[name.partition(":")[0]].__file__
    return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
