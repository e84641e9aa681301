"""Load an exported checkpoint in this process and compare it with recorded answers.

Run by `export` as ``python -m effllava_optuna.surgery.verify DIR INPUTS ANSWERS DEVICE DTYPE``;
the last line of the output is JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from effllava_optuna.surgery.export import load_pruned, respond
from effllava_optuna.surgery.load import DTYPES, check_keys


def main(directory: str, inputs: str, answers: str, device: str, dtype: str) -> None:
    """Compare both ways of loading with the recorded answers."""
    asked, expected = load_file(inputs), load_file(answers)
    loaded = load_pruned(directory, device=device, dtype=dtype)
    remote, report = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=DTYPES[dtype], trust_remote_code=True, output_loading_info=True
    )
    check_keys(report, directory)
    worst, equal = 0.0, True
    for model in (loaded.model, remote.to(loaded.device).eval()):
        found = respond(replace(loaded, model=model), asked)
        worst = max(worst, float((found["logits"] - expected["logits"]).abs().max()))
        equal = equal and bool((found["tokens"] == expected["tokens"]).all())
    document = {
        "parameters": loaded.model.num_parameters(),
        "logit_difference": worst,
        "generation_equal": equal,
        "loader": ("load_pruned", "trust_remote_code"),
    }
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main(str(Path(sys.argv[1])), *sys.argv[2:])
