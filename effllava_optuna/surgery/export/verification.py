"""Load an exported checkpoint in this process and compare its outputs with recorded ones.

`export` runs it as ``python -m effllava_optuna.surgery.export.verification DIRECTORY INPUTS
OUTPUTS DEVICE DTYPE``; the last line of its standard output is JSON.
"""

from __future__ import annotations

import json
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from effllava_optuna.surgery.export.comparison import compute_outputs
from effllava_optuna.surgery.loading.loader import DTYPES, auto_class, check_keys, read_model
from effllava_optuna.surgery.structure.pruned_class import has_plan


def main(directory: str, inputs_file: str, outputs_file: str, device: str, dtype: str) -> None:
    """Load ``directory`` in every supported way, and print the largest difference of outputs."""
    inputs, expected = load_file(inputs_file), load_file(outputs_file)
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
    outputs = [compute_outputs(each.to(device).eval(), inputs) for each in loaded.values()]
    differences = [(each["logits"] - expected["logits"]).abs().max() for each in outputs]
    document = {
        "parameters": model.num_parameters(),
        "logit_difference": float(torch.stack(differences).max()),  # NaN if any is NaN
        "generation_equal": all(
            torch.equal(each["tokens"], expected["tokens"]) for each in outputs
        ),
        "loader": tuple(loaded),
    }
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
