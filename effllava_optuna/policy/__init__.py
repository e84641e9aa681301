"""The domain: what can be narrowed, by how much, and what is best. Standard library and numpy."""

from effllava_optuna.policy.anatomy import Anatomy, Kind, Site, SiteId
from effllava_optuna.policy.front import hypervolume, pareto, spread
from effllava_optuna.policy.interval import bootstrap_interval, bootstrap_means
from effllava_optuna.policy.order import Order
from effllava_optuna.policy.policy import Policy
from effllava_optuna.policy.record import (
    TrialRecord,
    finalists,
    front_of,
    hypervolume_by_epoch,
)
from effllava_optuna.policy.space import Decoded, Gene, Space

__all__ = [
    "Anatomy",
    "Decoded",
    "Gene",
    "Kind",
    "Order",
    "Policy",
    "Site",
    "SiteId",
    "Space",
    "TrialRecord",
    "bootstrap_interval",
    "bootstrap_means",
    "finalists",
    "front_of",
    "hypervolume",
    "hypervolume_by_epoch",
    "pareto",
    "spread",
]
