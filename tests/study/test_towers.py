"""Studies that cut more than the decoder's widths: towers, whole blocks, one width a tower."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from effllava_optuna.errors import SpecError
from effllava_optuna.policy import Kind, Policy
from effllava_optuna.study import storage
from effllava_optuna.study.artifacts import Folder, Vault
from effllava_optuna.study.evolution import Epochs
from effllava_optuna.study.loop import search
from effllava_optuna.study.records import record_of
from effllava_optuna.study.spec import StudySpec
from effllava_optuna.study.workbench import Workbench
from effllava_optuna.surgery import Loaded, portable, sliced
from effllava_optuna.tasks import Digits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEPT = 0.5


def spec_of(budget: dict[str, float], **pruning: Any) -> StudySpec:
    return StudySpec.of(
        {
            "study": {"name": "tiny"},
            "model": {"path": "tiny", "device": "cpu"},
            "task": {"name": "digits", "proxy": 16},
            "pruning": {"shares": [0.1, 0.3, 0.5, 0.7, 1.0]} | pruning,
            "latency": {"batch": 16, "repeats": 2, "seconds": 0.0, "checks": 4},
            "search": {"epochs": 2, "generations": 2, "population": 6} | budget,
            "projector": {"parts": 2, "steps": 2, "every": 1},
        }
    )


@pytest.fixture
def searched(tiny: Loaded, tmp_path: Path) -> Callable[..., Epochs]:
    """Give a function that runs a whole search; its bench stays open."""

    def make(budget: dict[str, float], **pruning: Any) -> Epochs:
        spec = spec_of(budget, **pruning)
        loaded = Loaded.of(
            tiny.model, tiny.processor, "tiny",
            towers=spec.pruning.towers, depth=spec.pruning.depth,
        )  # fmt: skip
        bench = Workbench(spec, loaded, Digits(proxy=16, validation=8, test=8))
        vault = Vault(Folder(tmp_path / "artifacts"))
        epochs = Epochs(storage.create_study(InMemoryStorage(), spec), bench, vault)
        epochs.open()
        epochs.study.sampler = epochs.sampler
        search(epochs)
        return epochs

    return make


def policies(epochs: Epochs) -> list[Policy]:
    trials = epochs.study.get_trials(deepcopy=False)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 24
    return [Policy.of(epochs.bench.anatomy, record_of(trial).keep) for trial in trials]


@pytest.mark.parametrize("budget", [{"kept_share": KEPT}, {"speedup": 1.1}])
def test_a_study_cuts_a_tower_and_leaves_blocks_out(
    searched: Callable[..., Epochs], budget: dict[str, float]
) -> None:
    epochs = searched(budget, towers=["vision", "language"], depth=True)
    with epochs.bench:
        anatomy, bundle = epochs.bench.anatomy, epochs.bench.bundle
        assert {site.tower for site in anatomy.sites} == {"vision", "language"}
        # The tower runs with the decoder: its time is in the widths, and nowhere else.
        assert bundle.latency.vision_ms == 0
        found = policies(epochs)
        blocks = [index for index, s in enumerate(anatomy.sites) if s.kind is Kind.BLOCK]
        assert {policy.keep[index] for policy in found for index in blocks} == {0, 1}
        for policy in found:
            assert epochs.budget.allows(anatomy, policy)
            if "kept_share" in budget:
                assert policy.kept_share(anatomy) <= KEPT
            assert epochs.bench.latency_ms(policy) <= bundle.dense.latency_ms
            assert epochs.bench.risk(policy) <= 0


def test_the_budget_never_takes_a_policy_for_cheaper_than_it_is(
    searched: Callable[..., Epochs],
) -> None:
    epochs = searched({"kept_share": KEPT}, depth=True)
    with epochs.bench:
        anatomy, costs = epochs.bench.anatomy, epochs.budget.costs
        rng = np.random.default_rng(0)
        for _ in range(200):
            keep = [int(rng.choice(list(costs[site.id]))) for site in anatomy.sites]
            policy = Policy.of(anatomy, keep)
            spent = sum(costs[site.id][n] for site, n in zip(anatomy.sites, keep, strict=True))
            assert policy.kept_share(anatomy) <= spent + 1e-9
        # Of a block that is left out nothing remains, so that at the bottom the sum is exact.
        narrowest = epochs.bench.bundle.narrowest(anatomy)
        spent = sum(
            costs[site.id][n] for site, n in zip(anatomy.sites, narrowest.keep, strict=True)
        )
        assert spent == pytest.approx(narrowest.kept_share(anatomy))


def test_what_engines_load_has_one_width_a_kind_and_needs_no_padding(
    searched: Callable[..., Epochs],
) -> None:
    epochs = searched({"kept_share": KEPT}, depth=True, mode="vllm-safe")
    with epochs.bench:
        anatomy = epochs.bench.anatomy
        assert [gene.name for gene in epochs.bench.wide.genes] == [
            "language.00.attn", "language.00.mlp", "language.01.block", "language.02.block",
        ]  # fmt: skip
        for policy in policies(epochs):
            widths = {(s.kind, n) for s, n in zip(anatomy.sites, policy.keep, strict=True)}
            assert len({width for kind, width in widths if kind is Kind.MLP}) == 1
        small = sliced(epochs.bench.loaded, policy, epochs.bench.bundle.order)
        whole = portable(small)
        assert whole.model.num_parameters() == small.model.num_parameters()


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        ({"towers": ["projector"]}, "cuts the projector, which is trained, too; set projector.st"),
        ({"towers": []}, "pruning.towers"),
        ({"mode": "vllm"}, "pruning.mode"),
        ({"mode": "vllm-safe", "refit": "bias"}, "gives layers a bias that stock models do not"),
    ],
)
def test_what_cannot_be_cut_together_is_refused(pruning: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec_of({"kept_share": KEPT}, **pruning)
