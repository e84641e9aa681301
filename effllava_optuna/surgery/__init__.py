"""Everything that touches a model: load, rank, narrow, refit, slice, export."""

from effllava_optuna.surgery.basis import WHOLE, Basis, running
from effllava_optuna.surgery.calibrate import Probe, Survey, survey
from effllava_optuna.surgery.card import Card, Metric
from effllava_optuna.surgery.compensate import Compensation, Recipe, compensate
from effllava_optuna.surgery.discover import Discovery, discover, projector
from effllava_optuna.surgery.examine import examined
from effllava_optuna.surgery.export import Verified, export, load_pruned
from effllava_optuna.surgery.features import (
    Seen,
    answer,
    look,
    projecting,
    projector_state,
    read_into,
    write,
)
from effllava_optuna.surgery.handle import Block, Handle, Refusal, Rows
from effllava_optuna.surgery.load import fingerprint, load, outline
from effllava_optuna.surgery.loaded import Loaded
from effllava_optuna.surgery.moments import Moments, Sums
from effllava_optuna.surgery.narrow import arranged, masked, narrowed, sliced
from effllava_optuna.surgery.onnx import VerifiedOnnx, export_onnx, verify_onnx
from effllava_optuna.surgery.portable import portable, sayable
from effllava_optuna.surgery.probe import probe
from effllava_optuna.surgery.rank import ORDERS, rank_units
from effllava_optuna.surgery.refit import (
    Fitted,
    Refit,
    choose_damping,
    least_squares,
    mean_biases,
)
from effllava_optuna.surgery.sequence import refit_in_sequence
from effllava_optuna.surgery.sketch import Sketch, sketch

__all__ = [
    "ORDERS",
    "WHOLE",
    "Basis",
    "Block",
    "Card",
    "Compensation",
    "Discovery",
    "Fitted",
    "Handle",
    "Loaded",
    "Metric",
    "Moments",
    "Probe",
    "Recipe",
    "Refit",
    "Refusal",
    "Rows",
    "Seen",
    "Sketch",
    "Sums",
    "Survey",
    "Verified",
    "VerifiedOnnx",
    "answer",
    "arranged",
    "choose_damping",
    "compensate",
    "discover",
    "examined",
    "export",
    "export_onnx",
    "fingerprint",
    "least_squares",
    "load",
    "load_pruned",
    "look",
    "masked",
    "mean_biases",
    "narrowed",
    "outline",
    "portable",
    "probe",
    "projecting",
    "projector",
    "projector_state",
    "rank_units",
    "read_into",
    "refit_in_sequence",
    "running",
    "sayable",
    "sketch",
    "sliced",
    "survey",
    "verify_onnx",
    "write",
]
