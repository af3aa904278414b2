"""Which contexts earn their place: adaptive code length of one checkpoint's symbols under every choice of fields.

usage: contexts.py REFERENCE.pt... CURRENT.pt [--preset resume]      one run, oldest first
Each context keeps counts of its own and learns as it codes (Dirichlet, 1/18 a symbol), so that fields pay for what they
cost to learn: no table is sent. A line a choice; `density` is known in every one but the first. Beside the format's
fields stands the second moment at a symbol's place, as its scales tell (in a basis: of its two directions), in classes
a quarter of an octave apart; the format has it in the energy of moments that are coded by codebooks.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from unittest import mock

import numpy as np
import numpy.typing as npt
from closed_loop import chain_of, choices_of, run_parser
from machine import machine

from ckzd.codec.algebra.on_cores import CORES
from ckzd.codec.arrays import Float64
from ckzd.codec.choose import Chooser
from ckzd.codec.entropy import context
from ckzd.codec.entropy.context import WEIGHTS
from ckzd.codec.entropy.planes import PlaneToCode
from ckzd.codec.kernels.plain import ALPHABET, to_symbols
from ckzd.codec.methods import factored
from ckzd.codec.presets import PRESETS
from ckzd.codec.records.index import Method
from ckzd.codec.records.reference_tensors import basis_of
from ckzd.codec.scales import value_of
from ckzd.codec.transform.adaptive_basis import BasisSide

SECOND_CLASSES = 24
FIELDS = (*context.FIELDS, ("second moment", SECOND_CLASSES))
NAMES = tuple(name for name, _ in FIELDS)
SIZES = tuple(size for _, size in FIELDS)
PRIOR = 1 / ALPHABET
LOG_GAMMA = np.vectorize(math.lgamma, otypes=[float])

Counts = npt.NDArray[np.int64]
Cells = dict[tuple[int, int], Counts]  # by kind and density: symbols (A) after every context (product of SIZES)


def counted(planes: Iterable[tuple[PlaneToCode, Float64]], *, as_coded: bool = False) -> Cells:
    """Symbols of planes, each with the second moment (R, C) that its scales tell of every symbol's place.

    The energy of codebooks' moments has it in it, `as_coded`, or is told apart from it.
    """
    cells: Cells = {}
    for plane, second in planes:
        guide = plane.side_information if as_coded else replace(plane.side_information, second=None)
        known, symbols = np.zeros(plane.levels.shape, np.uint8), to_symbols(plane.levels).ravel()
        magnitude = context.magnitudes(plane.levels)
        total, classes = int(magnitude.sum(dtype=np.int64)), second_classes(second).ravel()
        key = plane.kind, context.density_class(total, known.size)
        counts = cells.setdefault(key, np.zeros((math.prod(SIZES), ALPHABET), np.int64))
        for _, places, ids in context.passes(plane.kind, guide, known, total):
            np.add.at(counts, (ids.astype(np.int64) * SECOND_CLASSES + classes[places], symbols[places]), 1)
            known.ravel()[places] = magnitude.ravel()[places]
    return cells


def second_classes(second: Float64) -> Counts:
    """Classes (R, C), a quarter of an octave apart in the fourth root, by which residuals are weighed."""
    relative = np.log2(np.maximum(second / second.mean(), 2.0**-40)) / 4
    return np.clip(np.floor(4 * relative) + SECOND_CLASSES // 2, 0, SECOND_CLASSES - 1).astype(np.int64)


def planes_with_second(chooser: Chooser) -> Iterator[tuple[PlaneToCode, Float64]]:
    """All planes that are coded, with the second moment at each place: of elements, or of a basis's directions."""
    weight_of = {n: t.weight for t in chooser.survey.lossy for n in (t.weight, *t.moments)}
    for plane in chooser.planes():
        weight = weight_of[plane.number]
        scales, found_in = chooser.survey.scales[weight], chooser.inputs.reference
        if plane.kind != WEIGHTS:
            found_in = chooser.reconstruction
        rows, columns = value_of(scales.rows), value_of(scales.columns)
        basis = basis_of(chooser.inputs.tensor(weight), found_in)
        if chooser.methods[plane.number] is Method.FRAMED and basis is not None:
            rows, columns = along(basis.left, rows), along(basis.right, columns)
        if plane.levels.any():
            yield plane, np.outer(rows, columns)


def along(basis: BasisSide, moments: Float64) -> Float64:
    """A side's second moments (N,) as its directions see them."""
    seen = np.empty(len(moments))
    for place, vectors in basis.blocks(CORES):
        seen[place] = (vectors**2).T @ moments[place] * 2.0**-28
    return seen


def adaptive_bytes(cells: Cells, fields: Iterable[str], *, density: bool = True) -> float:
    """Bytes of all symbols if contexts are told apart by these fields, plane kind and, it may be, density."""
    chosen, found = [NAMES.index(name) for name in fields], []
    for (kind, dense), counts in cells.items():
        used = np.flatnonzero(counts.any(1))
        classes = np.unravel_index(used, SIZES)
        place = np.full(used.shape, kind * 8 + (dense if density else 0))
        for field in chosen:
            place = place * SIZES[field] + classes[field]
        found.append((place, counts[used]))
    places = np.concatenate([place for place, _ in found])
    _, inverse = np.unique(places, return_inverse=True)
    summed = np.zeros((inverse.max() + 1, ALPHABET))
    np.add.at(summed, inverse, np.concatenate([counts for _, counts in found]))
    whole = LOG_GAMMA(summed.sum(1) + 1) - LOG_GAMMA(summed + PRIOR).sum(1) + ALPHABET * math.lgamma(PRIOR)
    return float(whole.sum() / math.log(256))


def choices() -> Iterator[tuple[str, tuple[str, ...]]]:
    """None, each alone, all but each, all, and what the tables use, with and without the second moment."""
    yield "density alone", ()
    yield from ((name, (name,)) for name in NAMES)
    yield from ((f"all but {name}", tuple(each for each in NAMES if each != name)) for name in NAMES)
    yield "all", NAMES
    yield "guide and energy", ("guide", "energy")
    yield "guide, energy and second moment", ("guide", "energy", "second moment")


def main() -> None:
    options = run_parser(__doc__).parse_args()
    preset = PRESETS[options.preset]
    *earlier, current = options.checkpoints
    reference = chain_of(earlier, preset)
    with mock.patch.object(factored, "fitted", return_value=None):  # bases for all: factors have no such places
        planes = list(planes_with_second(choices_of(current, reference, preset)))
    cells = counted(planes)
    print(json.dumps({**machine(), "checkpoint": current.name, "preset": preset.name}))
    order0 = adaptive_bytes(cells, (), density=False)
    print(json.dumps({"contexts": "none", "bytes": round(order0)}))
    sizes = {name: adaptive_bytes(cells, fields) for name, fields in choices()}
    as_coded = counted(planes, as_coded=True)
    sizes["guide and energy with the second moment in it, as tables do"] = adaptive_bytes(as_coded, ("guide", "energy"))
    for name, size in sizes.items():
        print(json.dumps({"contexts": name, "bytes": round(size), "below_order0": round(1 - size / order0, 4)}))


if __name__ == "__main__":
    main()
