"""What each quality means: the constants of every preset, and where each comes from.

Steps are set by measurement on the ruler (tests/bench/RESULTS.md), budgets to two to four times what the ruler gave;
the ExCP constants are the defaults of its published script.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from ckzd.codec.budget import Budget
from ckzd.defaults import Effort


class Scheme(StrEnum):
    """How the residual of a weight tensor becomes symbols."""

    EXACT = "exact"
    UNIFORM = "uniform"  # one quantization step for all, in adaptive bases
    PLAIN = "plain"  # the same element by element: what `Effort.FAST` makes of it
    KMEANS = "kmeans"


NO_LOSS = Budget(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Preset:
    """One named quality. Steps are quantization steps of the uniform scheme, relative to what follows."""

    name: str
    scheme: Scheme
    promise: str
    budget: Budget
    effort: Effort = Effort.BEST
    weight_step: float = 0.0  # to the typical Fisher-weighted weight: what moves a network's output
    fast_weight_step: float = 0.0  # the same without bases, where strong directions get no finer steps
    update_step: float = 0.0  # at most, to the rms of all Fisher-weighted residuals: what was learned since
    intra_step: float = 0.0  # to the typical weight, where there is no reference
    dead_zone: float = 0.5  # magnitudes below this many steps become 0
    moment_step: float = 0.0  # to the rms of exp_avg / sqrt(exp_avg_sq), where it is coded; in bases likewise
    fresh_moment_step: float = 0.0  # moment_step where first moments are more than noise: in young runs
    momentum_step: float = 0.7  # to the rms of a momentum without a second moment: always coded
    orthogonal_weight_step: float = 0.0  # to the own size of a weight that Muon moves: KL is 4e-4 with the first one's
    orthogonal_momentum_step: float = 2.2  # the same of one whose sizes do not count: Muon's, after its first steps
    lstm_steps: int = 0  # training steps at most, when the reference has an LSTM to start from; 0: tables alone
    lstm_cold_steps: int = 0

    @property
    def has_work_for_gpu(self) -> bool:
        """Whether it has bases to turn, or an LSTM to train."""
        return self.scheme in {Scheme.UNIFORM, Scheme.KMEANS}


# ExCP: kept weights |R| > min(cap, alpha / sqrt(mean v)) * median |R|; kept moments |m| > beta * mean |m|
EXCP_ALPHA = 5e-5
EXCP_BETA = 2.0
EXCP_CAP = 2.5
EXCP_CENTRES = 15

PRESETS = {
    preset.name: preset
    for preset in (
        # the ruler's steps 100 to 1600 gave at most 0.00028 and 0.046
        Preset(
            "resume", Scheme.UNIFORM, "resumes as the original does",
            Budget(0.001, 0.1, 0.01, 4e-4, 0.01),
            weight_step=0.08, fast_weight_step=0.055, update_step=1.8, intra_step=0.05, orthogonal_weight_step=0.36,
            moment_step=4.0, fresh_moment_step=0.5,
        ),
        # at most 0.0013 and 0.15
        Preset(
            "archive", Scheme.UNIFORM, "for looking back: about 1 % of loss at a resume",
            Budget(0.0025, 0.3, 0.04, 1.6e-3, 0.03),
            weight_step=0.18, fast_weight_step=0.12, update_step=2.0, intra_step=0.09, orthogonal_weight_step=0.5,
            moment_step=8.0, fresh_moment_step=1.0,
        ),
        # steps 900 to 1100: at most 0.020 and 0.051; as it was published unless it fails altogether
        Preset(
            "paper", Scheme.KMEANS, "the published pipeline at ExCP's constants", Budget(1.0, 1.0),
            lstm_steps=200, lstm_cold_steps=400,
        ),
        Preset("lossless", Scheme.EXACT, "byte-identical files", NO_LOSS),
    )
}  # fmt: skip


def preset_at(name: str, effort: Effort = Effort.BEST) -> Preset:
    """The preset of that name with that effort: bases and factors are what `resume` and `archive` can do without."""
    preset = PRESETS[name]
    if effort is Effort.BEST or preset.scheme is not Scheme.UNIFORM:
        return preset
    return replace(preset, scheme=Scheme.PLAIN, effort=effort, weight_step=preset.fast_weight_step)
