"""Load an exported checkpoint in this process and compare it with the model that was written.

`verify_in_fresh_process` runs this module as a program, whose arguments are those of `main`; the
last line of its standard output is JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor

from effllava_optuna.errors import ExportError
from effllava_optuna.surgery.apply.reduced_model import reduced_processor
from effllava_optuna.surgery.export.comparison import compare_with_expected
from effllava_optuna.surgery.loading.example_inputs import build_example_inputs
from effllava_optuna.surgery.loading.loader import DTYPES, auto_class, check_keys, read_model
from effllava_optuna.surgery.loading.processor_loading import load_processor
from effllava_optuna.surgery.structure.pruned_class import has_plan, token_reduction


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
    _check_processors(directory, model.config)
    models = [each.to(device).eval() for each in loaded.values()]
    document = {
        "parameters": model.num_parameters(),
        "loader": tuple(loaded),
        "difference": asdict(compare_with_expected(models, Path(scratch))),
    }
    sys.stdout.write(json.dumps(document) + "\n")


def _check_processors(directory: str, config: Any) -> None:
    """Check that the processor of the checkpoint's own code inserts as many image tokens as ours.

    Raises:
        ExportError: It does not.
    """
    reduction = token_reduction(config, directory)
    if reduction is None or not (Path(directory) / "processor_config.json").exists():
        return
    own = reduced_processor(load_processor(directory, directory, takes_images=True), reduction)
    coded = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
    prompts = [build_example_inputs(each)["input_ids"] for each in (own, coded)]
    if not torch.equal(*prompts):
        raise ExportError(
            f"{type(coded).__name__} encodes the example as {prompts[1].shape[1]} tokens instead "
            f"of {prompts[0].shape[1]}.",
            hint="Nothing was written.",
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
