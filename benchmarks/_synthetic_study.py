"""A synthetic study, with the trials and the epochs of a finished search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.policy import Component, Kind, ModelStructure, Policy
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.control_study import EpochPublication, open_control_study
from effllava_optuna.storage.names import STRUCTURE
from effllava_optuna.storage.studies import create_study

NAME = "large"
WIDTH_RATIOS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
CALIBRATION = {
    "dense": {
        "accuracy": 0.95, "expected": 0.9, "latency_ms": 200.0, "parameters": 10**9,
        "gflops": 100.0,
    },
    "reference": [0.1, 210.0],
    "latency": {
        "error": 0.03, "spread": 0.02, "vision_ms": 5.0, "errors": [0.03], "launched": [],
        "origin": {
            "batch": 1, "prompt_tokens": 640, "new_tokens": 16, "dtype": "float16",
            "device": "none", "threads": 0,
        },
    },
}  # fmt: skip


def structure_of(layers: int) -> ModelStructure:
    """Return the structure of a decoder with two components in each layer."""
    return ModelStructure(
        tuple(
            Component(tower="language", layer=layer, kind=kind, width=width, unit_params=4096)
            for layer in range(layers)
            for kind, width in ((Kind.ATTN, 32), (Kind.MLP, 11008))
        )
    )


@dataclass(frozen=True, slots=True)
class Size:
    """Size of a study.

    Attributes:
        layers: Layers of the decoder, with two genes each.
        epochs: Number of epochs.
        generations: Generations of an epoch.
        population: Trials of a generation.
    """

    layers: int
    epochs: int
    generations: int
    population: int


def fill(url: str, size: Size) -> None:
    """Create a study with the trials and the epochs of a finished search."""
    structure = structure_of(size.layers)
    config = {
        "study": {"name": NAME},
        "model": {"path": "nowhere"},
        "task": {"name": "digits"},
        "search": {
            "epochs": size.epochs,
            "generations": size.generations,
            "population": size.population,
        },
    }
    study = create_study(open_storage(url, create=True), StudyConfig.of(config))
    study.set_user_attr(STRUCTURE, structure.to_json())
    control_study = open_control_study(study)
    for epoch in range(size.epochs):
        control_study.publish_once(epoch, lambda: EpochPublication(0.9, update_of(), None))
        for number in range(size.generations * size.population):
            generation, index = divmod(number, size.population)
            study.add_trial(trial_of(structure, epoch, generation, index))


def update_of() -> dict[str, Any]:
    """Return the published facts of a calibration and of an update together."""
    before_and_after = {
        f"{figure}_{moment}": 0.5
        for figure in ("proxy_accuracy", "proxy_loss", "crossfit_accuracy", "crossfit_loss")
        for moment in ("before", "after")
    }
    curve = [{"steps": 4 * score, "loss": 0.5, "accuracy": 0.9} for score in range(5)]
    update = {"steps": 8, "seconds": 1.0, "crossfit_curve": curve}
    return {"calibration": CALIBRATION} | update | before_and_after


def trial_of(structure: ModelStructure, epoch: int, generation: int, index: int) -> Any:
    """Return a synthetic trial with all attributes of a measured one."""
    rng = np.random.default_rng([epoch, generation, index])
    ratios = rng.choice(WIDTH_RATIOS, len(structure.components))
    widths: dict[str, int] = {
        component.id: max(1, int(component.width * ratio))
        for component, ratio in zip(structure.components, ratios, strict=True)
    }
    keep_ratio = Policy.of(structure, widths).keep_ratio
    accuracy = float(np.clip(0.4 + 0.6 * keep_ratio + 0.1 * rng.normal(), 0, 1))
    return create_trial(
        state=TrialState.COMPLETE,
        params=widths,
        distributions={c.id: IntDistribution(1, c.width) for c in structure.components},
        values=[accuracy, 200.0 * keep_ratio],
        user_attrs={
            "space": "0" * 16, "weight_state": "0" * 64, "widths": list(widths.values()),
            "keep_ratio": round(keep_ratio, 6),
            "risk": -0.5, "kind": "child", "epoch": epoch, "generation": generation,
            "index": index, "attempt": 0, "accuracy": accuracy, "expected": accuracy,
            "log_probability": -0.3, "hits": [1] * 64,
            "quality_scores": [round(float(score), 4) for score in rng.random(64)],
        },
        system_attrs={"constraints": [-0.01]},
    )  # fmt: skip
