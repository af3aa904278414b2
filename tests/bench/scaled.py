"""`ckzd` with one preset's weight steps scaled, for settings between and beyond the presets on a curve.

usage: scaled.py PRESET FACTOR ARGUMENTS...    ARGUMENTS are those of `ckzd`
"""

import sys
from dataclasses import replace

from ckzd.cli import run
from ckzd.codec.presets import PRESETS, Preset


def scaled(preset: Preset, factor: float) -> Preset:
    """All weights coarser by the factor, and allowed to be."""
    steps = {name: factor * getattr(preset, name) for name in ("weight_step", "update_step", "intra_step")}
    bounds = ("max_weight_error", "max_worst_tensor_error", "max_matrix_error", "max_vector_error")
    budget = replace(preset.budget, **{name: factor**2 * getattr(preset.budget, name) for name in bounds})
    return replace(preset, budget=budget, **steps)


if __name__ == "__main__":
    name, factor, *arguments = sys.argv[1:]
    PRESETS[name] = scaled(PRESETS[name], float(factor))
    sys.exit(run(arguments))
