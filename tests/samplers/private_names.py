"""Which private names of other packages a module uses, read from its source."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "effllava_optuna"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(file: Path) -> set[str]:
    """Return the private attributes that a module reads of other objects, and private imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Attribute(value=ast.Name(id="self")) | ast.Attribute(value=ast.Call()):
                pass  # its own attribute; `super()._method()` is one, too
            case ast.Attribute(attr=name) if is_private(name):
                names.add(name)
            case ast.Call(
                func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                names |= {name} if is_private(name) else set()
            case ast.ImportFrom(module=str(module), names=imported):
                own = module.startswith("effllava_optuna")
                private = any(map(is_private, module.split(".")))
                names |= {
                    f"{module}.{alias.name}"
                    for alias in imported
                    if not own and (private or is_private(alias.name))
                }
    return names
