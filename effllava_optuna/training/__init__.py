"""Train weights: the projector between epochs, and a pruned model before its export."""

from effllava_optuna.training.adaptation import (
    Adaptation,
    JointAdaptation,
    LoraAdaptation,
    ProjectorAdaptation,
)
from effllava_optuna.training.projector import ProjectorUpdate, train_projector
from effllava_optuna.training.projector_trainer import (
    ProjectorScore,
    ProjectorTrainingOptions,
    TrainingBatch,
)
from effllava_optuna.training.recovery import DistillationOptions, RecoveryResult, recover

__all__ = [
    "Adaptation",
    "DistillationOptions",
    "JointAdaptation",
    "LoraAdaptation",
    "ProjectorAdaptation",
    "ProjectorScore",
    "ProjectorTrainingOptions",
    "ProjectorUpdate",
    "RecoveryResult",
    "TrainingBatch",
    "recover",
    "train_projector",
]
