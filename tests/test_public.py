"""The public names, and what their import costs."""

from __future__ import annotations

import subprocess
import sys
from operator import attrgetter

import pytest

import effllava_optuna
import effllava_optuna.study

LAYERS_WITHOUT_OPTUNA = ("policy", "surgery", "tasks", "objectives")
OTHER_PACKAGES = (
    "sklearn", "psutil", "optuna", "pydantic", "sqlalchemy", "datasets", "click", "plotly", "peft",
)  # fmt: skip


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import effllava_optuna, effllava_optuna.study, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(run.stdout.split())
    assert "effllava_optuna" in imported
    assert not imported & {"torch", "transformers", "numpy", "optuna"}


def test_models_are_measured_with_torch_transformers_and_pillow_alone() -> None:
    without = "; ".join(f"sys.modules[{name!r}] = None" for name in OTHER_PACKAGES)
    layers = ", ".join(f"effllava_optuna.{layer}" for layer in LAYERS_WITHOUT_OPTUNA)
    lazy = "from effllava_optuna.tasks import *"  # its names are imported when they are used
    code = f"import sys; {without}; import {layers}; {lazy}"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("package", [effllava_optuna, effllava_optuna.study])
def test_public_names_are_sorted_documented_and_ours(package: object) -> None:
    names: list[str] = attrgetter("__all__")(package)
    assert names == sorted(names)
    for name in names:
        value = getattr(package, name)
        assert value.__name__ == name
        assert value.__doc__
        assert value.__module__.startswith("effllava_optuna.")


def test_dir_lists_the_public_names() -> None:
    assert set(effllava_optuna.__all__) <= set(dir(effllava_optuna))


@pytest.mark.parametrize("package", [effllava_optuna, effllava_optuna.study])
def test_an_unknown_name_is_an_attribute_error(package: object) -> None:
    with pytest.raises(AttributeError, match="' has no attribute 'prune'"):
        attrgetter("prune")(package)
