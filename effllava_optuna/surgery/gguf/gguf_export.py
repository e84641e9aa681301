"""Export a pruned model as GGUF, and verify it in llama.cpp if that is found.

The decoder is one file, with its tokenizer and chat template; vision tower and projector of a
LLaVA are a second one, beside it. Decoders that llama.cpp computes with their own width in each
block are written so, others padded to one width (see `architectures`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effllava_optuna import __version__
from effllava_optuna.errors import ExportError
from effllava_optuna.export_target import check_gguf_file, pictures_file, resolve_target
from effllava_optuna.files import scratch_beside, write_errors_as
from effllava_optuna.processors import takes_pictures, tokenizer_of
from effllava_optuna.surgery.export.checkpoint_files import size_plan
from effllava_optuna.surgery.export.stock_sizes import pad_to_stock_sizes
from effllava_optuna.surgery.gguf.architectures import architecture_of
from effllava_optuna.surgery.gguf.decoder import add_decoder
from effllava_optuna.surgery.gguf.gguf_verification import GgufComparison, verify_gguf
from effllava_optuna.surgery.gguf.llama_cpp import find_llama_cpp
from effllava_optuna.surgery.gguf.tensors import TYPES, file_type
from effllava_optuna.surgery.gguf.tokenizers import add_tokenizer
from effllava_optuna.surgery.gguf.vision import add_vision, check_vision
from effllava_optuna.surgery.structure.inspection import language_model

if TYPE_CHECKING:
    from pathlib import Path

    from effllava_optuna.surgery.gguf.architectures import Architecture
    from effllava_optuna.surgery.gguf.tensors import GgufType
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel


@dataclass(frozen=True, slots=True)
class VerifiedGgufExport:
    """A GGUF export, and the result of verifying it in llama.cpp.

    Attributes:
        path: The file of the decoder.
        pictures: The file of vision tower and projector; None: the decoder alone was written.
        architecture: llama.cpp's name of the architecture.
        size: Bytes of the files.
        engine: The llama.cpp that generated the same answers; None: none was found.
        tokens: Number of generated tokens that are equal.
        class_last: Whether that llama.cpp reads pictures somewhat differently: it places the class
            embedding of a CLIP tower behind the patches (its issue 25814).
    """

    path: str
    pictures: str | None
    architecture: str
    size: int
    engine: str | None
    tokens: int
    class_last: bool


def export_gguf(
    pruned: LoadedModel,
    path: str | Path,
    *,
    kind: GgufType = "f16",
    language_only: bool = False,
    overwrite: bool = False,
) -> VerifiedGgufExport:
    """Write ``pruned`` as GGUF, and verify it if llama.cpp is found on this machine.

    The verification generates greedily in llama.cpp and in transformers, with the values that the
    files have: tokens of prompts and texts of answers must be equal, but for ties.

    Args:
        pruned: A result of `sliced`, or `load_pruned`, with its processor.
        path: The file of the decoder; it appears complete or not at all. Vision tower and
            projector are written beside it, to a file whose name begins with ``mmproj-``.
        kind: The type of the matrices: ``f32``, ``f16`` or ``q8_0``.
        language_only: Write the decoder alone.
        overwrite: Replace existing files.

    Raises:
        ExportError: A package is missing, a file exists or cannot be written, llama.cpp has no
            such decoder, tokenizer or vision tower, or it generates something else.
    """
    if kind not in TYPES:
        raise ExportError(f"kind is {kind!r}.", hint=f"Use {', '.join(TYPES)}.")
    check_gguf_file(path, overwrite=overwrite)
    if pruned.processor is None:
        raise ExportError(
            f"{pruned.source} has no processor, whose tokenizer belongs into a GGUF file.",
            hint="Load the model with its processor.",
        )
    has_vision = takes_pictures(pruned.processor) and not language_only
    if has_vision:
        check_vision(pruned)
    decoder: Any = language_model(pruned.model)
    architecture = architecture_of(decoder.config, pruned.source)
    written = _fitted(pruned, architecture)
    target = resolve_target(path)
    hint = "Choose a place on a disk with room for the weights."
    with write_errors_as(ExportError, target, hint=hint), scratch_beside(target) as scratch:
        files = [scratch / target.name]
        _write_decoder(written, files[0], architecture, kind)
        if has_vision:
            files.append(pictures_file(files[0]))
            _write_vision(pruned, files[1], kind)
        engine = find_llama_cpp()
        compared = GgufComparison(0, class_last=False)
        if engine is not None:
            compared = verify_gguf(pruned, files, kind, engine)
        size = sum(file.stat().st_size for file in files)
        for old in (target, pictures_file(target)):
            old.unlink(missing_ok=True)
        for file in files:
            file.rename(target.with_name(file.name))
    return VerifiedGgufExport(
        path=str(path),
        pictures=str(pictures_file(target)) if has_vision else None,
        architecture=architecture.name,
        size=size,
        engine=None if engine is None else engine.version,
        tokens=compared.tokens,
        class_last=compared.class_last,
    )


def _fitted(pruned: LoadedModel, architecture: Architecture) -> LoadedModel:
    """Return a model with the sizes that an architecture can have.

    Raises:
        ExportError: It has biases that the architecture does not have.
    """
    if architecture.by_block:
        return pruned
    padded = pad_to_stock_sizes(pruned)
    biases = size_plan(padded).get("biases")
    if biases:
        raise ExportError(
            f"{pruned.source} has a bias that llama.cpp's {architecture.name} does not have: "
            f"{biases[0]}.",
            hint='Prune it with compensation = "least-squares", which adds none.',
        )
    return padded


def _write_decoder(
    written: LoadedModel, file: Path, architecture: Architecture, kind: GgufType
) -> None:
    import gguf

    writer = gguf.GGUFWriter(file, architecture.name)
    writer.add_name(file.stem)
    writer.add_description(f"Pruned by effllava_optuna {__version__}")
    writer.add_file_type(file_type(kind))
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, written.base_name)
    add_decoder(writer, written, architecture, kind)
    template = getattr(written.processor, "chat_template", None)
    add_tokenizer(
        writer,
        tokenizer_of(written.processor),
        written.model,
        template=template if isinstance(template, str) else None,
    )
    _finish(writer)


def _write_vision(pruned: LoadedModel, file: Path, kind: GgufType) -> None:
    import gguf

    writer = gguf.GGUFWriter(file, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_file_type(file_type(kind))
    add_vision(writer, pruned, kind)
    _finish(writer)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
