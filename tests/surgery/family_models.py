"""Verified models of the families, and random policies for them."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from effllava_optuna.policy import Kind, ModelStructure, Policy, Ranking
from effllava_optuna.surgery import LoadedModel, verify_structure
from effllava_optuna.surgery.export.checkpoint_files import size_plan
from effllava_optuna.surgery.export.comparison import ReloadDifference
from effllava_optuna.surgery.structure.pruned_class import resize, stock_class
from tests.surgery.families import FAMILIES, Family

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from _pytest.mark import ParameterSet

# Logits are near 3. The same sums in another order, in float32.
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
BY_DEFAULT = ("llava", "qwen2_5_vl")


def families(names: Iterable[str] = FAMILIES) -> list[ParameterSet]:
    """Mark all families but those that run by default."""
    return [
        pytest.param(name, marks=() if name in BY_DEFAULT else pytest.mark.families)
        for name in names
    ]


@functools.cache
def load_family(name: str) -> LoadedModel:
    """Load all prunable parts of a family, verified. Tests must leave the model unchanged."""
    family = FAMILIES[name]
    loaded = LoadedModel.of(family.build(), None, name, towers=None, depth=True)
    return verify_structure(loaded, family.inputs())


def text_decoder(config: str, **settings: Any) -> Any:
    """Create a text decoder with other settings than those of its family."""
    return Family(config, {**FAMILIES["llama"].settings, **settings}, {}).build()


def text_inputs() -> dict[str, torch.Tensor]:
    return FAMILIES["llama"].inputs()


def verified_text(model: Any) -> LoadedModel:
    return verify_structure(LoadedModel.of(model, None, "text", depth=True), text_inputs())


def random_policy(structure: ModelStructure, seed: int) -> tuple[Policy, Ranking]:
    """Draw a policy and a ranking; about a third of the blocks are removed."""
    rng = np.random.default_rng(seed)
    widths = [
        int(rng.random() > 0.35) if c.kind is Kind.BLOCK else int(rng.integers(1, c.width + 1))
        for c in structure.components
    ]
    scores = {component.id: rng.random(component.width) for component in structure.components}
    return Policy.of(structure, widths), Ranking.from_scores(structure, "random", scores)


@torch.no_grad()
def compute_logits(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    logits: torch.Tensor = model(**inputs).logits.float()
    return logits


def rebuilt(small: LoadedModel) -> Any:
    """Build a model as `from_pretrained` does: from the configuration, the plan, the weights."""
    model = small.model
    config = type(model.config).from_dict(json.loads(model.config.to_json_string()))
    copy = stock_class(model)(config)
    resize(copy, size_plan(small))
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def policies(structure: ModelStructure) -> Iterator[Policy]:
    """Yield policies without one block, without all of them, and random ones."""
    dense = Policy.dense(structure).widths
    blocks = [index for index, c in enumerate(structure.components) if c.kind is Kind.BLOCK]
    for removed in [*([index] for index in blocks), blocks]:
        yield Policy.of(structure, [0 if i in removed else w for i, w in enumerate(dense)])
    for seed in range(3):
        yield random_policy(structure, seed)[0]


def assert_reloaded(directory: Path, pattern: str, count: int) -> None:
    """Load exports beside what is expected of them, in one fresh process, and compare them.

    Args:
        directory: Has a directory for each export.
        pattern: Of the paths of the exports in it.
        count: Their number.
    """
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from effllava_optuna.surgery.export.verification import main\n"
        "for place in sorted(Path(sys.argv[1]).glob(sys.argv[2])):\n"
        "    print(place)\n"
        "    main(str(place), str(place), 'cpu', 'float32')\n"
    )
    command = [sys.executable, "-c", program, str(directory), pattern]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == count
    for line in map(json.loads, lines):
        assert ReloadDifference(**line["difference"]).is_none
