"""Write the Python files of a native export, which transformers runs with trust_remote_code."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna import __version__
from effllava_optuna.checkpoint_format import PLAN
from effllava_optuna.surgery.structure.pruned_class import (
    adopt_renaming,
    plan_of,
    refuse_paged_cache,
    remove_output_hooks,
    resize,
)
from effllava_optuna.surgery.visual_tokens import token_selection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from effllava_optuna.surgery.structure.native_files import ModelBody
    from effllava_optuna.surgery.visual_tokens.token_reduction import TokenReduction

MODELLING = "modeling_effllava"
PROCESSING = "processing_effllava"
_BODY = "body_class"
_OF_PROMPTS = (
    token_selection.kept_tokens,
    token_selection.is_tiled,
    token_selection.reduced_prompt,
)
_OF_FEATURES = (
    token_selection.kept_tokens,
    token_selection.is_tiled,
    token_selection.diverse_tokens,
    token_selection.distant_tokens,
    token_selection.random_index,
    token_selection.random_tokens,
    token_selection.pooled_tokens,
    token_selection.kept_index,
    token_selection.reduced_pictures,
    token_selection.reduced_features,
    token_selection.read_reduced,
    token_selection.read_placed,
    token_selection.read_whole,
    token_selection.read_positions,
    token_selection.reduce_model,
)


def modelling_source(
    base: str, model_type: str, body: ModelBody | None, *, reduces_tokens: bool
) -> str:
    """Return the modelling file of a model.

    Args:
        base: Its transformers class.
        model_type: Its type, as in the configuration.
        body: The part of it that has a class of its own; None: there is none.
        reduces_tokens: Whether it reads fewer image tokens.
    """
    tokens = _OF_FEATURES if reduces_tokens else ()
    functions = (resize, refuse_paged_cache, remove_output_hooks, *tokens, adopt_renaming)
    call = '\n        reduce_model(self, getattr(config, PLAN)["visual_tokens"])'
    values = {"MODEL_TYPE": model_type, "REDUCE": call if reduces_tokens else ""}
    part = "" if body is None else _filled(
        _BODY, values | {"BODY": body.name, "PATH": body.path, "PART": inspect.getsource(plan_of)}
    )  # fmt: skip
    return _filled(
        MODELLING,
        {
            "BASE": base,
            "PLAN": PLAN,
            "IMPORTED": "" if body is None else f"{body.name}, ",
            "IMPORTS": "import functools\n" if reduces_tokens else "",
            "TORCH": "import torch\n" if reduces_tokens else "",
            "FUNCTIONS": _sources(functions),
            "BODY": part,
            **values,
        },
    )


def processing_source(base: str, reduction: TokenReduction) -> str:
    """Return the file of a processor of class ``base`` that inserts fewer image tokens."""
    settings = repr(reduction.to_json())
    values = {"BASE": base, "SETTINGS": settings, "FUNCTIONS": _sources(_OF_PROMPTS)}
    return _filled(PROCESSING, values)


def _sources(functions: tuple[Callable[..., Any], ...]) -> str:
    return "\n\n".join(inspect.getsource(function) for function in functions)


def _filled(template: str, values: Mapping[str, str]) -> str:
    """Fill a template of this directory."""
    text = (Path(__file__).parent / f"{template}.py.txt").read_text(encoding="utf-8")
    for name, value in {"VERSION": __version__, **values}.items():
        text = text.replace(f"{{{name}}}", value)
    return text
