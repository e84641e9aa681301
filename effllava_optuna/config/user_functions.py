"""Import the user's functions, which a study file names as ``module:function``."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna.config.checked_functions import (
    CheckedSamplerFactory,
    CheckedTerm,
    CheckedTraining,
    UserFunction,
)
from effllava_optuna.errors import ConfigError, describe
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


def import_function(key: str, name: str, directory: str | None = None) -> Callable[..., Any]:
    """Import ``module:function``; modules in ``directory`` take precedence.

    Args:
        key: Key of the study file, for messages.
        name: The function.
        directory: ``study.modules``; None: the current directory.

    Raises:
        ConfigError: The function cannot be imported, or is not callable.
    """
    module, _, attribute = name.partition(":")
    own = str(Path.cwd() if directory is None else directory)
    _refuse_other_module(key, name, own)
    sys.path.insert(0, own)
    importlib.invalidate_caches()  # of directories in which the module was written just now
    try:
        function: Any = getattr(importlib.import_module(module), attribute)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's module may raise anything, `SystemExit` too
        is_plain = isinstance(error, ImportError | AttributeError)
        reason = " ".join((str(error) if is_plain else repr(error)).split())
        raise ConfigError(
            f"{key} = {name!r}: {reason}.",
            hint=f"Use a function of a module in {own} or an installed package.",
        ) from error
    finally:
        sys.path.remove(own)
    if own not in sys.path:  # last, for what the function imports when it is called
        sys.path.append(own)
    if not callable(function):
        raise ConfigError(f"{key} = {name!r} is {function!r}.", hint="Use a function.")
    imported: Callable[..., Any] = function
    return imported


def _refuse_other_module(key: str, name: str, directory: str) -> None:
    """Refuse a module of ``directory`` if another one of its name is imported already.

    Python would take that one: the module of another study, or one of its own library.

    Raises:
        ConfigError: It is.
    """
    first = name.partition(":")[0].partition(".")[0]
    spec, imported = PathFinder.find_spec(first, [directory]), sys.modules.get(first)
    if spec is None or spec.origin is None or imported is None:
        return
    other = getattr(imported, "__file__", None)
    if other is None or not Path(other).exists() or not Path(other).samefile(spec.origin):
        raise ConfigError(
            f"{key} = {name!r}: another module {first!r} is imported already, from "
            f"{other or 'Python itself'}.",
            hint=f"Rename {spec.origin}.",
        )


def user_functions(config: StudyConfig) -> UserFunctions:
    """Import the functions that a study file names.

    Raises:
        ConfigError: A function cannot be imported or takes other arguments, or
            ``search.sampler`` does not create a sampler for two objectives.
    """
    names = {
        "search.sampler": config.search.sampler,
        "quality.term": config.quality.term or "",
        "projector.train": config.projector.train or "",
    }
    functions = {
        key: UserFunction(key, name, import_function(key, name, config.study.modules))
        for key, name in names.items()
        if ":" in name
    }
    sampler, term, train = (functions.get(key) for key in names)
    if sampler is not None:
        _check_sampler(sampler.name, sampler.function)
    if term is not None:
        term.check_call("policy", "loaded")
    if train is not None:
        train.check_call(*inspect.signature(train_projector).parameters)
    return UserFunctions(
        sampler=None if sampler is None else CheckedSamplerFactory(sampler),
        term=None if term is None else CheckedTerm(term),
        train=train_projector if train is None else CheckedTraining(train),
        digests={key: _file_digest(names[key]) for key in functions},
    )


def _check_sampler(name: str, make_sampler: MakeSampler) -> None:
    try:
        EpochStockSampler(None, make_sampler)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's sampler may raise anything, `SystemExit` too
        reason = describe(error)
        raise ConfigError(
            f"search.sampler = {name!r}: {reason}.",
            hint="Use a function that takes a seed and returns an Optuna sampler for two "
            "objectives.",
        ) from error


def _file_digest(name: str) -> str:
    """Return a hash of the file that contains a function; empty for built-in modules."""
    file = sys.modules[name.partition(":")[0]].__file__
    return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
