"""Load an exported checkpoint in this process and compare it with the model that was written.

`verify_in_fresh_process` runs this module as a program, whose arguments are those of `main`; the
last line of its standard output is JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoProcessor

from effllava_optuna.errors import ExportError
from effllava_optuna.surgery.apply.reduced_model import reduced_processor
from effllava_optuna.surgery.export.comparison import compare_with_expected, read_example
from effllava_optuna.surgery.loading.example_inputs import build_example_inputs
from effllava_optuna.surgery.loading.loader import DTYPES, check_keys, read_model
from effllava_optuna.surgery.loading.processor_loading import encode_example, load_processor
from effllava_optuna.surgery.structure.pruned_class import (
    auto_class,
    has_plan,
    takes_images,
    token_reduction,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


def main(directory: str, scratch: str, device: str, dtype: str) -> None:
    """Load ``directory`` in every supported way, and print the differences.

    Args:
        directory: The checkpoint.
        scratch: The directory with what `write_expected` wrote.
        device: Device of the model.
        dtype: Its dtype, such as ``float32``.
    """
    # The plan of a native checkpoint is read by this package, and by the code beside it.
    planned = has_plan(directory)
    auto = auto_class(AutoConfig.from_pretrained(directory))
    model, report = auto.from_pretrained(
        directory, dtype=DTYPES[dtype], trust_remote_code=planned, output_loading_info=True
    )
    check_keys(report, directory)
    loaded = {"trust_remote_code" if planned else auto.__name__: model}
    if planned:
        own = read_model(directory, directory, dtype=DTYPES[dtype])
        loaded = {"load_pruned": own, **loaded}
    _check_processors(directory, model, Path(scratch))
    models = _one_by_one([*loaded.values()], device)
    document = {
        "parameters": model.num_parameters(),
        "loader": tuple(loaded),
        "difference": asdict(compare_with_expected(models, Path(scratch))),
    }
    sys.stdout.write(json.dumps(document) + "\n")


def _one_by_one(models: Sequence[Any], device: str) -> Iterator[Any]:
    """Move each model to the device and back, because the parent process has others on it."""
    for model in models:
        yield model.to(device).eval()
        model.to("cpu")


def _check_processors(directory: str, model: Any, scratch: Path) -> None:
    """Check that the processor of a checkpoint, and its own code, encode the example as expected.

    Raises:
        ExportError: They do not.
    """
    example, reduction = read_example(scratch), token_reduction(model.config, directory)
    has_processor = (Path(directory) / "tokenizer_config.json").exists()
    if not has_processor or (example is None and reduction is None):
        return
    processor = load_processor(directory, directory, takes_images=takes_images(model.config))
    if reduction is not None:
        processor = reduced_processor(processor, reduction)
    inputs = encode_example(processor, model, directory)
    changed = _changed_inputs(inputs, inputs if example is None else example)
    if changed:
        raise ExportError(
            f"The processor reloads as another one: the {changed[0]} of an example differ.",
            hint="Nothing was written.",
        )
    if reduction is None:
        return
    coded = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
    prompts = [inputs["input_ids"], build_example_inputs(coded)["input_ids"]]
    if not torch.equal(*prompts):
        raise ExportError(
            f"{type(coded).__name__} encodes the example as {prompts[1].shape[1]} tokens instead "
            f"of {prompts[0].shape[1]}.",
            hint="Nothing was written.",
        )


def _changed_inputs(
    inputs: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> list[str]:
    """Return the names of the inputs that are missing, added, or have other values."""
    return sorted(
        name
        for name in inputs.keys() | expected.keys()
        if not (name in inputs and name in expected and torch.equal(inputs[name], expected[name]))
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
