"""Load a checkpoint and understand it."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from effllava_optuna.errors import ModelError, describe
from effllava_optuna.policy import SiteId
from effllava_optuna.surgery.discover import LANGUAGE, Discovery, discover
from effllava_optuna.surgery.examine import examined
from effllava_optuna.surgery.loaded import Cut, Loaded
from effllava_optuna.surgery.probe import probe
from effllava_optuna.surgery.reload import has_plan, pruned_class
from effllava_optuna.surgery.seal import POLICY, check_seal, is_ours, read_policy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EMBEDDED = Path(__file__).parent.parent / "embedded"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    path_or_id: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    towers: Sequence[str] | None = (LANGUAGE,),
    depth: bool = False,
) -> Loaded:
    """Load a vision-language checkpoint or a text decoder, its processor and its anatomy.

    What its structure says is put to the test (`examined`).

    Args:
        path_or_id: A directory, a hub id, or ``digits-vlm``, the model inside the package.
            Directories that `export` wrote are understood, too.
        device: ``cpu``, ``cuda``, ``cuda:1`` ...; ``auto``: cuda where there is one;
            ``device-map``: spread over all devices, as ``device_map="auto"`` does.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``auto``: as the checkpoint was saved,
            but float32 on a CPU, which computes half precision slowly.
        towers: What to cut: ``language``, ``vision``, ``projector`` ... None: everything.
        depth: Offer whole blocks of the decoder, too.

    Raises:
        ModelError: There is no such checkpoint, its weights do not fit its configuration, its
            structure is not understood, or part of it is offloaded.

    Example:
        >>> loaded = load("digits-vlm", device="cpu")
        >>> len(loaded.anatomy.sites), loaded.anatomy.sites[1].id
        (12, 'language.00.mlp')
    """
    source, place = str(path_or_id), _placed(path_or_id)
    spread = device == "device-map"
    where = _device("auto" if spread else device)
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"dtype is {dtype!r}.", hint=f"Use auto or one of {', '.join(DTYPES)}.")
    kind: Any = DTYPES.get(dtype, torch.float32 if where.type == "cpu" else "auto")
    ours = is_ours(place)
    if ours:
        check_seal(Path(place))
    with _explained(source):
        sees = _sees(AutoConfig.from_pretrained(place))
        processor = (AutoProcessor if sees else AutoTokenizer).from_pretrained(place)
    model = read(place, source, dtype=kind, **({"device_map": "auto"} if spread else {}))
    if not spread:
        model.to(where)
    loaded = Loaded.of(model, processor, source, towers=towers, depth=depth)
    if ours:
        with _explained(f"{source}/{POLICY}"):
            loaded = replace(loaded, cut=_cut(read_policy(place)))
    return examined(loaded, probe(processor))


def _cut(document: dict[str, Any]) -> Cut | None:
    """Read from policy.json how a model came about."""
    if "sites" not in document:
        return None
    kept = {
        SiteId(site): (entry["kept"], entry["of"]) for site, entry in document["sites"].items()
    }
    return Cut(document["base_model"], document["anatomy"], document["order"], kept)


def outline(path_or_id: str | Path) -> Discovery:
    """Say what of a checkpoint could be cut, by its configuration alone.

    No weights are read, so that nothing is put to the test.

    Raises:
        ModelError: There is no such checkpoint, or its structure is not understood.
    """
    model, _ = empty(path_or_id)
    return discover(model)


def empty(path_or_id: str | Path) -> tuple[Any, bool]:
    """Give a model as its configuration has it, without weights, and whether it takes pictures.

    Raises:
        ModelError: There is no such checkpoint, or it does not load.
    """
    source, place = str(path_or_id), _placed(path_or_id)
    with _explained(source):
        config = AutoConfig.from_pretrained(place)
        with torch.device("meta"):
            return auto_class(config).from_config(config), _sees(config)


def _placed(path_or_id: str | Path) -> str | Path:
    """Find a checkpoint inside the package, in a directory, or leave it to the hub."""
    source = str(path_or_id)
    embedded = EMBEDDED / source
    if "/" not in source and (embedded / "config.json").is_file():
        return embedded
    is_path = isinstance(path_or_id, Path) or source[:1] in {"/", ".", "~"}
    if is_path and not Path(path_or_id).is_dir():
        raise ModelError(
            f"There is no directory {source!r}.", hint="Give a directory, a hub id, or digits-vlm."
        )
    return path_or_id


def read(place: str | Path, source: str, **options: Any) -> Any:
    """Read a model alone, without running code from a directory.

    Args:
        place: A directory or a hub id.
        source: What to call it in messages.
        options: For ``from_pretrained``.

    Raises:
        ModelError: It cannot be read, or its weights do not fit.
    """
    with _explained(source):
        if has_plan(place):
            factory = pruned_class(Path(place))
        else:
            factory = auto_class(AutoConfig.from_pretrained(place))
        # Sizes that do not fit come back in the report, by name.
        model, report = factory.from_pretrained(
            place, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    check_keys(report, source)
    return model


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Say in one line what a damaged file raises, somewhere below: it has no common family."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{source!r} does not load: {describe(error)}.",
            hint="Give a directory or hub id that AutoModelForImageTextToText or "
            "AutoModelForCausalLM, and AutoProcessor load, or digits-vlm.",
        ) from error


def auto_class(config: Any) -> Any:
    """Give the factory for a configuration: of vision-language models, else of text decoders."""
    return AutoModelForImageTextToText if _sees(config) else AutoModelForCausalLM


def _sees(config: Any) -> bool:
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


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
