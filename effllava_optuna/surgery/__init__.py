"""Inspect, load, rank, compensate, narrow, slice and export models."""

from effllava_optuna.surgery.any_form import VerifiedAnyForm, export_any_form
from effllava_optuna.surgery.apply.arrangement import arranged
from effllava_optuna.surgery.apply.backward_memory import samples_per_backward
from effllava_optuna.surgery.apply.compensation_table import (
    CompensationTable,
    FittedOutput,
    table_tensors,
    tables_of,
)
from effllava_optuna.surgery.apply.encoded_inputs import (
    EncodedInputs,
    answer_logits,
    encode_images,
    generate,
    generate_text,
    prefill,
)
from effllava_optuna.surgery.apply.masking import masked
from effllava_optuna.surgery.apply.narrowing import narrowed
from effllava_optuna.surgery.apply.projector_weights import projector_state, use_projector
from effllava_optuna.surgery.apply.reduced_model import reduced_processors, reduced_tokens
from effllava_optuna.surgery.apply.slicing import sliced
from effllava_optuna.surgery.apply.weight_state import FULL_FIT, WeightState, policy_network
from effllava_optuna.surgery.compensation.fitting import (
    CompensatedRanking,
    PruningOptions,
    estimate_residuals,
    rank_and_compensate,
)
from effllava_optuna.surgery.compensation.in_context import ContextOptions, compensate_in_context
from effllava_optuna.surgery.compensation.least_squares import (
    choose_damping,
    least_squares,
    mean_biases,
)
from effllava_optuna.surgery.compensation.memory_limit import split_by_memory
from effllava_optuna.surgery.compensation.sequential import (
    SequentialOptions,
    compensate_in_sequence,
)
from effllava_optuna.surgery.export.checkpoint import (
    Verification,
    VerifiedExport,
    export,
    load_pruned,
)
from effllava_optuna.surgery.export.model_card import CardMetric, ModelCard
from effllava_optuna.surgery.export.onnx_export import VerifiedOnnxExport, export_onnx, verify_onnx
from effllava_optuna.surgery.export.stock_sizes import (
    nearest_stock_widths,
    pad_to_stock_sizes,
    restrict_to_stock_sizes,
)
from effllava_optuna.surgery.gguf.gguf_export import VerifiedGgufExport, export_gguf
from effllava_optuna.surgery.gguf.tensors import GgufType
from effllava_optuna.surgery.importance.calibration_batch import CalibrationBatch
from effllava_optuna.surgery.importance.criteria import IMPORTANCES, rank_units
from effllava_optuna.surgery.importance.moments import Moments, WeightedSums
from effllava_optuna.surgery.importance.unit_statistics import (
    UnitStatistics,
    collect_statistics,
    weigh_tokens,
)
from effllava_optuna.surgery.loading.checkpoint_outline import (
    CheckpointOutline,
    outline_checkpoint,
)
from effllava_optuna.surgery.loading.example_inputs import (
    build_example_inputs,
    describe_image_tokens,
    verify_reduction,
)
from effllava_optuna.surgery.loading.finite_values import require_finite_logits
from effllava_optuna.surgery.loading.loader import fingerprint, inspect_checkpoint, load
from effllava_optuna.surgery.loading.structure_verification import verify_structure
from effllava_optuna.surgery.structure.component_handle import (
    BlockHandle,
    ComponentHandle,
    UnitRows,
)
from effllava_optuna.surgery.structure.inspection import inspect_model, projector
from effllava_optuna.surgery.structure.loaded_model import LoadedModel, PruningRecord
from effllava_optuna.surgery.structure.prunable_parts import PrunableParts, UnprunablePart
from effllava_optuna.surgery.visual_tokens.token_reduction import TokenChoice, TokenReduction

__all__ = [
    "FULL_FIT",
    "IMPORTANCES",
    "BlockHandle",
    "CalibrationBatch",
    "CardMetric",
    "CheckpointOutline",
    "CompensatedRanking",
    "CompensationTable",
    "ComponentHandle",
    "ContextOptions",
    "EncodedInputs",
    "FittedOutput",
    "GgufType",
    "LoadedModel",
    "ModelCard",
    "Moments",
    "PrunableParts",
    "PruningOptions",
    "PruningRecord",
    "SequentialOptions",
    "TokenChoice",
    "TokenReduction",
    "UnitRows",
    "UnitStatistics",
    "UnprunablePart",
    "Verification",
    "VerifiedAnyForm",
    "VerifiedExport",
    "VerifiedGgufExport",
    "VerifiedOnnxExport",
    "WeightState",
    "WeightedSums",
    "answer_logits",
    "arranged",
    "build_example_inputs",
    "choose_damping",
    "collect_statistics",
    "compensate_in_context",
    "compensate_in_sequence",
    "describe_image_tokens",
    "encode_images",
    "estimate_residuals",
    "export",
    "export_any_form",
    "export_gguf",
    "export_onnx",
    "fingerprint",
    "generate",
    "generate_text",
    "inspect_checkpoint",
    "inspect_model",
    "least_squares",
    "load",
    "load_pruned",
    "masked",
    "mean_biases",
    "narrowed",
    "nearest_stock_widths",
    "outline_checkpoint",
    "pad_to_stock_sizes",
    "policy_network",
    "prefill",
    "projector",
    "projector_state",
    "rank_and_compensate",
    "rank_units",
    "reduced_processors",
    "reduced_tokens",
    "require_finite_logits",
    "restrict_to_stock_sizes",
    "samples_per_backward",
    "sliced",
    "split_by_memory",
    "table_tensors",
    "tables_of",
    "use_projector",
    "verify_onnx",
    "verify_reduction",
    "verify_structure",
    "weigh_tokens",
]
