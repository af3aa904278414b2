"""ExCP's pruning and its k-means codebooks: the encoder's half; decoding is a look-up in `codebook`.

The masks follow the published formulas; the codebook is an exact 1-D k-means on a fine weighted histogram with float32
centres, where the public script samples 3,840 points and stores float16 (second moments then underflow to 0).

# R = rows, C = columns, K = codebook size
"""

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

from ckzd.codec.arrays import Float64, Mask
from ckzd.codec.paper.codebook import Codebook, KmeansCode
from ckzd.codec.parallel import one_blas_thread
from ckzd.codec.presets import EXCP_ALPHA, EXCP_BETA, EXCP_CAP, EXCP_CENTRES

_HISTOGRAM_BINS = 8192  # k-means sees weighted bin means: exact to 1e-4 of the range, and fast at any size
_COARSE_BINS = 128
_MAX_SIDE = 8  # codebook entries on one side of zero that the symbol alphabet holds


def kept_weights(residual: Float64, second: Float64) -> Mask:
    """ExCP's weight mask: the threshold falls where the second moment is large."""
    scale = min(EXCP_CAP, EXCP_ALPHA / float(np.sqrt(second.mean() + 1e-38)))
    kept: Mask = np.abs(residual) > scale * np.median(np.abs(residual))
    return kept


def kept_moments(first: Float64, kept: Mask) -> Mask:
    """ExCP's moment mask: where the first moment is large and the weight was kept."""
    magnitude = np.abs(first)
    large: Mask = magnitude > EXCP_BETA * magnitude.mean()
    return large & kept


def quantize_kmeans(values: Float64, kept: Mask) -> KmeansCode:
    """1-D k-means of the kept values, 15 centres."""
    levels = np.zeros(values.shape, np.int16)
    if not kept.any():
        return KmeansCode(levels, Codebook(np.empty(0, np.float32), 0))
    chosen = values[kept]
    centres = _kmeans(chosen)
    negative = int(np.count_nonzero(centres < 0))
    below = min(max(negative, centres.size - _MAX_SIDE), _MAX_SIDE)
    index = np.searchsorted((centres[1:] + centres[:-1]) / 2, chosen) - below
    levels[kept] = np.where(index >= 0, index + 1, index)
    return KmeansCode(levels, Codebook(centres.astype(np.float32), below))


def _kmeans(values: Float64) -> Float64:
    if values.size <= EXCP_CENTRES:
        return np.unique(values)
    counts, edges = np.histogram(values, bins=_HISTOGRAM_BINS)
    sums, _ = np.histogram(values, bins=edges, weights=values)
    used = counts > 0
    means, weights = sums[used] / counts[used], counts[used]
    if means.size <= EXCP_CENTRES:
        return np.sort(means)
    start = _start(counts, edges)
    model = KMeans(n_clusters=EXCP_CENTRES, init=start[:, None], n_init=1, max_iter=1000, tol=0.0)
    with one_blas_thread():  # more of them would add up in an order of their own: other bits each time
        model.fit(means[:, None], sample_weight=weights)
    return np.sort(model.cluster_centers_[:, 0])


def _start(counts: npt.NDArray[np.intp], edges: Float64) -> Float64:
    """Where to begin: the best centres lie as dense as the cube root of the values that they stand for."""
    coarse = np.cbrt(counts.reshape(_COARSE_BINS, -1).sum(1))
    share = np.concatenate([[0.0], np.cumsum(coarse) / coarse.sum()])
    start: Float64 = np.interp(
        (np.arange(EXCP_CENTRES) + 0.5) / EXCP_CENTRES, share, edges[:: counts.size // _COARSE_BINS]
    )
    return start
