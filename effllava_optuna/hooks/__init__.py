"""What may change weights: between epochs, and after the export."""

from effllava_optuna.hooks.projector import Lesson, Look, Training, Update, train_projector
from effllava_optuna.hooks.recovery import (
    Adaptation,
    Distillation,
    Lora,
    Projector,
    Recovered,
    recover,
)

__all__ = [
    "Adaptation",
    "Distillation",
    "Lesson",
    "Look",
    "Lora",
    "Projector",
    "Recovered",
    "Training",
    "Update",
    "recover",
    "train_projector",
]
