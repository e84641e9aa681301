"""What vLLM needs to load a native export, beside what transformers needs.

Its Transformers backend builds the class of ``AutoModel``, without the output layer, and reads the
attention heads of each layer from ``per_layer_config`` of the configuration. It finds the widths
of the MLPs in the modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import AutoModel

from effllava_optuna.checkpoint_format import PLAN
from effllava_optuna.surgery.structure.prunable_parts import LANGUAGE
from effllava_optuna.surgery.structure.pruned_class import DESCRIBED

if TYPE_CHECKING:
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

_LAYERS, _ALLOW = "per_layer_config", "allow_global_per_layer_attribute_access"


class ModelBody(NamedTuple):
    """The part of a model that computes hidden states.

    Attributes:
        name: Name of its transformers class.
        path: Its path in the model.
    """

    name: str
    path: str


def model_body(model: Any) -> ModelBody | None:
    """Return the part of a model that ``AutoModel`` builds; None: the model has no such part."""
    mapping: Any = AutoModel._model_mapping
    path: str = model.base_model_prefix
    if type(model.config) not in mapping:
        return None
    body = getattr(model, path, None)
    expected = mapping[type(model.config)]
    return ModelBody(expected.__name__, path) if isinstance(body, expected) else None


def describe_layers(config: dict[str, Any], pruned: LoadedModel) -> None:
    """Write the attention heads of the decoder's layers that differ into a configuration.

    A configuration that describes layers by itself (Gemma 4) is left as it is.

    Args:
        config: The configuration as JSON; changed. If it has no plan, no layer differs.
        pruned: The model.
    """
    text, decoder = _text_part(config, pruned.model.config)
    plan, earlier = config.get(PLAN), getattr(pruned.model.config, PLAN, {})
    if DESCRIBED in earlier:  # by an earlier export
        for key in (_LAYERS, _ALLOW):
            text.pop(key, None)
    elif getattr(decoder, "is_heterogeneous", False):
        return
    layers = {}
    for handle in () if plan is None else pruned.handles:
        module: Any = handle.module
        if handle.component.tower == LANGUAGE and hasattr(module, "k_proj"):
            heads = {
                "num_attention_heads": module.q_proj.weight.shape[0] // module.head_dim,
                "num_key_value_heads": module.k_proj.weight.shape[0] // module.head_dim,
            }
            if any(text.get(name) != count for name, count in heads.items()):
                layers[str(handle.component.layer)] = heads
    if layers and plan is not None:
        text[_LAYERS], text[_ALLOW], plan[DESCRIBED] = layers, True, True


def _text_part(config: dict[str, Any], of_model: Any) -> tuple[dict[str, Any], Any]:
    """Return the part of a configuration that describes the decoder, as JSON and as an object."""
    decoder = of_model.get_text_config()
    names = [name for name in of_model.sub_configs if getattr(of_model, name, None) is decoder]
    return (config[names[0]] if names else config), decoder
