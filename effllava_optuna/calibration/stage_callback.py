"""How long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

StageCallback: TypeAlias = Callable[[str, float], None]
"""Called with the name of the current stage, and its finished share in [0, 1]."""


def silent(stage: str, share: float, /) -> None:
    """Report nothing."""


class StepCounter:
    """Reports the share of a stage by the number of its steps.

    Args:
        report_stage: Called with the stage and its finished share.
    """

    def __init__(self, report_stage: StageCallback) -> None:
        self.report_stage = report_stage
        self.stage, self.steps, self.done = "", 1, 0

    def begin(self, stage: str, steps: int) -> None:
        """Begin a stage that has a number of steps."""
        self.stage, self.steps, self.done = stage, steps, 0
        self.report_stage(stage, 0.0)

    def step(self) -> None:
        """Report that another step is done."""
        self.done += 1
        self.report_stage(self.stage, min(1.0, self.done / self.steps))
