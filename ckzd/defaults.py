"""What holds where nobody says otherwise, for command line, configuration and library alike. Loads nothing."""

from enum import StrEnum

MAX_DEPTH = 20  # deltas over a base at most: a restore decodes them all (what it costs: tests/bench/RESULTS.md)


class Effort(StrEnum):
    """How much work an archive is worth, at the same promise of quality."""

    BEST = "best"  # as small as can be
    FAST = "fast"  # less work, larger archives (how much: tests/bench/RESULTS.md)


DAMAGED_DAYS = 30.0  # that `gc` keeps a damaged archive which was set aside
