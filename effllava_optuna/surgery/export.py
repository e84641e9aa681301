"""Write a pruned model as a checkpoint, and prove in a fresh process that it comes back.

The checkpoint is a native one: safetensors under the stock names, the stock ``model_type``, the
sizes of the layers as a plan in config.json, and a small modelling file for
``trust_remote_code=True``. `load_pruned` reads it without running that file.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from effllava_optuna import __version__
from effllava_optuna.errors import ExportError
from effllava_optuna.surgery import reload
from effllava_optuna.surgery.load import load

if TYPE_CHECKING:
    from effllava_optuna.surgery.load import Loaded

# Logits of the same weights on the same machine; what differs is memory layout.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2e-1}
_NEW_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Verified:
    """What a fresh process found in an exported checkpoint.

    Attributes:
        directory: Where it is.
        parameters: Of the whole model.
        logit_difference: Largest absolute difference to the model that was exported.
        generation_equal: Whether greedy generation gives the same tokens.
        loader: What loaded it: ``load_pruned`` and ``trust_remote_code``.
    """

    directory: str
    parameters: int
    logit_difference: float
    generation_equal: bool
    loader: tuple[str, ...]


def export(pruned: Loaded, directory: str | Path, *, overwrite: bool = False) -> Verified:
    """Write ``pruned`` to ``directory`` and verify it in a fresh process.

    Args:
        pruned: What `sliced` gave.
        directory: Made if need be. It appears complete or not at all.
        overwrite: Replace an export that is already there.

    Raises:
        ExportError: The directory holds something, cannot be written, the model is narrowed
            instead of sliced, or the checkpoint does not come back: other keys, other logits,
            other tokens.
    """
    target = Path(directory).resolve()
    occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if occupied and not (overwrite and reload.is_pruned(target)):
        raise ExportError(
            f"{directory} is not empty.",
            hint="Choose another directory, or allow overwriting an earlier export.",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            draft = Path(scratch) / "checkpoint"
            _write(pruned, draft)
            found = _verify(pruned, draft, Path(scratch))
            if target.exists():
                shutil.rmtree(target)
            draft.rename(target)
    except OSError as error:
        raise ExportError(
            f"{directory} cannot be written: {error.strerror or error}.",
            hint="Choose a directory on a disk with room for the checkpoint.",
        ) from error
    report = Verified(str(directory), **found)
    (target / "verified.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    return report


def load_pruned(directory: str | Path, *, device: str = "auto", dtype: str = "auto") -> Loaded:
    """Load what `export` wrote, without running code from the directory.

    Raises:
        ModelError: The directory holds no such checkpoint, or a damaged one.
    """
    if not reload.is_pruned(directory):
        raise ExportError(
            f"{directory} holds no checkpoint that effllava_optuna wrote.",
            hint="Give the directory that `export` wrote; use load() for others.",
        )
    return load(directory, device=device, dtype=dtype)


def _plan(pruned: Loaded, base: type) -> dict[str, Any]:
    """Compare the model with the one that its configuration describes."""
    with torch.device("meta"):
        stock = dict(base(pruned.model.config).named_modules())
    plan: dict[str, Any] = {
        "format": 1, "base": base.__name__, "version": __version__, "linears": {}, "counts": {},
    }  # fmt: skip
    handles = {id(handle.module): handle for handle in pruned.handles}
    for path, module in pruned.model.named_modules():
        if isinstance(module, nn.Linear):
            shape = (module.out_features, module.in_features)
            if module.weight.shape != shape:
                raise ExportError(
                    f"{path} is narrowed at present.", hint="Export what `sliced` gives."
                )
            gained = module.bias is not None and stock[path].bias is None
            if gained or shape != (stock[path].out_features, stock[path].in_features):
                plan["linears"][path] = list(shape)
            if gained:  # a refit may bring one to a layer that has none
                plan.setdefault("biases", []).append(path)
        elif id(module) in handles:
            counts = {name: getattr(module, name) for name in handles[id(module)].counts}
            changed = {n: c for n, c in counts.items() if getattr(stock[path], n) != c}
            if changed:
                plan["counts"][path] = changed
    return plan


def _write(pruned: Loaded, draft: Path) -> None:
    model = pruned.model
    base: Any = type(model)
    while not base.__module__.startswith("transformers."):
        base = base.__base__
    pruned_name = f"Pruned{base.__name__}"
    plan = _plan(pruned, base)
    # A native class writes hub names; ours, once registered, writes the same ones.
    reload.adopt_renaming(type(model).__name__, base.__name__, model.config.model_type)
    model.save_pretrained(draft)
    pruned.processor.save_pretrained(draft)
    for leftover in draft.glob("*.py"):
        leftover.unlink()
    place = draft / "config.json"
    config = json.loads(place.read_text(encoding="utf-8"))
    config |= {
        "architectures": [pruned_name],
        "auto_map": dict.fromkeys(
            ("AutoModelForImageTextToText", "AutoModel"), f"modeling_effllava.{pruned_name}"
        ),
        reload.PLAN: plan,
    }
    place.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    text = (Path(__file__).parent / "modeling_effllava.py.txt").read_text(encoding="utf-8")
    for name, value in {
        "BASE": base.__name__,
        "PLAN": reload.PLAN,
        "VERSION": __version__,
        "MODEL_TYPE": model.config.model_type,
        "RESIZE": inspect.getsource(reload.resize),
        "ADOPT": inspect.getsource(reload.adopt_renaming),
    }.items():
        text = text.replace(f"{{{name}}}", value)
    (draft / "modeling_effllava.py").write_text(text, encoding="utf-8")


def probe(loaded: Loaded) -> dict[str, torch.Tensor]:
    """Make inputs that any checkpoint can answer: a fixed picture and two short questions."""
    size = 64
    waves = np.add.outer(np.arange(size) * 3, np.arange(size) * 5) % 256
    picture = Image.fromarray(np.stack([waves, waves.T, 255 - waves], -1).astype(np.uint8))
    texts = []
    for question in ("what is in the picture?", "what digit is at the top left?"):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        if getattr(loaded.processor, "chat_template", None):
            texts.append(
                loaded.processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True
                )
            )
        else:
            texts.append(f"{loaded.processor.image_token}\n{question}")
    return dict(
        loaded.processor(
            text=texts,
            images=[picture, picture],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
    )


@torch.no_grad()
def respond(loaded: Loaded, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give logits and greedily generated tokens for ``inputs``."""
    moved = {name: value.to(loaded.device) for name, value in inputs.items()}
    logits = loaded.model(**moved).logits[:, -1].float()
    tokens = loaded.model.generate(**moved, max_new_tokens=_NEW_TOKENS, do_sample=False)
    new = tokens[:, moved["input_ids"].shape[1] :]
    padded = nn.functional.pad(new, (0, _NEW_TOKENS - new.shape[1]), value=-1)
    return {"logits": logits.cpu().contiguous(), "tokens": padded.cpu().contiguous()}


def _verify(pruned: Loaded, draft: Path, scratch: Path) -> dict[str, Any]:
    inputs = probe(pruned)
    expected = respond(pruned, inputs)
    save_file({name: value.contiguous() for name, value in inputs.items()}, scratch / "in")
    save_file(expected, scratch / "out")
    dtype = str(pruned.model.dtype).removeprefix("torch.")
    run = subprocess.run(
        [
            sys.executable, "-m", "effllava_optuna.surgery.verify",
            str(draft), str(scratch / "in"), str(scratch / "out"), str(pruned.device), dtype,
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch / "modules")},
    )  # fmt: skip
    if run.returncode:
        last = (run.stderr.strip() or "no message").splitlines()[-1]
        raise ExportError(
            f"The export of {pruned.source} does not load in a fresh process: {last}",
            hint="Nothing was written.",
        )
    found: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    found["loader"] = tuple(found.get("loader", ()))
    tolerance = TOLERANCE[pruned.model.dtype]
    worst = max(1.0, float(expected["logits"].abs().max()))
    if not found["logit_difference"] <= tolerance * worst or not found["generation_equal"]:
        raise ExportError(
            f"The export of {pruned.source} comes back as another model: logits differ by "
            f"{found['logit_difference']:.2g}, same tokens: {found['generation_equal']}.",
            hint=f"Nothing was written; transformers is {transformers.__version__}.",
        )
    return found
