"""Functions that a study file names: imported once, refused in one line, part of the manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from effllava_optuna.errors import SpecError, StudyError
from effllava_optuna.hooks import train_projector
from effllava_optuna.policy import Policy
from effllava_optuna.study import read_spec
from effllava_optuna.study.calibrating import calibrate
from effllava_optuna.study.functions import function_of, own_of
from effllava_optuna.study.manifest import manifest_of
from effllava_optuna.study.workbench import Workbench
from effllava_optuna.surgery import Loaded
from tests.study.conftest import SMOKE, cli, write_tiny

MODULE = """
import optuna

number = 3

def cmaes(seed):
    return optuna.samplers.CmaEsSampler(seed=seed)

def nothing(seed):
    return None

def half(policy, loaded):
    return 0.5

def train(loaded, basis, elites, lessons, training, progress=None):
    raise RuntimeError(f"trained for {len(elites)}")
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Give a function that writes a module where Python finds it."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return make


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("nowhere_at_all:make", r"'nowhere_at_all:make': No module named 'nowhere_at_all'\. Name"),
        ("optuna.samplers:NoSampler", "has no attribute 'NoSampler'. Name a function"),
        ("own_a:number", "is 3. Name a function."),
        ("own_b:make", r"'own_b:make': SyntaxError\(.*\)\. Name a function of a module"),
        ("own_a:nothing", "A NoneType was made, which is no Optuna sampler"),
        ("own_a:cmaes", "CmaEsSampler cannot be used"),
        ("own_a:half", "unexpected keyword argument 'seed'"),
    ],
)
def test_what_makes_no_sampler_is_refused(
    write: Callable[[str, str], str], function: str, told: str
) -> None:
    write("own_a", MODULE)
    write("own_b", "def make(:\n")
    with pytest.raises(SpecError, match=told) as caught:
        own_of(read_spec(SMOKE, (f"search.sampler={function}",)))
    assert str(caught.value).startswith("search.sampler = ")
    assert "\n" not in str(caught.value)


def test_a_wrong_module_costs_one_line_and_leaves_no_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_tiny(checkpoint, tmp_path)
    done = cli("run", file, "--set", "search.sampler=nowhere_at_all:make", check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.toml"]


@pytest.mark.parametrize("key", ["quality.term", "projector.train", "search.sampler"])
def test_what_is_no_name_of_a_function_is_no_spec(key: str) -> None:
    with pytest.raises(SpecError, match=f"{key} = 'my term'"):
        read_spec(SMOKE, (f"{key}=my term",))


def test_a_term_is_subtracted_from_the_quality(
    write: Callable[[str, str], str], tiny: Loaded
) -> None:
    write("own_c", MODULE)
    plain = read_spec(SMOKE)
    with Workbench(plain, tiny) as bench:
        bundle = calibrate(bench, lambda *_: None)
        bench.adopt(bundle, "bundle")
        policy = Policy.uniform(bench.anatomy, keep=0.5)
        before = bench.measure(policy, bench.basis())
    with Workbench(read_spec(SMOKE, ("quality.term=own_c:half",)), tiny) as bench:
        bench.adopt(bundle, "bundle")
        after = bench.measure(policy, bench.basis())
    assert after.quality == pytest.approx(before.quality - 0.5)
    assert (after.accuracy, after.risk) == (before.accuracy, before.risk)


def test_a_function_of_the_user_trains(write: Callable[[str, str], str]) -> None:
    write("own_d", MODULE)
    assert own_of(read_spec(SMOKE)).train is train_projector
    train = own_of(read_spec(SMOKE, ("projector.train=own_d:train",))).train
    assert train is function_of("projector.train", "own_d:train")
    with pytest.raises(RuntimeError, match="trained for 2"):
        train(None, None, [1, 2], None, None)


def test_a_changed_function_is_a_changed_study(
    write: Callable[[str, str], str], tiny: Loaded
) -> None:
    from effllava_optuna.study import storage
    from effllava_optuna.study.manifest import settle

    write("own_e", MODULE)
    spec = read_spec(SMOKE, ("quality.term=own_e:half",))
    opened = storage.open_storage(f"sqlite:///{Path.cwd() / 'a.db'}", create=True)
    study = storage.create_study(opened, spec)
    with Workbench(spec, tiny) as bench:
        settle(study, bench)
        assert manifest_of(bench)["quality.term"]
    write("own_e", MODULE.replace("0.5", "0.6"))
    with Workbench(spec, tiny) as bench, pytest.raises(StudyError, match=r"quality\.term was"):
        settle(study, bench)
