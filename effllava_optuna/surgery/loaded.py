"""A model that is understood."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.surgery.discover import LANGUAGE, Discovery, discover

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import Anatomy, Order, SiteId
    from effllava_optuna.surgery.handle import Block, Handle, Refusal


@dataclass(frozen=True, slots=True)
class Cut:
    """How a model came about.

    Attributes:
        base: What the dense model was loaded from.
        anatomy: Digest of its anatomy.
        order: How its units were ranked.
        kept: By site, the units that were kept and those that there were.
    """

    base: str
    anatomy: str
    order: str
    kept: Mapping[SiteId, tuple[int, int]]


@dataclass(frozen=True)
class Loaded:
    """A model that is understood.

    Attributes:
        model: In evaluation mode, its parameters frozen.
        processor: Makes its inputs.
        parts: What can be cut.
        source: What it was loaded from.
        towers: The towers whose sites are in the anatomy.
        depth: Whether whole blocks are.
        order: The ranking into which its units are permuted at present; None: as they came.
        cut: What it was cut from, and how; None: it was not.
        lock: Whoever narrows the model or trains its projector holds it.
    """

    model: Any
    processor: Any
    parts: Discovery
    source: str
    towers: tuple[str, ...] = (LANGUAGE,)
    depth: bool = False
    order: Order | None = None
    cut: Cut | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    @cached_property
    def anatomy(self) -> Anatomy:
        """Give the sites."""
        return self.parts.anatomy

    @property
    def handles(self) -> tuple[Handle, ...]:
        """Give the places of the sites that have widths, in the order of the anatomy."""
        return self.parts.handles

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Give the blocks that may be left out."""
        return self.parts.blocks

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """Say what looks as if it could be cut, but cannot."""
        return self.parts.refused

    @property
    def device(self) -> torch.device:
        """Give the device of the input embeddings."""
        device = self.model.get_input_embeddings().weight.device
        if not isinstance(device, torch.device):
            raise ModelError(f"{self.source} has no device.")
        return device

    @staticmethod
    def of(
        model: Any,
        processor: Any,
        source: str,
        *,
        towers: Sequence[str] | None = (LANGUAGE,),
        depth: bool = False,
    ) -> Loaded:
        """Understand ``model``.

        Args:
            model: A transformers model with a decoder.
            processor: Makes its inputs.
            source: What to call it in messages.
            towers: The towers to cut: ``language``, ``vision``, ``projector`` ... None: all.
            depth: Offer whole blocks of the decoder, too.

        Raises:
            ModelError: Its structure is not understood, a tower has nothing to cut, or it has
                parameters without data.
        """
        hollow = [name for name, weight in model.named_parameters() if weight.is_meta]
        if hollow:
            raise ModelError(
                f"{source}: {hollow[0]} is offloaded (meta device or disk).",
                hint="Load the whole model into memory.",
            )
        model.eval().requires_grad_(requires_grad=False)
        found = discover(model)
        if towers is None:
            towers = found.towers
        parts = found.only(towers, depth=depth)
        return Loaded(model, processor, parts, source, tuple(towers), depth).checked()

    def checked(self) -> Loaded:
        """Give the model itself, where each of its towers has something to cut.

        Raises:
            ModelError: One has nothing.
        """
        for tower in self.towers:
            if not any(handle.site.tower == tower for handle in self.handles):
                why = [f"{r.place}: {r.reason}" for r in self.refused if tower in r.place]
                raise ModelError(
                    f"{self.source} has nothing to cut in tower {tower!r}"
                    f"{f' ({why[0]})' if why else ''}.",
                    hint="`python -m effllava_optuna.study anatomy` shows what can be cut.",
                )
        return self
