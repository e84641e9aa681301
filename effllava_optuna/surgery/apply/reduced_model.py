"""Make a model and its processor use fewer image tokens."""

from __future__ import annotations

import copy
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import ModelError
from effllava_optuna.processors import takes_pictures
from effllava_optuna.surgery.structure.native_files import complete_processor_files
from effllava_optuna.surgery.visual_tokens.token_reduction import TokenReduction
from effllava_optuna.surgery.visual_tokens.token_selection import reduce_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from effllava_optuna.policy import Policy
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

KEEP_ALL = "Keep all of them (a ratio of 1)."


@contextmanager
def reduced_tokens(
    loaded: LoadedModel, ratio: float, *, selection: str = "diversity", seed: int = 0
) -> Iterator[LoadedModel]:
    """Reduce the image tokens of a model for the duration of the ``with``.

    Tokens are selected at the output of the projector, and the processor inserts as many image
    tokens as stay: prompts are shorter, with consecutive positions; only where positions follow
    the grid of a picture (multimodal RoPE), tokens keep theirs. With a ratio of 1, nothing changes
    at all.

    Args:
        loaded: The model.
        ratio: The share of the tokens of a picture that stays, in (0, 1].
        selection: ``diversity``, ``pooling`` or ``random``; see `TokenReduction`.
        seed: Seed of ``random``.

    Yields:
        The model with the processor that belongs to it: prompts that were encoded before have
        too many image tokens.

    Raises:
        ModelError: The image tokens of the model cannot be reduced, or are already.

    Example:
        >>> from effllava_optuna import load
        >>> from effllava_optuna.surgery import build_example_inputs, reduced_tokens
        >>> loaded = load("digits-vlm", device="cpu")
        >>> build_example_inputs(loaded.processor)["input_ids"].shape[1]
        28
        >>> with reduced_tokens(loaded, 0.25) as reduced:
        ...     build_example_inputs(reduced.processor)["input_ids"].shape[1]
        16
    """
    if ratio == 1:
        yield loaded
        return
    _refuse_irreducible(loaded, selection)
    reduction = TokenReduction.of(loaded.model, loaded.processor, ratio, selection, seed)
    with loaded.lock:
        owner, names = reduce_model(loaded.model, reduction.to_json())
        try:
            yield replace(
                loaded,
                processor=reduced_processor(loaded.processor, reduction),
                visual_tokens=reduction,
            )
        finally:
            for name in names:
                delattr(owner, name)


def _refuse_irreducible(loaded: LoadedModel, selection: str) -> None:
    """Refuse a model whose image tokens cannot be reduced, or not in this way."""
    obstacle = find_obstacle(loaded.model, loaded.processor)
    if obstacle:
        raise ModelError(
            f"The image tokens of {loaded.source} cannot be reduced: {obstacle}.",
            hint=KEEP_ALL,
        )
    if loaded.visual_tokens is not None:
        raise ModelError(
            f"{loaded.source} already keeps {loaded.visual_tokens.ratio:g} of its image tokens.",
            hint="Use the model that it was made from.",
        )
    if selection == "pooling" and any(
        hasattr(child, "get_rope_index") for child in loaded.model.children()
    ):
        raise ModelError(
            f"{loaded.source} places image tokens in a grid, in which an average has no place.",
            hint="Use diversity or random.",
        )


def with_tokens_of(loaded: LoadedModel, policy: Policy) -> AbstractContextManager[LoadedModel]:
    """Reduce the image tokens of a model to those that a policy keeps; see `reduced_tokens`."""
    choice = loaded.parts.tokens
    if choice is None or policy.visual_tokens == 1:
        return nullcontext(loaded)
    return reduced_tokens(loaded, policy.visual_tokens, selection=choice.selection)


def reduced_processors(loaded: LoadedModel) -> dict[float, Any]:
    """Return the processor for each share of the image tokens below 1 that a policy may keep."""
    choice, model, processor = loaded.parts.tokens, loaded.model, loaded.processor
    if choice is None or loaded.visual_tokens is not None:
        return {}
    return {
        ratio: reduced_processor(
            processor, TokenReduction.of(model, processor, ratio, choice.selection)
        )
        for ratio in choice.ratios
    }


def reduced_processor(processor: Any, reduction: TokenReduction) -> Any:
    """Return a copy of a processor that inserts fewer image tokens.

    Its ``save_pretrained`` writes the code that does so, too, and it can be pickled.
    """
    base = type(processor)

    def replace_image_token(self: Any, *arguments: Any, **options: Any) -> str:
        return reduction.shortened(base.replace_image_token(self, *arguments, **options))

    def replace_video_token(self: Any, *arguments: Any, **options: Any) -> str:
        # Some families write the frames of a video as image tokens.
        return reduction.shortened(base.replace_video_token(self, *arguments, **options))

    def save_pretrained(self: Any, save_directory: Any, *arguments: Any, **options: Any) -> Any:
        files = base.save_pretrained(self, save_directory, *arguments, **options)
        complete_processor_files(base.__name__, reduction, Path(save_directory))
        return files

    def reduce(self: Any, _: int) -> Any:
        stock = copy.copy(vars(self))
        return _rebuilt_processor, (base, reduction, stock)

    # The name stays: `save_pretrained` writes it.
    members = {
        "replace_image_token": replace_image_token,
        "replace_video_token": replace_video_token,
        "save_pretrained": save_pretrained,
        "__reduce_ex__": reduce,
        "__module__": base.__module__,
    }
    reduced: Any = object.__new__(type(base.__name__, (base,), members))
    vars(reduced).update(vars(processor))
    return reduced


def _rebuilt_processor(base: Any, reduction: TokenReduction, attributes: dict[str, Any]) -> Any:
    """Create what `reduced_processor` returned, from a pickle."""
    processor = object.__new__(base)
    vars(processor).update(attributes)
    return reduced_processor(processor, reduction)


def find_obstacle(model: Any, processor: Any) -> str:
    """Return why the image tokens of a model cannot be reduced; empty if they can."""
    if not takes_pictures(processor):
        return "it takes no pictures"
    # In the base class, the method raises; its module is not imported, which needs torchvision.
    inserts = [c.__name__ for c in type(processor).__mro__ if "replace_image_token" in vars(c)]
    owners = [child for child in model.children() if hasattr(child, "get_image_features")]
    if inserts[:1] in ([], ["ProcessorMixin"]) or not owners:
        return "its decoder does not read pictures as tokens of the prompt"
    if getattr(processor, "image_break_token", None):
        return "each row of image tokens ends in a line break"
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    if "mrope_section" in rope and not hasattr(owners[0], "get_rope_index"):
        return "positions follow the grid of the whole picture"
    return ""
