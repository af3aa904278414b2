"""What each quality means: the constants of every preset, and where each comes from.

`step_fraction` and `moment_step` are set by measurement on the ruler (tests/bench/RESULTS.md), budgets to half as much
again as the ruler gave; the ExCP constants are the defaults of its published script.
"""

from dataclasses import dataclass
from enum import StrEnum


class Scheme(StrEnum):
    """How the residual of a weight tensor becomes symbols."""

    EXACT = "exact"
    SCALAR = "scalar"
    KMEANS = "kmeans"


@dataclass(frozen=True, slots=True)
class Budget:
    """How much the weights of one archive may lose, as the encoder sees it; it spends bits until that holds.

    Errors and updates are Fisher-weighted and squared; an update is the difference to the reference's reconstruction.
    """

    max_weight_error: float  # error of all lossy weights over the energy of all typical updates
    max_worst_tensor_error: float  # error of any one weight over the energy of its own update


NO_LOSS = Budget(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Preset:
    """One named quality."""

    name: str
    scheme: Scheme
    promise: str
    budget: Budget
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
        # the ruler's steps 200 to 1600 gave at most 0.083 and 0.62
        Preset("resume", Scheme.SCALAR, "resumes as the original does", Budget(0.125, 0.75), step_fraction=0.95),
        # at most 0.200 and 0.91
        Preset(
            "archive", Scheme.SCALAR, "for looking back: about 1 % of loss at a resume", Budget(0.3, 0.95),
            step_fraction=1.5,
        ),
        # steps 900 to 1100: at most 0.020 and 0.051; as it was published unless it fails altogether
        Preset(
            "paper", Scheme.KMEANS, "the published pipeline at ExCP's constants", Budget(1.0, 1.0),
            lstm_steps=200, lstm_cold_steps=400,
        ),
        Preset("lossless", Scheme.EXACT, "byte-identical files", NO_LOSS),
    )
}  # fmt: skip
