"""Names of a package that are imported when they are first used (PEP 562).

``effllava_optuna`` itself has a function of its own, because samplers work without this module.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the function ``__getattr__`` of a package.

    Args:
        package: Name of the package.
        modules: By public name, the module that defines it, relative to the package: ``.module``.
    """

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name], package), name)
        setattr(sys.modules[package], name, value)  # found at once from now on
        return value

    return find
