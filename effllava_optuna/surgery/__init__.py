"""Everything that touches a model: load, rank, narrow, refit, slice, export."""

from effllava_optuna.surgery.basis import WHOLE, Basis, running
from effllava_optuna.surgery.calibrate import Moments, Probe, moments, rank_units
from effllava_optuna.surgery.discover import Handle, discover, projector
from effllava_optuna.surgery.export import Verified, export, load_pruned
from effllava_optuna.surgery.features import Seen, answer, look, projecting, projector_state
from effllava_optuna.surgery.load import Loaded, fingerprint, load
from effllava_optuna.surgery.narrow import arranged, masked, narrowed, sliced
from effllava_optuna.surgery.onnx import VerifiedOnnx, export_onnx, verify_onnx
from effllava_optuna.surgery.refit import choose_damping, least_squares

__all__ = [
    "WHOLE",
    "Basis",
    "Handle",
    "Loaded",
    "Moments",
    "Probe",
    "Seen",
    "Verified",
    "VerifiedOnnx",
    "answer",
    "arranged",
    "choose_damping",
    "discover",
    "export",
    "export_onnx",
    "fingerprint",
    "least_squares",
    "load",
    "load_pruned",
    "look",
    "masked",
    "moments",
    "narrowed",
    "projecting",
    "projector",
    "projector_state",
    "rank_units",
    "running",
    "sliced",
    "verify_onnx",
]
