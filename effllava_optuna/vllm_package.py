"""Find the Python that has vLLM: that of the environment that a variable names, or this one.

vLLM requires its own versions of torch and transformers, which are rarely those of a study.
"""

from __future__ import annotations

import os
import subprocess
import sys

from effllava_optuna.errors import ExportError, shorten

VARIABLE = "EFFLLAVA_VLLM"
"""Environment variable with the path of the Python that has vLLM."""

# A directory called vllm, such as that of its environment, is found without an origin.
_SEARCH = (
    "import sys; from importlib.util import find_spec; found = find_spec('vllm'); "
    "sys.exit(found is None or found.origin is None)"
)
_INSTALL = (
    "Make an environment with `python -m venv vllm` and `vllm/bin/pip install vllm` (without a "
    "GPU as docs/serving.md describes), and set EFFLLAVA_VLLM to its bin/python."
)


def vllm_python() -> str:
    """Return the path of the Python that has vLLM.

    Raises:
        ExportError: The variable names no such Python; or it is not set, and vLLM is not
            installed here.
    """
    named = os.environ.get(VARIABLE)
    python = named or sys.executable
    try:
        found = not subprocess.run(
            [python, "-c", _SEARCH],
            capture_output=True,
            check=False,
            env=engine_environment(python),
        ).returncode
    except OSError:
        found = False
    if found:
        return python
    where = f"{VARIABLE} is {shorten(named)}, which has no" if named else "There is no"
    raise ExportError(f"{where} vLLM to verify the export with.", hint=_INSTALL)


def engine_environment(python: str) -> dict[str, str]:
    """Return the environment variables for a Python; the packages of this one are not for others.

    Args:
        python: Its path.
    """
    hidden = () if python == sys.executable else ("PYTHONPATH", "PYTHONHOME")
    return {name: value for name, value in os.environ.items() if name not in hidden}
