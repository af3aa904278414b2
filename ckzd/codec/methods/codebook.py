"""Codebook: ExCP's pruned residuals and moments, each a centre of its tensor's codebook.

A weight restores as reference + centre, a first moment as the centre or 0, a second moment as the centre or the fill.
Stream: the codebook (`paper/codebook.py`), the plane.

# R = rows, C = columns of a tensor seen as a matrix
"""

from dataclasses import replace
from functools import partial

import numpy as np

from ckzd.checkpoint import RawArray
from ckzd.codec.arrays import Float64, Mask, Plane
from ckzd.codec.dtypes import SMALLEST_NORMAL, from_float64
from ckzd.codec.entropy.context import SideInformation
from ckzd.codec.methods.method import (
    Candidate,
    Coded,
    KnownMoments,
    KnownWeight,
    MomentMethod,
    MomentsToCode,
    Quantizer,
    WeightMethod,
    WeightToCode,
)
from ckzd.codec.paper.codebook import Codebook, KmeansCode, dequantize_kmeans
from ckzd.codec.presets import Scheme
from ckzd.codec.records.index import Method, QuantizationSteps
from ckzd.codec.records.layout import Role
from ckzd.codec.records.reference_tensors import (
    ReferenceTensor,
    add_residual,
    levels_for_context,
    moment_side_information,
)
from ckzd.codec.scales import half_octaves


def _head_bytes(data: bytes) -> int:
    _, nbytes = Codebook.from_bytes(data)
    return nbytes


def _values(coded: Coded) -> Float64:
    assert coded.levels is not None, "it has a plane"
    return dequantize_kmeans(KmeansCode(coded.levels, Codebook.from_bytes(coded.head)[0]))


def _quantized(values: Float64, mask: Mask) -> Coded:
    from ckzd.codec.paper import kmeans  # noqa: PLC0415  # a second of scikit-learn, for the one preset with codebooks

    code = kmeans.quantize_kmeans(values, mask)
    return Coded(code.codebook.to_bytes(), code.levels)


class CodebookWeight(WeightMethod):
    """The residual where it is large."""

    name = Method.KMEANS
    schemes = frozenset({Scheme.KMEANS})

    def step(self, steps: QuantizationSteps) -> None:  # noqa: ARG002  # centres are values
        """No step, so that none can be made finer: what is not good enough is coded exactly."""
        return

    def quantizer(self, weight: WeightToCode) -> Quantizer | None:
        """For a residual."""
        if weight.before is None:
            return None
        residual = np.where(weight.values == 0, 0.0, np.subtract(weight.values, weight.before, dtype=np.float64))

        def at(step: float) -> Candidate:
            from ckzd.codec.paper import kmeans  # noqa: PLC0415  # see `_quantized`

            coded = _quantized(residual, kmeans.kept_weights(residual, weight.second()))
            return Candidate(lambda: coded, partial(self.restored, coded, weight.known, step))

        return at

    def head_bytes(self, data: bytes, shape: tuple[int, int]) -> int:  # noqa: ARG002  # of any shape
        """The codebook."""
        return _head_bytes(data)

    def restored(self, coded: Coded, known: KnownWeight, step: float) -> ReferenceTensor:  # noqa: ARG002  # no step
        """Reference + centre."""
        values = add_residual(known.before, _values(coded), known.tensor.dtype)
        return ReferenceTensor(values, coded.levels, known.stored_basis)


class CodebookFirst(MomentMethod):
    """First moments that are large, of elements whose residual was kept."""

    name = Method.KMEANS
    roles = frozenset({Role.FIRST})
    schemes = frozenset({Scheme.KMEANS})

    def coded(self, moments: MomentsToCode) -> Coded:
        """A codebook of the moments that are kept."""
        return _quantized(moments.first.astype(np.float64), _mask(moments))

    def head_bytes(self, data: bytes, shape: tuple[int, int]) -> int:  # noqa: ARG002  # of any shape
        """The codebook."""
        return _head_bytes(data)

    def restored(self, coded: Coded, known: KnownMoments) -> RawArray:
        """Centres, and 0 elsewhere."""
        return from_float64(_values(coded), known.first.dtype)

    def side_information(self, known: KnownMoments) -> SideInformation:
        """The weight's levels, and what scales foretell of the second moment."""
        side_information = moment_side_information(known.weight, known.reconstruction)
        return replace(side_information, second=half_octaves(known.scales))


class CodebookSecond(MomentMethod):
    """Second moments where the first ones were kept; the fill elsewhere."""

    name = Method.KMEANS
    roles = frozenset({Role.SECOND})

    def may_stand_beside(self, first: Method) -> bool:
        """Beside a first moment that has a codebook: its contexts see those levels."""
        return first is Method.KMEANS

    def coded(self, moments: MomentsToCode) -> Coded:
        """A codebook of the moments that are kept."""
        assert moments.second is not None, "it is of the second moment"
        return _quantized(moments.second.astype(np.float64), _mask(moments))

    def head_bytes(self, data: bytes, shape: tuple[int, int]) -> int:  # noqa: ARG002  # of any shape
        """The codebook."""
        return _head_bytes(data)

    def restored(self, coded: Coded, known: KnownMoments) -> RawArray:
        """Centres are at least the smallest normal number: also where the moment was 0 but the first was not."""
        assert known.second is not None, "it is of the second moment"
        assert coded.levels is not None, "it has a plane"
        dtype = known.second.dtype
        centres = from_float64(np.maximum(_values(coded), SMALLEST_NORMAL[dtype]), dtype)
        return np.where(coded.levels != 0, centres, known.fill)

    def side_information(self, known: KnownMoments) -> SideInformation:
        """The first moment's levels, and what scales foretell."""
        return SideInformation(levels_for_context(known.first_levels()), second=half_octaves(known.scales))


def _mask(moments: MomentsToCode) -> Mask:
    """Which moments are kept, both at the same places."""
    from ckzd.codec.paper import kmeans  # noqa: PLC0415  # see `_quantized`

    levels: Plane | None = moments.weight_levels
    is_kept = np.ones(moments.first.shape, np.bool_) if levels is None else levels != 0
    return kmeans.kept_moments(moments.first.astype(np.float64), is_kept)
