"""What users import, and what it costs them."""

from __future__ import annotations

import subprocess
import sys
from operator import attrgetter

import pytest

import effllava_optuna


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import effllava_optuna, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(run.stdout.split())
    assert "effllava_optuna" in imported
    assert not imported & {"torch", "transformers", "numpy", "optuna"}


@pytest.mark.parametrize("layer", ["policy", "surgery", "tasks", "objectives"])
def test_what_measures_needs_little_but_torch_transformers_and_pillow(layer: str) -> None:
    others = (
        "sklearn",
        "psutil",
        "optuna",
        "pydantic",
        "sqlalchemy",
        "datasets",
        "click",
        "plotly",
        "peft",
    )
    without = "; ".join(f"sys.modules[{name!r}] = None" for name in others)
    code = f"import sys; {without}; import effllava_optuna.{layer}"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, check=True)


def test_public_names_are_sorted_and_listed() -> None:
    assert effllava_optuna.__all__ == sorted(effllava_optuna.__all__)
    assert set(effllava_optuna.__all__) <= set(dir(effllava_optuna))


@pytest.mark.parametrize("name", effllava_optuna.__all__)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    thing = getattr(effllava_optuna, name)
    assert thing.__name__ == name
    assert thing.__doc__
    assert thing.__module__.startswith("effllava_optuna.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'effllava_optuna' has no attribute 'prune'"):
        attrgetter("prune")(effllava_optuna)
