"""Train weights: the projector between epochs, and a pruned model before its export."""

from effllava_optuna.training.adaptation import (
    Adaptation,
    JointAdaptation,
    LoraAdaptation,
    ProjectorAdaptation,
)
from effllava_optuna.training.distillation_set import DistillationSet, distillation_set
from effllava_optuna.training.projector import ProjectorUpdate, train_projector
from effllava_optuna.training.projector_trainer import (
    ProjectorScore,
    ProjectorTrainingOptions,
    TrainingBatch,
)
from effllava_optuna.training.recovery import (
    DistillationOptions,
    RecoveryResult,
    distil,
    recover,
)

__all__ = [
    "Adaptation",
    "DistillationOptions",
    "DistillationSet",
    "JointAdaptation",
    "LoraAdaptation",
    "ProjectorAdaptation",
    "ProjectorScore",
    "ProjectorTrainingOptions",
    "ProjectorUpdate",
    "RecoveryResult",
    "TrainingBatch",
    "distil",
    "distillation_set",
    "recover",
    "train_projector",
]
