"""What may change weights between epochs."""

from effllava_optuna.hooks.projector import Lesson, Look, Training, Update, train_projector

__all__ = ["Lesson", "Look", "Training", "Update", "train_projector"]
