"""Epoch-aware samplers for Optuna: they know genes, levels and costs, but no models.

A space is any object with the attributes of `SpaceView`:

>>> import optuna
>>> from types import SimpleNamespace
>>> from optuna.distributions import IntDistribution
>>> space = SimpleNamespace(
...     epoch=0,
...     distributions={"heads": IntDistribution(1, 8), "width": IntDistribution(64, 256)},
...     levels={"heads": (1, 2, 4, 8), "width": (64, 128, 256)},
...     costs={"heads": (1.0, 2.0, 4.0, 8.0), "width": (2.0, 4.0, 8.0)},
...     budget=12.0,
...     seeds=(),
...     allocation=None,
...     known_values=lambda params: (None, params["heads"] + params["width"] / 32),
...     is_comparable=lambda trial: False,
...     stamp={"space": "of epoch 0"},
...     describe=lambda params: {},
... )
>>> sampler = EpochNSGAIISampler(lambda study: space, population_size=4)
>>> study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
>>> def objective(trial):
...     heads, width = trial.suggest_int("heads", 1, 8), trial.suggest_int("width", 64, 256)
...     return heads * width, heads + width / 32
>>> study.optimize(objective, n_trials=8)
>>> [tuple(trial.user_attrs[key] for key in ("generation", "index")) for trial in study.trials]
[(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]
>>> all(trial.constraints["0"] <= 0 for trial in study.trials)
True
"""

from effllava_optuna.samplers._cma_es._cma_sampler import CmaOptions, EpochCMASampler
from effllava_optuna.samplers._lease import (
    fail_lost_trials,
    leases_of,
    lost_trials,
    owner_alive,
    owns_trial,
    release_trial,
    renew_lease,
)
from effllava_optuna.samplers._level_grid import (
    Allocation,
    ConditionalCostsView,
    LevelGrid,
    Programme,
    ProgrammeView,
    Seed,
    SpaceProvider,
    SpaceView,
)
from effllava_optuna.samplers._nsgaii import EpochNSGAIISampler
from effllava_optuna.samplers._optuna_internals import (
    storage_of,
    study_id_of,
    trial_id_of,
    write_user_attrs,
)
from effllava_optuna.samplers._process import this_process
from effllava_optuna.samplers._proposals._operators import Variation, repair, switch
from effllava_optuna.samplers._proposals._screening import Screening
from effllava_optuna.samplers._sampler import EpochSampler
from effllava_optuna.samplers._slots import (
    duplicate_of,
    effective_trials,
    epoch_finished,
    is_enqueued_by_user,
    slot_of,
)
from effllava_optuna.samplers._spdy import EpochSpdySampler
from effllava_optuna.samplers._stock import EpochStockSampler, MakeSampler, Stock

__all__ = [
    "Allocation",
    "CmaOptions",
    "ConditionalCostsView",
    "EpochCMASampler",
    "EpochNSGAIISampler",
    "EpochSampler",
    "EpochSpdySampler",
    "EpochStockSampler",
    "LevelGrid",
    "MakeSampler",
    "Programme",
    "ProgrammeView",
    "Screening",
    "Seed",
    "SpaceProvider",
    "SpaceView",
    "Stock",
    "Variation",
    "duplicate_of",
    "effective_trials",
    "epoch_finished",
    "fail_lost_trials",
    "is_enqueued_by_user",
    "leases_of",
    "lost_trials",
    "owner_alive",
    "owns_trial",
    "release_trial",
    "renew_lease",
    "repair",
    "slot_of",
    "storage_of",
    "study_id_of",
    "switch",
    "this_process",
    "trial_id_of",
    "write_user_attrs",
]
