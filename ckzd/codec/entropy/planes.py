"""A plane of levels <-> bytes: escapes, the choice of the cheapest coder, four passes over the lattice.

Layout of a coded plane (all little-endian):
  u8  coder           0 empty, 1 raw, 2 order-0, 3 tables, 4 lstm; plus 128 if symbol codes follow; plus 64 if the
                      escape block is packed; plus 32 if contexts see the second moment; plus 16 if words are of lanes
  empty: nothing more, every level is 0; raw: i16 levels, row by row; else:
  leb total           sum of the magnitudes (each cut off at 15): sets the density class
  leb escapes         bytes of the escape block
  u8[18] or nothing   order-0: the frequencies; tables, lstm: this plane's factors on the shared model (128: 1)
  escape block        the levels beyond -8..8, in coding order: packed (`escapes`), or zstd of i16; absent if none
  words               symbols, to the end: in lanes (`lanes`), of which the LSTM and formats before 7 know nothing, or
                      range-coded
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from ckzd.codec import zstd
from ckzd.codec.arrays import Codes, Plane
from ckzd.codec.entropy import context, escapes, lanes
from ckzd.codec.entropy.context import SideInformation, TableContexts
from ckzd.codec.entropy.models import (
    COARSE,
    BiasedModel,
    Counts,
    Histogram,
    Histograms,
    Model,
    Models,
    Seen,
    TableModel,
    UniformModel,
    biased,
    cost_bits,
    fit_bias,
    frequency_codes,
    product,
    seen,
    table_rows,
)
from ckzd.codec.entropy.range_coder import Rows, SymbolDecoder, SymbolEncoder
from ckzd.codec.kernels import kernels
from ckzd.codec.kernels.plain import (
    ALPHABET,
    ESCAPE,
    MAX_SYMBOL_LEVEL,
    Lines,
    Symbols,
    lattice,
    magnitudes,
    to_levels,
    to_symbols,
)
from ckzd.codec.kernels.plain import Ids as TableIds
from ckzd.codec.parsing import read_leb, write_leb

_HAS_CODES, _PACKED, _SEES_SECOND, _LANES = 128, 64, 32, 16
_FLAGS = _HAS_CODES | _PACKED | _SEES_SECOND | _LANES
_SMALL_BYTES = 1 << 18  # of escapes: on megabytes, zstd at its highest level took more time than all else
_WORTH_TRYING = 1.25  # times the packed size that zstd's fast level may take, for its highest to be worth its time


class Coder(IntEnum):
    """How the symbols of a plane are coded."""

    EMPTY = 0
    RAW = 1
    ORDER0 = 2
    TABLES = 3
    LSTM = 4


@dataclass(frozen=True, slots=True)
class PlaneToCode:
    """A tensor's levels and what their contexts may see."""

    number: int  # of the tensor
    kind: int  # of `context`
    levels: Plane
    side_information: SideInformation


@dataclass(frozen=True, slots=True)
class TableSymbols:
    """A plane as tables see it: its symbols in coding order, each with the context that tables know it by."""

    total: int  # sum of the magnitudes
    density: int
    symbols: Symbols  # (N,) of all passes
    ids: TableIds  # (N,)
    passes: tuple[int, ...]  # how many of each

    @classmethod
    def of(cls, plane: PlaneToCode) -> "TableSymbols":
        """Of a plane to code."""
        levels = np.ascontiguousarray(plane.levels)
        shape = levels.shape[0], levels.shape[1]
        sums = [Lines.zeros(shape) for _ in range(context.PASSES)]  # of each pass
        symbols = [kernels.gather(levels, number, own) for number, own in enumerate(sums)]
        total = sum(int(own.rows.sum()) for own in sums)
        contexts, ids = TableContexts(plane.kind, plane.side_information, shape), []
        for number, own in enumerate(sums):
            ids.append(contexts.ids(number, total))
            contexts.known.add(own)
        density = context.density_class(total, levels.size)
        return cls(total, density, np.concatenate(symbols), np.concatenate(ids), tuple(each.size for each in symbols))

    def counts(self) -> Counts:
        """How often each symbol follows each context, (120, A)."""
        return kernels.count(self.ids, self.symbols, COARSE)


@dataclass(frozen=True, slots=True)
class _GridPass:
    """The symbols of one pass in coding order, and the whole context of each."""

    symbols: Symbols  # (N,)
    ids: context.Ids  # (N,)


def _grid_passes(plane: PlaneToCode, total: int) -> list[_GridPass]:
    """A plane as the LSTM sees it."""
    magnitude, symbols = magnitudes(plane.levels), to_symbols(plane.levels).ravel()
    known, found = np.zeros_like(magnitude), []
    for _, places, ids in context.passes(plane.kind, plane.side_information, known, total):
        found.append(_GridPass(symbols[places], ids))
        known.ravel()[places] = magnitude.ravel()[places]
    return found


def histograms_of(plane: PlaneToCode) -> Histograms:
    """How often each symbol of this plane follows each context of the grid."""
    total = int(magnitudes(plane.levels).sum(dtype=np.int64))
    density = context.density_class(total, plane.levels.size)
    return _histograms(_grid_passes(plane, total), plane.kind, density)


def _histograms(passes: Sequence[_GridPass], kind: int, density: int) -> Histograms:
    return {(kind, number, density): Histogram.of(each.ids, each.symbols) for number, each in enumerate(passes)}


@dataclass(frozen=True, slots=True)
class _Choice:
    """One way to code the symbols, with or without the plane's own codes."""

    coder: Coder
    codes: Codes  # none: unbiased
    bits: float


_NO_CODES: Codes = np.empty(0, np.uint8)


def _with_and_without_bias(coder: Coder, plain: Seen) -> list[_Choice]:
    bias = fit_bias(plain)
    return [
        _Choice(coder, _NO_CODES, cost_bits(plain)),
        _Choice(coder, bias, cost_bits(biased(plain, bias)) + 8 * ALPHABET),
    ]


def _cheapest(choices: Sequence[_Choice]) -> _Choice:
    return min(choices, key=lambda choice: choice.bits)


def _order0(counts: Counts) -> _Choice:
    codes = frequency_codes(counts.sum(0).astype(np.float64))
    marginal = [(counts.sum(0, keepdims=True).astype(np.float64), table_rows(codes[None]))]
    return _Choice(Coder.ORDER0, codes, cost_bits(marginal) + 8 * ALPHABET)


def _model_of(coder: Coder, codes: Codes, models: Models) -> Model:
    """The frequencies that range-coded symbols of a plane with this header are coded with, for both directions."""
    if coder is Coder.ORDER0 and codes.size:
        return UniformModel(codes)
    shared = {Coder.TABLES: models.tables, Coder.LSTM: models.lstm}.get(coder)
    if shared is None:
        raise ValueError(f"a plane is coded as {coder.name} and the archive does not carry what that needs")
    return BiasedModel(shared, codes) if codes.size else shared


def _lane_rows(coder: Coder, codes: Codes, tables: TableModel, kind: int, density: int) -> Rows:
    """The frequencies (120, A) that symbols in lanes of a plane with this header are coded with."""
    if coder is Coder.ORDER0 and codes.size:
        return np.repeat(table_rows(codes[None]), COARSE, axis=0)
    if coder is not Coder.TABLES:
        raise ValueError(f"a plane is coded as {coder.name} in lanes")
    rows = tables.coarse_rows(kind, density)
    return product(rows, table_rows(codes)) if codes.size else rows


@dataclass(frozen=True, slots=True)
class _Coded:
    """A coded plane, taken apart."""

    coder: Coder
    sees_second: bool
    in_lanes: bool
    total: int
    codes: Codes
    escapes: Plane  # in coding order
    words: bytes

    def to_bytes(self) -> bytes:
        block, is_packed = _block_of(self.escapes) if self.escapes.size else (b"", False)
        flags = (_HAS_CODES if self.codes.size else 0) + (_PACKED if is_packed else 0)
        flags += (_SEES_SECOND if self.sees_second else 0) + (_LANES if self.in_lanes else 0)
        name = bytes([self.coder + flags])
        return name + write_leb(self.total) + write_leb(len(block)) + self.codes.tobytes() + block + self.words

    @staticmethod
    def from_bytes(data: bytes, elements: int) -> "_Coded":
        total, start = read_leb(data, 1)
        escape_bytes, start = read_leb(data, start)
        codes = np.frombuffer(data, np.uint8, ALPHABET if data[0] & _HAS_CODES else 0, start)
        start += codes.size
        block, words = data[start : start + escape_bytes], data[start + escape_bytes :]
        coder = Coder(data[0] & ~_FLAGS)
        levels = _unpacked(block, elements, packed=bool(data[0] & _PACKED))
        return _Coded(coder, bool(data[0] & _SEES_SECOND), bool(data[0] & _LANES), total, codes, levels, words)


def _block_of(levels: Plane) -> tuple[bytes, bool]:
    """Escapes as they take least, and whether they are packed, as nearly all are."""
    packed, plain = escapes.pack(levels), levels.astype("<i2").tobytes()
    block = zstd.compress(plain, zstd.FAST)
    if len(block) < _WORTH_TRYING * len(packed) and len(plain) <= _SMALL_BYTES:
        block = min(block, zstd.compress(plain), key=len)
    return (block, False) if len(block) < len(packed) else (packed, True)


def _unpacked(block: bytes, elements: int, *, packed: bool) -> Plane:
    if packed:
        return escapes.unpack(block, elements)
    return np.frombuffer(zstd.decompress(block, 2 * elements) if block else b"", "<i2").astype(np.int16)


def encode_plane(plane: PlaneToCode, models: Models) -> tuple[bytes, Coder]:
    """Code a plane (R, C) with whichever coder is cheapest; returns the bytes and which coder it was."""
    levels, kind = plane.levels, plane.kind
    if not levels.any():
        return bytes([Coder.EMPTY]), Coder.EMPTY
    known = TableSymbols.of(plane)
    counts = known.counts()
    tables = [(counts.astype(np.float64), models.tables.coarse_rows(kind, known.density))]
    choices = [_order0(counts), *_with_and_without_bias(Coder.TABLES, tables)]
    lstm = models.lstm if kind != context.EXACT else None
    grid = _grid_passes(plane, known.total) if lstm is not None else []
    if lstm is not None:
        choices += _with_and_without_bias(Coder.LSTM, seen(_histograms(grid, kind, known.density), lstm))
    best = _cheapest(choices)
    in_lanes = best.coder is not Coder.LSTM
    if in_lanes:
        rows = _lane_rows(best.coder, best.codes, models.tables, kind, known.density)
        words = lanes.encode(known.symbols, known.ids, list(known.passes), rows)
    else:
        words = _range_coded(grid, _model_of(best.coder, best.codes, models), kind, known.density)
    sees_second = plane.side_information.second is not None
    coded = _Coded(best.coder, sees_second, in_lanes, known.total, best.codes, _escapes_of(levels), words).to_bytes()
    if len(coded) > 2 * levels.size:
        return bytes([Coder.RAW]) + levels.astype("<i2").tobytes(), Coder.RAW
    return coded, best.coder


def _range_coded(passes: Sequence[_GridPass], model: Model, kind: int, density: int) -> bytes:
    coder = SymbolEncoder()
    for number, each in enumerate(passes):
        coder.encode(each.symbols, each.ids, model.rows(kind, number, density))
    return coder.finish()


def decode_plane(
    data: bytes, shape: tuple[int, int], kind: int, side_information: SideInformation, models: Models
) -> Plane:
    """The inverse of `encode_plane`; ValueError if the bytes cannot be one."""
    if data == bytes([Coder.EMPTY]):
        return np.zeros(shape, np.int16)
    if data[0] == Coder.RAW:
        return np.frombuffer(data, "<i2", offset=1).astype(np.int16).reshape(shape)
    coded = _Coded.from_bytes(data, shape[0] * shape[1])
    if coded.sees_second and side_information.second is None:
        raise ValueError("a plane's contexts see a second moment that it does not have")
    if not coded.sees_second:  # as in formats before 5
        side_information = replace(side_information, second=None)
    if coded.in_lanes:
        return _decode_lanes(coded, shape, kind, side_information, models.tables)
    if kind == context.EXACT:
        raise ValueError("a plane of what is exact, and no lanes")
    return _decode_range_coded(coded, shape, kind, side_information, _model_of(coded.coder, coded.codes, models))


def _escapes_of(levels: Plane) -> Plane:
    """The levels beyond -8..8 in coding order."""
    places = np.flatnonzero((levels > MAX_SYMBOL_LEVEL) | (levels < -MAX_SYMBOL_LEVEL))
    if not places.size:
        return np.empty(0, np.int16)
    rows, columns = np.divmod(places, levels.shape[1])
    pass_of = lattice((8, 8))[rows & 7, columns & 7]
    in_order: Plane = levels.ravel()[places[np.argsort(pass_of, kind="stable")]]
    return in_order


def _decode_lanes(
    coded: _Coded, shape: tuple[int, int], kind: int, side_information: SideInformation, tables: TableModel
) -> Plane:
    levels, used = np.zeros(shape, np.int16), 0
    density = context.density_class(coded.total, levels.size)
    contexts = TableContexts(kind, side_information, shape)
    coder = lanes.LaneDecoder(coded.words, levels.size, _lane_rows(coded.coder, coded.codes, tables, kind, density))
    for number in range(context.PASSES):
        symbols = coder.decode(contexts.ids(number, coded.total))
        rest = coded.escapes[used:]
        used += kernels.scatter(symbols, number, rest, levels, contexts.known)
    coder.finish()
    _require_whole(coded, used, int(contexts.known.rows.sum()))
    return levels


def _decode_range_coded(
    coded: _Coded, shape: tuple[int, int], kind: int, side_information: SideInformation, model: Model
) -> Plane:
    levels, known = np.zeros(shape, np.int16), np.zeros(shape, np.uint8)
    density = context.density_class(coded.total, levels.size)
    coder, used = SymbolDecoder(coded.words), 0
    for number, places, ids in context.passes(kind, side_information, known, coded.total):
        symbols = coder.decode(ids, model.rows(kind, number, density))
        count = int(np.count_nonzero(symbols == ESCAPE))
        if used + count > coded.escapes.size:
            raise ValueError(f"a plane has {coded.escapes.size} escapes but its symbols ask for more")
        found = to_levels(symbols, coded.escapes[used : used + count])
        levels.ravel()[places], known.ravel()[places] = found, magnitudes(found)
        used += count
    _require_whole(coded, used, int(known.sum(dtype=np.int64)))
    return levels


def _require_whole(coded: _Coded, escapes_used: int, total: int) -> None:
    if escapes_used != coded.escapes.size or total != coded.total:
        raise ValueError(f"a plane decodes to {escapes_used} escapes and a total that its header does not give")
