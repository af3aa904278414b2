"""The scales of all weights, coded as differences to what is known before: the side information of every quantizer.

A weight's scales are expected to be those of its reference; a predicted one's those of the weight that it follows.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from ckzd.codec.arrays import Scale
from ckzd.codec.entropy.context import WEIGHTS, SideInformation
from ckzd.codec.entropy.models import Models
from ckzd.codec.entropy.planes import PlaneToCode, decode_plane, encode_plane
from ckzd.codec.records.index import Index, LinearPrediction
from ckzd.codec.records.layout import Layout, plane_shape
from ckzd.codec.records.reconstruction import Reconstruction
from ckzd.codec.scales import Scales, checked_scales


def encode_scales(
    layout: Layout,
    scales: Mapping[int, Scales],
    predictions: Mapping[int, LinearPrediction],
    reference: Reconstruction | None,
) -> bytes:
    """The scales of all triples, by weight number, as one plane of differences: rows before columns."""
    parts: list[Scale] = []
    for number in _in_turn(layout, predictions):
        own, before = scales[number], _expected(layout, number, predictions, scales, reference)
        parts += [own.rows - before.rows, own.columns - before.columns]  # int16: wraps, and wraps back
    if not parts:
        return b""
    data, _ = encode_plane(PlaneToCode(0, WEIGHTS, np.concatenate(parts)[:, None], SideInformation()), Models())
    return data


def decode_scales(data: bytes, index: Index, reference: Reconstruction | None) -> dict[int, Scales]:
    """The inverse of `encode_scales`."""
    layout = index.layout
    shapes = {n: plane_shape(layout.tensors[n].shape) for n in _in_turn(layout, index.predictions)}
    if not shapes:
        return {}
    count = sum(rows + columns for rows, columns in shapes.values())
    plane = decode_plane(data, (count, 1), WEIGHTS, SideInformation(), Models())[:, 0]
    found: dict[int, Scales] = {}
    start = 0
    for number, (rows, columns) in shapes.items():
        before = _expected(layout, number, index.predictions, found, reference)
        own_rows, start = plane[start : start + rows] + before.rows, start + rows
        own_columns, start = plane[start : start + columns] + before.columns, start + columns
        found[number] = checked_scales(own_rows, own_columns, index.reach)
    return found


def _in_turn(layout: Layout, predictions: Mapping[int, LinearPrediction]) -> Iterator[int]:
    """Weights that are not predicted, then those that are."""
    weights = [triple.weight for triple in layout.triples]
    yield from (number for number in weights if number not in predictions)
    yield from (number for number in weights if number in predictions)


def _expected(
    layout: Layout,
    number: int,
    predictions: Mapping[int, LinearPrediction],
    known: Mapping[int, Scales],
    reference: Reconstruction | None,
) -> Scales:
    """What a weight's scales are expected to be; 0 where nothing of its shape is known."""
    if number in predictions:
        other = known.get(predictions[number].other)
        if other is not None:
            return other
    tensor = layout.tensors[number]
    rows, columns = plane_shape(tensor.shape)

    def before(field: str, length: int) -> Scale:
        found = reference.get(tensor.path, field) if reference is not None else None
        usable = found is not None and found.shape == (length,)
        return found.astype(np.int16) if found is not None and usable else np.zeros(length, np.int16)

    return Scales(before("rows", rows), before("columns", columns))
