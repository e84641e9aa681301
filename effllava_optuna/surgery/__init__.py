"""Everything that touches a model: load, rank, narrow, refit, slice, export."""

from effllava_optuna.surgery.basis import WHOLE, Basis, running
from effllava_optuna.surgery.calibrate import Moments, Probe, moments, rank_units
from effllava_optuna.surgery.card import Card, Metric
from effllava_optuna.surgery.discover import Discovery, discover, projector
from effllava_optuna.surgery.examine import examined
from effllava_optuna.surgery.export import Verified, export, load_pruned
from effllava_optuna.surgery.features import Seen, answer, look, projecting, projector_state
from effllava_optuna.surgery.handle import Block, Handle, Refusal, Rows
from effllava_optuna.surgery.load import fingerprint, load
from effllava_optuna.surgery.loaded import Loaded
from effllava_optuna.surgery.narrow import arranged, masked, narrowed, sliced
from effllava_optuna.surgery.portable import portable, sayable
from effllava_optuna.surgery.probe import probe
from effllava_optuna.surgery.refit import choose_damping, least_squares

__all__ = [
    "WHOLE",
    "Basis",
    "Block",
    "Card",
    "Discovery",
    "Handle",
    "Loaded",
    "Metric",
    "Moments",
    "Probe",
    "Refusal",
    "Rows",
    "Seen",
    "Verified",
    "answer",
    "arranged",
    "choose_damping",
    "discover",
    "examined",
    "export",
    "fingerprint",
    "least_squares",
    "load",
    "load_pruned",
    "look",
    "masked",
    "moments",
    "narrowed",
    "portable",
    "probe",
    "projecting",
    "projector",
    "projector_state",
    "rank_units",
    "running",
    "sayable",
    "sliced",
]
