"""The domain: what can be pruned, by how much, and which policies are best."""

from effllava_optuna.policy.component import IMAGE_TOKENS, UNRANKED, Component, ComponentId, Kind
from effllava_optuna.policy.cost import CostModel, Costs, latency_costs, parameter_costs
from effllava_optuna.policy.finalists import (
    best_and_spread,
    finalist_merit,
    log_width_ratios,
    meets_budget,
    select_finalists,
)
from effllava_optuna.policy.front import hypervolume, pareto, spread
from effllava_optuna.policy.policy import Policy
from effllava_optuna.policy.ranking import Ranking
from effllava_optuna.policy.record import (
    TrialRecord,
    front_of,
    hypervolume_by_epoch,
    with_latest_correction,
    within_limit,
)
from effllava_optuna.policy.space import Decoded, Gene, Space
from effllava_optuna.policy.statistics import bootstrap_interval, bootstrap_means
from effllava_optuna.policy.structure import ModelStructure

__all__ = [
    "IMAGE_TOKENS",
    "UNRANKED",
    "Component",
    "ComponentId",
    "CostModel",
    "Costs",
    "Decoded",
    "Gene",
    "Kind",
    "ModelStructure",
    "Policy",
    "Ranking",
    "Space",
    "TrialRecord",
    "best_and_spread",
    "bootstrap_interval",
    "bootstrap_means",
    "finalist_merit",
    "front_of",
    "hypervolume",
    "hypervolume_by_epoch",
    "latency_costs",
    "log_width_ratios",
    "meets_budget",
    "parameter_costs",
    "pareto",
    "select_finalists",
    "spread",
    "with_latest_correction",
    "within_limit",
]
