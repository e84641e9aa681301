"""Functions that a study file names: their import, faults, effects and digests."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage

from effllava_optuna.calibration.calibration_run import calibrate
from effllava_optuna.calibration.environment import check_environment, manifest_of
from effllava_optuna.calibration.inputs import study_inputs
from effllava_optuna.calibration.stage_callback import silent
from effllava_optuna.config.checked_functions import CheckedTraining
from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.config.user_functions import import_function, user_functions
from effllava_optuna.errors import ConfigError, StudyError, UserFunctionError
from effllava_optuna.policy import Policy
from effllava_optuna.search.evaluator import Evaluator
from effllava_optuna.storage.studies import create_study
from effllava_optuna.study import load_config
from effllava_optuna.surgery import LoadedModel, arranged
from effllava_optuna.training import train_projector
from tests.study_fixtures import SMOKE, invoke, write_tiny

MODULE = """
import optuna

number = 3

def cmaes(seed):
    return optuna.samplers.CmaEsSampler(seed=seed)

def nothing(seed):
    return None

def ends(seed):
    raise SystemExit(0)

def half(policy, loaded):
    return 0.5

def train(loaded, weight_state, elites, lessons, training, progress=None):
    raise RuntimeError(f"trained for {len(elites)}")
"""


def load(change: str) -> StudyConfig:
    """Read the smoke study as if it were in the current directory."""
    return load_config(SMOKE, (change, f"study.modules={json.dumps(str(Path.cwd()))}"))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """A function that writes a module beside the study file that `load` reads."""
    monkeypatch.chdir(tmp_path)

    def write_module(name: str, text: str) -> str:
        sys.modules.pop(name, None)  # of another test
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write_module


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nowhere_at_all:make", r"'nowhere_at_all:make': No module named 'nowhere_at_all'\. Use"),
        ("optuna.samplers:NoSampler", "has no attribute 'NoSampler'. Use a function"),
        ("own_a:number", "is 3. Use a function."),
        ("own_b:make", r"'own_b:make': SyntaxError\(.*\)\. Use a function of a module"),
        ("own_e:make", r"'own_e:make': SystemExit\(0\)\. Use a function of a module"),
        ("own_a:ends", r"'own_a:ends': SystemExit: 0\. Use a function that takes a seed"),
        ("own_a:nothing", "not a NoneType"),
        ("own_a:cmaes", "CmaEsSampler cannot be used"),
        ("own_a:half", "unexpected keyword argument 'seed'"),
    ],
)
def test_a_function_that_creates_no_suitable_sampler_is_refused(
    write: Callable[[str, str], str], function: str, message: str
) -> None:
    write("own_a", MODULE)
    write("own_b", "def make(:\n")
    write("own_e", "raise SystemExit(0)\n")
    with pytest.raises(ConfigError, match=message) as caught:
        user_functions(load(f"search.sampler={function}"))
    assert str(caught.value).startswith("search.sampler = ")
    assert "\n" not in str(caught.value)


def test_run_with_a_missing_module_prints_one_line_and_writes_no_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_tiny(checkpoint, tmp_path)
    done = invoke("run", file, "--set", "search.sampler=nowhere_at_all:make", check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.toml"]


@pytest.mark.parametrize("key", ["quality.term", "projector.train", "search.sampler"])
def test_a_function_must_be_named_with_its_module(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} = 'my term'"):
        load_config(SMOKE, (f"{key}=my term",))


def test_a_term_is_subtracted_from_the_quality(
    write: Callable[[str, str], str], tiny: LoadedModel
) -> None:
    write("own_c", MODULE)
    functions = user_functions(load("quality.term=own_c:half"))
    with study_inputs(load_config(SMOKE), tiny) as inputs:
        stopwatch = inputs.stopwatch()
        calibration = calibrate(inputs, stopwatch, silent)
        policy = Policy.uniform(inputs.structure, ratio=0.5)
        weight_state = calibration.weight_state("calibration")
        with arranged(inputs.loaded, calibration.ranking) as loaded:
            plain = Evaluator(
                inputs=inputs,
                calibration=calibration,
                loaded=loaded,
                stopwatch=stopwatch.on(loaded),
            )
            with_term = replace(plain, inputs=replace(inputs, functions=functions))
            before = plain.measure(policy, weight_state)
            after = with_term.measure(policy, weight_state)
    assert after.quality == pytest.approx(before.quality - 0.5)
    assert (after.accuracy, after.risk) == (before.accuracy, before.risk)


def test_a_function_of_the_user_replaces_the_projector_training(
    write: Callable[[str, str], str], tiny: LoadedModel
) -> None:
    write("own_d", MODULE)
    assert user_functions(load_config(SMOKE)).train is train_projector
    train: Any = user_functions(load("projector.train=own_d:train")).train
    assert isinstance(train, CheckedTraining)
    assert train.function.function is import_function("projector.train", "own_d:train")
    message = r"projector\.train = 'own_d:train' failed: RuntimeError: trained for 2\. Fix"
    call: Callable[..., Any] = train
    with pytest.raises(UserFunctionError, match=message):
        call(tiny, None, [1, 2], None, None)


def test_a_study_does_not_continue_with_a_changed_function(
    write: Callable[[str, str], str], tiny: LoadedModel
) -> None:
    write("own_e", MODULE)
    config = load("quality.term=own_e:half")
    study = create_study(InMemoryStorage(), config)
    with study_inputs(config, tiny) as inputs:
        check_environment(study, inputs)
        assert manifest_of(inputs)["quality.term"]
    write("own_e", MODULE.replace("0.5", "0.6"))
    with (
        study_inputs(config, tiny) as inputs,
        pytest.raises(StudyError, match=r"quality\.term was"),
    ):
        check_environment(study, inputs)
