"""Load a checkpoint and understand it."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from effllava_optuna.errors import ModelError
from effllava_optuna.surgery.discover import anatomy_of, discover
from effllava_optuna.surgery.reload import is_pruned, pruned_class

if TYPE_CHECKING:
    from effllava_optuna.policy import Anatomy, Order
    from effllava_optuna.surgery.discover import Handle

EMBEDDED = Path(__file__).parent.parent / "embedded"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Loaded:
    """A model that is understood.

    Attributes:
        model: In evaluation mode, its parameters frozen.
        processor: Makes its inputs.
        anatomy: Its sites.
        handles: Where the sites are, in the order of the anatomy.
        source: What it was loaded from.
        order: The ranking into which its units are permuted at present; None: as they came.
        lock: Whoever narrows the model or trains its projector holds it.
    """

    model: Any
    processor: Any
    anatomy: Anatomy
    handles: tuple[Handle, ...]
    source: str
    order: Order | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def device(self) -> torch.device:
        """Give the device of the input embeddings."""
        device = self.model.get_input_embeddings().weight.device
        if not isinstance(device, torch.device):
            raise ModelError(f"{self.source} has no device.")
        return device

    @staticmethod
    def of(model: Any, processor: Any, source: str) -> Loaded:
        """Understand ``model``.

        Raises:
            ModelError: Its structure is not understood, or it has parameters without data.
        """
        hollow = [name for name, weight in model.named_parameters() if weight.is_meta]
        if hollow:
            raise ModelError(
                f"{source}: {hollow[0]} is offloaded (meta device).",
                hint="Load the whole model into memory.",
            )
        handles = discover(model)
        model.eval().requires_grad_(requires_grad=False)
        return Loaded(model, processor, anatomy_of(handles), handles, source)


def load(path_or_id: str | Path, *, device: str = "auto", dtype: str = "auto") -> Loaded:
    """Load a vision-language checkpoint, its processor and its anatomy.

    Args:
        path_or_id: A directory, a hub id, or ``digits-vlm``, the model inside the package.
            Directories that `export` wrote are understood, too.
        device: ``cpu``, ``cuda``, ``cuda:1`` ...; ``auto``: cuda where there is one.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``auto``: as the checkpoint was saved,
            but float32 on a CPU, which computes half precision slowly.

    Raises:
        ModelError: There is no such checkpoint, it is no vision-language model, its weights do
            not fit its configuration, or its structure is not understood.

    Example:
        >>> loaded = load("digits-vlm", device="cpu")
        >>> len(loaded.anatomy.sites), loaded.anatomy.sites[1].id
        (12, 'language.00.mlp')
    """
    source = str(path_or_id)
    embedded = EMBEDDED / source
    inside = "/" not in source and (embedded / "config.json").is_file()
    place = embedded if inside else path_or_id
    is_path = isinstance(path_or_id, Path) or source[:1] in {"/", ".", "~"}
    if is_path and not Path(place).is_dir():
        raise ModelError(
            f"There is no directory {source!r}.", hint="Give a directory, a hub id, or digits-vlm."
        )
    where = _device(device)
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"dtype is {dtype!r}.", hint=f"Use auto or one of {', '.join(DTYPES)}.")
    kind: Any = DTYPES.get(dtype, torch.float32 if where.type == "cpu" else "auto")
    factory: Any = AutoModelForImageTextToText
    try:
        if is_pruned(place):
            factory = pruned_class(Path(place))
        processor = AutoProcessor.from_pretrained(place)
        # Sizes that do not fit come back in the report, by name; it is refused below.
        model, report = factory.from_pretrained(
            place, dtype=kind, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except ModelError:
        raise
    except Exception as error:  # what a damaged file raises, somewhere below, has no common family
        first = (str(error).strip() or "no message").splitlines()[0].strip().rstrip(".:")
        raise ModelError(
            f"{source!r} does not load: {type(error).__name__}: {first}.",
            hint="Give a directory or hub id that AutoModelForImageTextToText and AutoProcessor "
            "load, or digits-vlm.",
        ) from error
    check_keys(report, source)
    return Loaded.of(model.to(where), processor, source)


def fingerprint(model: Any) -> str:
    """Identify the weights of a model without reading all of them.

    Names and shapes of all parameters count, and up to 256 numbers of each, evenly spread: another
    checkpoint, or the same after any training, has another fingerprint.
    """
    content = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        flat = weight.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // 256)][:256]
        content.update(f"{name} {tuple(weight.shape)}".encode())
        content.update(some.cpu().float().numpy().tobytes())
    return content.hexdigest()[:16]


def check_keys(report: dict[str, Any], source: str) -> None:
    """Refuse a checkpoint whose weights do not fit: transformers would fill in random ones.

    Raises:
        ModelError: Keys are missing, unexpected or of another shape.
    """
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(what):
            keys = sorted(map(str, report[what]))
            raise ModelError(
                f"{source!r} has {len(keys)} {what.replace('_', ' ')}, such as {keys[0]}.",
                hint="Use a complete checkpoint for this version of transformers.",
            )


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"There is no device {device!r} here.", hint="Use auto, cpu or cuda."
        ) from error
    return where
