"""Tables straight from counts, without factors of the planes: what fitted ones are held against."""

import numpy as np

from ckzd.codec.entropy.models import COARSE, Histograms, TableModel, frequency_codes, smoothed
from ckzd.codec.kernels.plain import ALPHABET


def counted_tables(histograms: Histograms) -> TableModel:
    """Each cell pulled towards its plane kind's average."""
    summed = {}
    for (kind, _, density), histogram in histograms.items():
        table = summed.setdefault((kind, density), np.zeros((COARSE, ALPHABET)))
        table += histogram.coarse()
    return TableModel({key: frequency_codes(smoothed(table)) for key, table in summed.items()})
