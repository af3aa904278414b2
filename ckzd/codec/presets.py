"""What each quality means: the constants of every preset, and where each comes from.

`step_fraction` and `moment_step` are set by measurement on the ruler (tests/bench/RESULTS.md); the ExCP constants are
the defaults of its published script.
"""

from dataclasses import dataclass
from enum import StrEnum


class Scheme(StrEnum):
    """How the residual of a weight tensor becomes symbols."""

    EXACT = "exact"
    SCALAR = "scalar"
    KMEANS = "kmeans"


@dataclass(frozen=True, slots=True)
class Preset:
    """One named quality."""

    name: str
    scheme: Scheme
    promise: str
    step_fraction: float = 0.0  # scalar: quantizer step over the rms of all Fisher-weighted residuals
    dead_zone: float = 0.6  # scalar: magnitudes below this many steps become 0
    moment_step: float = 2.0  # scalar: step of exp_avg / sqrt(exp_avg_sq) over its rms, where it is coded
    momentum_step: float = 1.0  # of a momentum without a second moment, over its rms: always coded
    lstm_steps: int = 60  # at most, when the reference has an LSTM to start from
    lstm_cold_steps: int = 150


# ExCP: kept weights |R| > min(cap, alpha / sqrt(mean v)) * median |R|; kept moments |m| > beta * mean |m|
EXCP_ALPHA = 5e-5
EXCP_BETA = 2.0
EXCP_CAP = 2.5
EXCP_CENTRES = 15

PRESETS = {
    preset.name: preset
    for preset in (
        Preset("resume", Scheme.SCALAR, "resumes as the original does", step_fraction=0.95),
        Preset("archive", Scheme.SCALAR, "for looking back: about 1 % of loss at a resume", step_fraction=1.5),
        Preset(
            "paper", Scheme.KMEANS, "the published pipeline at ExCP's constants", lstm_steps=200, lstm_cold_steps=400
        ),
        Preset("lossless", Scheme.EXACT, "byte-identical files"),
    )
}
