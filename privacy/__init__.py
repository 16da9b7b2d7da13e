"""Differential privacy for federated learning: events, accountants, ledger, and the DP-SGD step.

The order of use is the order of trust: a `DPPlan` fixes every public number, a `Budget` admits a
round and writes it to the `Ledger` before secret coins are drawn, a `PoissonSampler` and a
`PrivateGradient` do what was charged. Names that need torch are loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING

from privacy.accountant import (
    Accountant,
    EpsilonFigures,
    PLDAccountant,
    PRVAccountant,
    RDPAccountant,
    accountant_named,
    cross_checked,
    replace_one_epsilon,
)
from privacy.budget import Admission, Budget
from privacy.calibrate import CalibrationCache, affordable_epsilon, calibrate_noise_multiplier
from privacy.discrete import DiscreteGaussianNoise
from privacy.display import display_epsilon
from privacy.errors import (
    AccountingError,
    BudgetExhausted,
    CalibrationError,
    ConfigurationError,
    GradientShapeError,
    LedgerConflict,
    LedgerCorrupt,
    LedgerError,
    LedgerLocked,
    LedgerRolledBack,
    PrivacyError,
    StepError,
    UnsupportedEvent,
)
from privacy.events import Event, NeighbouringRelation, PrivacyUnit, SampledGaussian
from privacy.history import (
    Charge,
    LedgerHead,
    LedgerHistory,
    LedgerTerms,
    Signer,
    Verifier,
    read_ledger,
)
from privacy.ledger import Ledger
from privacy.noise import GaussianNoise, NoiseSource
from privacy.plan import (
    Arithmetic,
    ClipMode,
    DPPlan,
    DPSpace,
    NoiseMode,
    default_delta,
    equal_share_weights,
    least_noise_weights,
    make_plan,
    public_size,
)
from privacy.sampling import PoissonSampler

if TYPE_CHECKING:
    from privacy.dpsgd import PrivateGradient, StepHistory
    from privacy.integer import GridRelease, IntegerGradient
    from privacy.jacobian import PromptSpace, Space, TextSpace, make_space
    from privacy.sketch import Sketch, SketchSpace, build_sketch

_NEED_TORCH = {
    "PrivateGradient": "privacy.dpsgd",
    "StepHistory": "privacy.dpsgd",
    "GridRelease": "privacy.integer",
    "IntegerGradient": "privacy.integer",
    "PromptSpace": "privacy.jacobian",
    "Space": "privacy.jacobian",
    "TextSpace": "privacy.jacobian",
    "make_space": "privacy.jacobian",
    "Sketch": "privacy.sketch",
    "SketchSpace": "privacy.sketch",
    "build_sketch": "privacy.sketch",
}

__all__ = [
    "Accountant",
    "AccountingError",
    "Admission",
    "Arithmetic",
    "Budget",
    "BudgetExhausted",
    "CalibrationCache",
    "CalibrationError",
    "Charge",
    "ClipMode",
    "ConfigurationError",
    "DPPlan",
    "DPSpace",
    "DiscreteGaussianNoise",
    "EpsilonFigures",
    "Event",
    "GaussianNoise",
    "GradientShapeError",
    "GridRelease",
    "IntegerGradient",
    "Ledger",
    "LedgerConflict",
    "LedgerCorrupt",
    "LedgerError",
    "LedgerHead",
    "LedgerHistory",
    "LedgerLocked",
    "LedgerRolledBack",
    "LedgerTerms",
    "NeighbouringRelation",
    "NoiseMode",
    "NoiseSource",
    "PLDAccountant",
    "PRVAccountant",
    "PoissonSampler",
    "PrivacyError",
    "PrivacyUnit",
    "PrivateGradient",
    "PromptSpace",
    "RDPAccountant",
    "SampledGaussian",
    "Signer",
    "Sketch",
    "SketchSpace",
    "Space",
    "StepError",
    "StepHistory",
    "TextSpace",
    "UnsupportedEvent",
    "Verifier",
    "accountant_named",
    "affordable_epsilon",
    "build_sketch",
    "calibrate_noise_multiplier",
    "cross_checked",
    "default_delta",
    "display_epsilon",
    "equal_share_weights",
    "least_noise_weights",
    "make_plan",
    "make_space",
    "public_size",
    "read_ledger",
    "replace_one_epsilon",
]


def __getattr__(name: str) -> object:
    if name in _NEED_TORCH:
        return getattr(importlib.import_module(_NEED_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
