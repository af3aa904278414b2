"""The scales of all weights, coded as differences to the reference's: the side information of every quantizer."""

from collections.abc import Mapping

import numpy as np

from ckzd.codec.arrays import Scale
from ckzd.codec.entropy.context import WEIGHTS, SideInformation
from ckzd.codec.entropy.models import Models
from ckzd.codec.entropy.planes import PlaneToCode, decode_plane, encode_plane
from ckzd.codec.records.layout import Layout, plane_shape
from ckzd.codec.records.reconstruction import Reconstruction
from ckzd.codec.scales import Scales, checked_scales


def encode_scales(layout: Layout, scales: Mapping[int, Scales], reference: Reconstruction | None) -> bytes:
    """The scales of all triples, by weight number, as one plane of differences: rows before columns."""
    if not layout.triples:
        return b""
    parts: list[Scale] = []
    for triple in layout.triples:
        own, before = scales[triple.weight], _scales_before(layout, triple.weight, reference)
        parts += [own.rows - before.rows, own.columns - before.columns]  # int16: wraps, and wraps back
    data, _ = encode_plane(PlaneToCode(0, WEIGHTS, np.concatenate(parts)[:, None], SideInformation()), Models())
    return data


def decode_scales(
    data: bytes, layout: Layout, reference: Reconstruction | None, reach: int | None
) -> dict[int, Scales]:
    """The inverse of `encode_scales`."""
    shapes = {t.weight: plane_shape(layout.tensors[t.weight].shape) for t in layout.triples}
    if not shapes:
        return {}
    count = sum(rows + columns for rows, columns in shapes.values())
    plane = decode_plane(data, (count, 1), WEIGHTS, SideInformation(), Models())[:, 0]
    found, start = {}, 0
    for number, (rows, columns) in shapes.items():
        before = _scales_before(layout, number, reference)
        own_rows, start = plane[start : start + rows] + before.rows, start + rows
        own_columns, start = plane[start : start + columns] + before.columns, start + columns
        found[number] = checked_scales(own_rows, own_columns, reach)
    return found


def _scales_before(layout: Layout, number: int, reference: Reconstruction | None) -> Scales:
    """The reference's scales of a weight; 0 where it has none of the same length."""
    tensor = layout.tensors[number]
    rows, columns = plane_shape(tensor.shape)

    def before(field: str, length: int) -> Scale:
        found = reference.get(tensor.path, field) if reference is not None else None
        usable = found is not None and found.shape == (length,)
        return found.astype(np.int16) if found is not None and usable else np.zeros(length, np.int16)

    return Scales(before("rows", rows), before("columns", columns))
