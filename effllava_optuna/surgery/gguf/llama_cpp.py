"""Find llama.cpp on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from effllava_optuna.surgery.gguf.llama_server import find_llama_server
from effllava_optuna.surgery.gguf.node_package import find_node_package

if TYPE_CHECKING:
    from effllava_optuna.surgery.gguf.engine_answers import LlamaCpp

VARIABLE = "EFFLLAVA_LLAMA_NODE"
"""Variable of the environment: a directory in whose ``node_modules`` the Node package is."""


def find_llama_cpp() -> LlamaCpp | None:
    """Find llama.cpp.

    Returns:
        The Node package in the directory that the variable names; else `llama-server` on the
        path; else the Node package in the current directory. None: there is none of them.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return find_node_package(Path(named))
    return find_llama_server() or find_node_package(Path.cwd())
