"""Load an exported checkpoint in this process and compare it with recorded answers.

Run by `export` as ``python -m effllava_optuna.surgery.verify DIR INPUTS ANSWERS DEVICE DTYPE``;
the last line of the output is JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import load_file
from transformers import AutoConfig

from effllava_optuna.surgery.export import respond
from effllava_optuna.surgery.load import DTYPES, auto_class, check_keys, read
from effllava_optuna.surgery.reload import has_plan


def main(directory: str, inputs: str, answers: str, device: str, dtype: str) -> None:
    """Compare all ways of loading with the recorded answers."""
    asked, expected = load_file(inputs), load_file(answers)
    kind = DTYPES[dtype]
    # The plan of a native checkpoint is read by us, or by the code beside it.
    planned = has_plan(directory)
    auto = auto_class(AutoConfig.from_pretrained(directory))
    model, report = auto.from_pretrained(
        directory, dtype=kind, trust_remote_code=planned, output_loading_info=True
    )
    check_keys(report, directory)
    ways = {"trust_remote_code" if planned else auto.__name__: model}
    if planned:
        ways = {"load_pruned": read(directory, directory, dtype=kind), **ways}
    worst, equal = 0.0, True
    for way in ways.values():
        found = respond(way.to(device).eval(), asked)
        worst = max(worst, float((found["logits"] - expected["logits"]).abs().max()))
        equal = equal and bool((found["tokens"] == expected["tokens"]).all())
    document = {
        "parameters": model.num_parameters(),
        "logit_difference": worst,
        "generation_equal": equal,
        "loader": tuple(ways),
    }
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main(str(Path(sys.argv[1])), *sys.argv[2:])
