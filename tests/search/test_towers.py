"""Studies that cut more than the decoder's widths: towers, whole blocks, one width a tower."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from effllava_optuna.calibration.inputs import study_inputs
from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.errors import ConfigError
from effllava_optuna.policy import Kind, Policy
from effllava_optuna.search.runner import search
from effllava_optuna.search.session import SearchSession, open_session
from effllava_optuna.storage.artifact_store import ArtifactStore, DirectoryArtifactStore
from effllava_optuna.storage.studies import create_study
from effllava_optuna.storage.trial_records import record_of
from effllava_optuna.surgery import LoadedModel, pad_to_stock_sizes, sliced
from effllava_optuna.tasks import Digits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KEPT = 0.5


def config_of(budget: dict[str, float], **pruning: Any) -> StudyConfig:
    return StudyConfig.of(
        {
            "study": {"name": "tiny"},
            "model": {"path": "tiny", "device": "cpu"},
            "task": {"name": "digits", "proxy": 16},
            "pruning": {"width_ratios": [0.1, 0.3, 0.5, 0.7, 1.0]} | pruning,
            "latency": {"batch": 16, "repeats": 2, "seconds": 0.0, "checks": 4},
            "search": {"epochs": 2, "generations": 2, "population": 6} | budget,
            "projector": {"parts": 2, "steps": 2, "every": 1},
        }
    )


@pytest.fixture
def searched(tiny: LoadedModel, tmp_path: Path) -> Iterator[Callable[..., SearchSession]]:
    """Return a function that runs a whole search; its session stays open during the test."""
    with ExitStack() as stack:

        def run(budget: dict[str, float], **pruning: Any) -> SearchSession:
            config = config_of(budget, **pruning)
            loaded = LoadedModel.of(
                tiny.model, tiny.processor, "tiny",
                towers=config.pruning.towers, depth=config.pruning.depth,
            )  # fmt: skip
            task = Digits(proxy=16, validation=8, test=8)
            inputs = stack.enter_context(study_inputs(config, loaded, task))
            store = ArtifactStore(DirectoryArtifactStore(tmp_path / "artifacts"))
            study = create_study(InMemoryStorage(), config)
            session = stack.enter_context(open_session(study, inputs, store))
            search(session)
            return session

        yield run


def policies(session: SearchSession) -> list[Policy]:
    trials = session.study.get_trials(deepcopy=False)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 24
    return [Policy.of(session.evaluator.structure, record_of(trial).widths) for trial in trials]


@pytest.mark.parametrize("budget", [{"keep_ratio": KEPT}, {"speedup": 1.1}])
def test_a_study_cuts_a_tower_and_leaves_blocks_out(
    searched: Callable[..., SearchSession], budget: dict[str, float]
) -> None:
    session = searched(budget, towers=["vision", "language"], depth=True)
    with session:
        structure, calibration = session.evaluator.structure, session.evaluator.calibration
        assert {component.tower for component in structure.components} == {"vision", "language"}
        # The tower runs with the decoder: its time is in the widths, and nowhere else.
        assert calibration.latency.vision_ms == 0
        proposed = policies(session)
        blocks = [index for index, s in enumerate(structure.components) if s.kind is Kind.BLOCK]
        assert {policy.widths[index] for policy in proposed for index in blocks} == {0, 1}
        for policy in proposed:
            assert session.costs.allows(policy)
            if "keep_ratio" in budget:
                assert policy.keep_ratio <= KEPT
            assert calibration.latency.predict(policy) <= calibration.dense.latency_ms
            assert session.evaluator.risk(policy) <= 0


def test_the_budget_never_takes_a_policy_for_cheaper_than_it_is(
    searched: Callable[..., SearchSession],
) -> None:
    session = searched({"keep_ratio": KEPT}, depth=True)
    with session:
        structure, costs = session.evaluator.structure, session.costs.costs
        rng = np.random.default_rng(0)
        for _ in range(200):
            kept_widths = [
                int(rng.choice(list(costs[component.id]))) for component in structure.components
            ]
            policy = Policy.of(structure, kept_widths)
            spent = sum(
                costs[component.id][n]
                for component, n in zip(structure.components, kept_widths, strict=True)
            )
            assert policy.keep_ratio <= spent + 1e-9
        # Of a block that is left out nothing remains, so that at the bottom the sum is exact.
        narrowest = session.evaluator.calibration.narrowest
        spent = sum(
            costs[component.id][n]
            for component, n in zip(structure.components, narrowest.widths, strict=True)
        )
        assert spent == pytest.approx(narrowest.keep_ratio)


def test_what_engines_load_has_one_width_a_kind_and_needs_no_padding(
    searched: Callable[..., SearchSession],
) -> None:
    session = searched({"keep_ratio": KEPT}, depth=True, mode="vllm-safe")
    with session:
        structure = session.evaluator.structure
        assert [gene.name for gene in session.evaluator.first_space().genes] == [
            "language.00.attn", "language.00.mlp", "language.01.block", "language.02.block",
        ]  # fmt: skip
        for policy in policies(session):
            widths = {
                (s.kind, n) for s, n in zip(structure.components, policy.widths, strict=True)
            }
            assert len({width for kind, width in widths if kind is Kind.MLP}) == 1
        small = sliced(session.evaluator.loaded, policy, session.evaluator.calibration.ranking)
        whole = pad_to_stock_sizes(small)
        assert whole.model.num_parameters() == small.model.num_parameters()


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        (
            {"towers": ["projector"]},
            "contains the projector, which is trained between epochs; set projector.st",
        ),
        ({"towers": []}, "pruning.towers"),
        ({"mode": "vllm"}, "pruning.mode"),
        (
            {"mode": "vllm-safe", "compensation": "bias"},
            "stock models have no such biases",
        ),
    ],
)
def test_what_cannot_be_cut_together_is_refused(pruning: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of({"keep_ratio": KEPT}, **pruning)
