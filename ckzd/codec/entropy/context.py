"""Which decoded symbols predict the next one: one function of decoded integers, shared by both directions.

A plane (levels of one tensor, R x C) is coded in four passes over a diagonal lattice, (i + j) mod 8 = 0 | 4 | 2, 6 |
odd, so that later passes see the energy of their row and column and their direct neighbours, and every pass is one
vectorised step. A context is a tuple of small classes; its number inside (plane kind, pass, density) is its grid id.

# R = rows, C = columns, N = elements of a pass, G = grid size
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ckzd.codec.arrays import ContextLevels, HalfOctaves
from ckzd.codec.kernels import kernels
from ckzd.codec.kernels.plain import (
    ENERGY_CLASSES,
    MEAN_SECOND,
    SIGNED_CLASS,
    Lines,
    Magnitudes,
    lattice,
    magnitudes,
)
from ckzd.codec.kernels.plain import Ids as TableIds

Places = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int16]
Classes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]

KINDS = 4
WEIGHTS, FIRST, SECOND, EXACT = range(KINDS)
PASSES = 4
DENSITIES = 8
FIELDS = (("guide", 5), ("energy", ENERGY_CLASSES), ("around", 4), ("neighbours", 4), ("previous", 3))
GRID = 5 * 24 * 4 * 4 * 3
_GUIDE_PLACE, _ENERGY_PLACE, _AROUND_PLACE, _NEIGHBOUR_PLACE = (np.int16(n) for n in (24 * 48, 48, 12, 3))

_KNOWN_NEIGHBOURS = (0, 0, 2, 4)  # of the eight, in each pass
_DENSITY_STEPS = np.array([4, 11, 28, 64, 128, 256, 512], np.int64)  # mean magnitude in 1/256
_SURROUND_STEPS = (141, 226, 333)  # sum over neighbours relative to what the mean would give, in 1/256
_PRIOR_ELEMENTS = 8  # a row is taken for average until it has shown about this many elements
_ONE = 1 << 12  # energies are relative to the plane's, in 1/4096

# 24 classes of (row energy x column energy), 1/4 octave apart around 1: 4096 * 2**(k / 4), k = -14 .. 8
_ENERGY_STEPS = (
    362, 431, 512, 609, 724, 861, 1024, 1218, 1448, 1722, 2048, 2435, 2896, 3444, 4096, 4871, 5793, 6889, 8192, 9742,
    11585, 13777, 16384,
)  # fmt: skip
_ENERGY_CLASS = np.searchsorted(_ENERGY_STEPS, np.arange(_ENERGY_STEPS[-1] + 1), side="right").astype(np.int16)


@dataclass(frozen=True, slots=True)
class SideInformation:
    """Levels known before the plane is decoded; both (R, C) or absent.

    `levels`: for weights the reference's residual, for what is exact what changed before, for factors how large they
    may be, for moments the levels of what they were pruned with.
    `previous`: the reference's residual of the same matrix one layer earlier.
    `second`: for moments, half octaves of the second moment over its mean, as its scales tell; for what is exact, how
    fine its ulps are, in quarters of an octave.
    """

    levels: ContextLevels | None = None
    previous: ContextLevels | None = None
    second: HalfOctaves | None = None


def density_class(total: int, elements: int) -> int:
    """0..7: the plane's mean magnitude, from the total that its header carries."""
    return int(np.searchsorted(_DENSITY_STEPS, total * 256 // max(elements, 1), side="right"))


def passes(
    kind: int, side_information: SideInformation, known: Magnitudes, total: int
) -> Iterator[tuple[int, Places, Ids]]:
    """Yield (pass, places (N,), grid ids (N,)) in coding order; places count the elements of the plane row by row.

    `known` holds the magnitudes coded so far, 0 elsewhere, C-contiguous; the caller fills those at `places` before it
    asks for the next pass. `total` is the sum of all magnitudes of the plane.
    """
    _, columns = known.shape
    pass_of = lattice(known.shape).ravel()
    fixed = _fixed_part(side_information, known.shape).ravel()
    energies = _Energies.of(side_information, known.shape)
    for number, neighbours in enumerate(_KNOWN_NEIGHBOURS):
        places = np.flatnonzero(pass_of == number)
        row = places // max(columns, 1)
        by_row, by_column = (
            energies.relative_energy(known.sum(axis, dtype=np.int64), number, total, axis) for axis in (1, 0)
        )
        relative = by_row[row] * by_column[places - row * columns] >> 12
        energy = _ENERGY_CLASS[np.minimum(relative, _ENERGY_STEPS[-1])]
        if side_information.second is not None:
            energy = _with_second(kind, energy, side_information.second.ravel()[places])
        ids = fixed[places] + _ENERGY_PLACE * energy
        if neighbours:
            ids += _NEIGHBOUR_PLACE * _surround_classes(known, neighbours, total).ravel()[places]
        yield number, places, ids


def _with_second(kind: int, energy: Ids, second: HalfOctaves) -> Ids:
    """A first moment is as large as its second moment lets it be; the second is what its own scales say, no more.

    What is exact moves by as many ulps more as they are finer.
    """
    classes: Ids = np.clip(second + (MEAN_SECOND if kind == SECOND else energy), 0, ENERGY_CLASSES - 1)
    return classes


def _fixed_part(side_information: SideInformation, shape: tuple[int, int]) -> Ids:
    """What guide, around and previous add to the grid id: the same in all passes; int16 (R, C)."""
    fixed = np.zeros(shape, np.int16)
    if side_information.levels is not None:
        magnitude = magnitudes(side_information.levels)
        fixed += _GUIDE_PLACE * SIGNED_CLASS[side_information.levels.view(np.uint8)]
        fixed += _AROUND_PLACE * _surround_classes(magnitude, 8, int(magnitude.sum(dtype=np.int64)))
    if side_information.previous is not None:
        fixed += np.minimum(magnitudes(side_information.previous), 2)
    return fixed


def _surround_classes(magnitude: Magnitudes, counted: int, total: int) -> Classes:
    """How the sum over the eight neighbours compares with `counted` average ones: 0..3, uint8 (R, C)."""
    padded = np.pad(magnitude, 1)
    three = padded[:-2] + padded[1:-1] + padded[2:]
    around = three[:, :-2] + three[:, 1:-1] + three[:, 2:] - magnitude
    classes = np.zeros(magnitude.shape, np.uint8)
    for step in _SURROUND_STEPS:
        classes += around > step * counted * total // max(256 * magnitude.size, 1)
    return classes


@dataclass(frozen=True, slots=True)
class _Energies:
    """Energies of rows (axis 1) and columns (axis 0), and what the side information's levels add to each, by axis."""

    shape: tuple[int, int]
    shares: tuple[Counts | int, Counts | int]
    weights: tuple[int, int]  # elements that the side information counts for

    @classmethod
    def of(cls, side_information: SideInformation, shape: tuple[int, int]) -> "_Energies":
        """The reference's row counts half: it has moved since."""
        if side_information.levels is None:
            return cls(shape, (0, 0), (0, 0))
        sums = kernels.line_sums(np.ascontiguousarray(side_information.levels))
        if not (whole := int(sums.rows.sum())):
            return cls(shape, (0, 0), (0, 0))
        columns, rows = (_shares(each, shape, whole) // 2 for each in (sums.columns, sums.rows))
        return cls(shape, (columns, rows), (shape[0] // 2, shape[1] // 2))

    def relative_energy(self, sums: Counts, number: int, total: int, axis: int) -> Counts:
        """Mean magnitude of each row or column before a pass relative to the plane's, in 1/4096; int64.

        `sums` are those of the magnitudes that are known.
        """
        energy = _shares(sums, self.shape, total) + self.shares[axis]
        weight = _coded_before(number, self.shape[1 - axis], self.shape[axis]) + self.weights[axis]
        relative: Counts = (energy + _ONE * _PRIOR_ELEMENTS) // (weight + _PRIOR_ELEMENTS)
        return relative


@lru_cache(256)  # a network has few shapes
def _coded_before(number: int, lines: int, length: int) -> Counts:
    """How many elements of each row or column were coded before a pass: (lines,); every eighth is alike."""
    return np.resize((lattice((8, length)) < number).sum(1, dtype=np.int64), lines)


def _shares(sums: Counts, shape: tuple[int, int], total: int) -> Counts:
    """Sum of each row or column over the plane's mean, in 1/4096, rounded down twice: no product exceeds 2**63."""
    mean_of_one = (shape[0] * shape[1] << 30) // max(total, 1)
    shares: Counts = (sums * mean_of_one) >> 18
    return shares


# What tables see of it


class TableContexts:
    """The first two classes alone, guide and energy, pass by pass: all that tables tell apart.

    `known` are the sums of the magnitudes known so far; whoever codes a pass adds to them.
    """

    def __init__(self, kind: int, side_information: SideInformation, shape: tuple[int, int]) -> None:
        for each in (side_information.levels, side_information.second):
            if each is not None and each.shape != shape:  # kernels believe it
                raise ValueError(f"side information of {each.shape} for a plane of {shape}")
        self.known = Lines.zeros(shape)
        self._energies = _Energies.of(side_information, shape)
        seen = (side_information.levels, side_information.second)
        self._guide, self._second = (None if each is None else np.ascontiguousarray(each) for each in seen)
        self._second_alone = kind == SECOND

    def ids(self, number: int, total: int) -> TableIds:
        """Of each element of a pass in coding order, (N,): class of guide * 24 + class of energy."""
        energies = Lines(
            self._energies.relative_energy(self.known.rows, number, total, axis=1),
            self._energies.relative_energy(self.known.columns, number, total, axis=0),
        )
        return kernels.contexts(
            number, energies, _ENERGY_CLASS, self._guide, self._second, second_alone=self._second_alone
        )
