"""Answer questions without running the vision tower twice.

The tower does not change during a search, so that its output for a picture is computed once. The
projector behind it stays live: it is what changes between epochs.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from effllava_optuna.surgery.discover import LANGUAGE, PROJECTOR, connector, projector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import Cache

    from effllava_optuna.surgery.loaded import Loaded

    State = Mapping[str, torch.Tensor]

_VISION_INPUTS = ("pixel_values", "image_sizes")


@dataclass(frozen=True, slots=True)
class Seen:
    """Inputs whose pictures the tower has looked at.

    Attributes:
        inputs: Keyword arguments of the model other than pictures, on the model's device.
        features: What the projector receives, shape ``(images, tokens, channels)``. None: the
            tower runs each time, the pictures are among the inputs; or there are none.
        positions: How many positions, from the end, answer.
    """

    inputs: Mapping[str, Any]
    features: torch.Tensor | None
    positions: int = 1

    @property
    def pictured(self) -> bool:
        """Tell whether there are pictures."""
        return self.features is not None or "pixel_values" in self.inputs

    def to(self, device: torch.device | str) -> Seen:
        """Copy the tensors to ``device``."""
        return replace(
            self,
            inputs={name: value.to(device) for name, value in self.inputs.items()},
            features=None if self.features is None else self.features.to(device),
        )


@torch.no_grad()
def look(loaded: Loaded, inputs: Mapping[str, Any], positions: int = 1) -> Seen:
    """Run the vision tower on ``inputs``, up to the projector.

    Where the tower itself is cut, or no one part of the model carries features from tower to
    decoder, nothing can be computed once for all policies.

    Args:
        loaded: The model.
        inputs: Keyword arguments of the model.
        positions: How many positions, from the end, `answer` shall give logits of.
    """
    caught: list[torch.Tensor] = []
    moved = {name: value.to(loaded.device) for name, value in inputs.items()}
    if "pixel_values" in moved:
        moved["pixel_values"] = moved["pixel_values"].to(loaded.model.dtype)
    carrier = connector(loaded.model)
    fixed = set(loaded.towers) <= {LANGUAGE, PROJECTOR}
    if "pixel_values" not in moved or carrier is None or not fixed:
        return Seen(moved, None, positions)
    pictures = {name: moved.pop(name) for name in _VISION_INPUTS if name in moved}
    with loaded.lock:
        hook = carrier.register_forward_pre_hook(
            lambda _, arguments: caught.append(arguments[0].detach())
        )
        try:
            loaded.model.get_image_features(**pictures)
        finally:
            hook.remove()
    return Seen(moved, caught[0], positions)


def answer(loaded: Loaded, seen: Seen) -> torch.Tensor:
    """Give the logits of the positions that answer, shape ``(samples, positions, vocabulary)``.

    Gradients flow to the projector, if it asks for them.
    """
    # A cache would copy the keys and values of all blocks, and nobody would read them.
    found = loaded.model(
        **_projected(loaded, seen), logits_to_keep=seen.positions, use_cache=False
    )
    logits: torch.Tensor = found.logits
    return logits[:, -seen.positions :]


def read_into(
    loaded: Loaded, seen: Seen, cache: Cache | None = None
) -> tuple[torch.Tensor, Cache]:
    """Let a cache take up the prompts.

    Args:
        loaded: The model.
        seen: Prompts.
        cache: An empty one; None: what the model makes of its own accord.

    Returns:
        The likeliest next tokens, shape ``(samples, 1)``, and the cache.
    """
    given = {} if cache is None else {"past_key_values": cache}
    found = loaded.model(**_projected(loaded, seen), **given, use_cache=True, logits_to_keep=1)
    return found.logits[:, -1:].argmax(-1), found.past_key_values


@torch.no_grad()
def write(loaded: Loaded, seen: Seen, new_tokens: int) -> list[str]:
    """Let the model write on behind the prompts: greedily, until its end token.

    Args:
        loaded: The model.
        seen: Prompts, padded on the left.
        new_tokens: The most tokens that are written.
    """
    model, tokenizer = loaded.model, loaded.processor.tokenizer
    known = model.generation_config
    end = tokenizer.eos_token_id if known.eos_token_id is None else known.eos_token_id
    # A configuration of our own: checkpoints ship temperatures and penalties in theirs.
    plain = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end,
        bos_token_id=known.bos_token_id,
    )
    tokens = model.generate(**_projected(loaded, seen), generation_config=plain)
    said = tokens[:, seen.inputs["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(said, skip_special_tokens=True)]


def _projected(loaded: Loaded, seen: Seen) -> dict[str, Any]:
    inputs = dict(seen.inputs)
    if seen.features is not None:
        projected = projector(loaded.model)(seen.features)
        encoded = BaseModelOutputWithPooling(pooler_output=list(projected))
        inputs["mm_encoder_outputs"] = {"image": encoded}
    return inputs


def projector_state(loaded: Loaded) -> dict[str, torch.Tensor]:
    """Copy the weights of the projector, on the CPU."""
    return {
        name: weight.detach().to("cpu", copy=True)
        for name, weight in projector(loaded.model).state_dict().items()
    }


@contextmanager
def projecting(loaded: Loaded, state: State | None) -> Iterator[Loaded]:
    """Use the projector weights ``state``; on exit they are as they were, bit for bit."""
    if state is None:
        yield loaded
        return
    module = projector(loaded.model)
    with loaded.lock:
        mine = module.state_dict()
        copies = {
            name: weight.to(mine[name], copy=True) if name in mine else weight
            for name, weight in state.items()
        }
        before: list[tuple[Any, Any]] = [
            (entries, dict(entries))
            for part in module.modules()
            for entries in (part._parameters, part._buffers)
        ]
        try:
            # A state that does not fit raises, but only after it has put in what does.
            module.load_state_dict(copies, assign=True)
            yield loaded
        finally:
            for entries, present in before:
                entries.update(present)
