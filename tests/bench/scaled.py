"""`ckzd` with one preset's weight steps scaled, for settings between and beyond the presets on a curve.

usage: scaled.py PRESET FACTOR ARGUMENTS...    ARGUMENTS are those of `ckzd`
"""

import sys
from dataclasses import replace

from ckzd.cli import run
from ckzd.codec.budget import Budget
from ckzd.codec.presets import PRESETS, Preset


def scaled(preset: Preset, factor: float) -> Preset:
    """All weights coarser by the factor, and allowed to be."""
    steps = {name: factor * getattr(preset, name) for name in ("weight_step", "update_step", "whole_step")}
    errors = (preset.budget.max_weight_error, preset.budget.max_worst_tensor_error)
    return replace(preset, budget=Budget(*(factor**2 * error for error in errors)), **steps)


if __name__ == "__main__":
    name, factor, *arguments = sys.argv[1:]
    PRESETS[name] = scaled(PRESETS[name], float(factor))
    sys.exit(run(arguments))
