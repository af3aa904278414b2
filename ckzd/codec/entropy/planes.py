"""A plane of levels <-> bytes: escapes, the choice of the cheapest coder, four passes over the lattice.

Layout of a coded plane (all little-endian):
  u8  coder           0 empty, 1 raw, 2 order-0, 3 tables, 4 lstm; plus 128 if symbol codes follow; plus 64 if the
                      escape block is packed; plus 32 if contexts see the second moment
  empty: nothing more, every level is 0; raw: i16 levels, row by row; else:
  leb total           sum of the magnitudes (each cut off at 15): sets the density class
  leb escapes         bytes of the escape block
  u8[18] or nothing   order-0: the frequencies; tables, lstm: this plane's factors on the shared model (128: 1)
  escape block        the levels beyond -8..8, in coding order: packed (`escapes`), or zstd of i16; absent if none
  words               range-coded symbols, to the end
"""

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from ckzd.codec import zstd
from ckzd.codec.arrays import Codes, Plane
from ckzd.codec.entropy import context, escapes
from ckzd.codec.entropy.context import ALPHABET, SideInformation
from ckzd.codec.entropy.models import (
    BiasedModel,
    Histogram,
    Histograms,
    Model,
    Models,
    UniformModel,
    biased,
    cost_bits,
    fit_bias,
    frequency_codes,
    seen,
    symbol_counts,
)
from ckzd.codec.entropy.range_coder import SymbolDecoder, SymbolEncoder
from ckzd.codec.parsing import read_leb, write_leb

ESCAPE = ALPHABET - 1
MAX_SYMBOL_LEVEL = (ALPHABET - 2) // 2  # 8
_HAS_CODES, _PACKED, _SEES_SECOND = 128, 64, 32
_SMALL_BYTES = 1 << 18  # of escapes: on megabytes, zstd at its highest level took more time than all else


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
    kind: int  # WEIGHTS, FIRST or SECOND
    levels: Plane
    side_information: SideInformation


def to_symbols(levels: Plane) -> npt.NDArray[np.uint8]:
    """Zigzag: 0, 1, -1, 2, -2, ... 8, -8 -> 0..16; everything beyond is the escape."""
    near = np.clip(levels, -MAX_SYMBOL_LEVEL - 1, MAX_SYMBOL_LEVEL + 1)
    return np.minimum(np.where(near > 0, 2 * near - 1, -2 * near), ESCAPE).astype(np.uint8)


def _to_levels(symbols: npt.NDArray[np.int32], escapes: Plane) -> Plane:
    levels = np.where(symbols & 1, (symbols + 1) >> 1, -(symbols >> 1)).astype(np.int16)
    levels[symbols == ESCAPE] = escapes
    return levels


@dataclass(frozen=True, slots=True)
class _Pass:
    """The symbols of one pass in coding order, and the context of each."""

    symbols: npt.NDArray[np.uint8]  # (N,)
    ids: context.Ids  # (N,)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A plane as the coder sees it."""

    total: int
    density: int
    passes: tuple[_Pass, ...]

    @classmethod
    def of(cls, levels: Plane, kind: int, side_information: SideInformation) -> "_Seen":
        magnitude, symbols = context.magnitudes(levels), to_symbols(levels).ravel()
        total = int(magnitude.sum(dtype=np.int64))
        known, found = np.zeros_like(magnitude), []
        for _, places, ids in context.passes(kind, side_information, known, total):
            found.append(_Pass(symbols[places], ids))
            known.ravel()[places] = magnitude.ravel()[places]
        return cls(total, context.density_class(total, levels.size), tuple(found))

    def histograms(self, kind: int) -> Histograms:
        counted = (Histogram.of(each.ids, each.symbols) for each in self.passes)
        return {(kind, number, self.density): histogram for number, histogram in enumerate(counted)}

    def words(self, kind: int, model: Model) -> bytes:
        coder = SymbolEncoder()
        for number, each in enumerate(self.passes):
            coder.encode(each.symbols, each.ids, model.rows(kind, number, self.density))
        return coder.finish()


def histograms_of(levels: Plane, kind: int, side_information: SideInformation) -> Histograms:
    """How often each symbol follows each context of this plane."""
    return _Seen.of(levels, kind, side_information).histograms(kind)


def _choose(histograms: Histograms, models: Models) -> tuple[Coder, Codes]:
    """The cheapest coder and its codes (none: unbiased)."""
    marginal = symbol_counts(histograms)
    none, order0 = np.empty(0, np.uint8), frequency_codes(marginal)
    choices = [(Coder.ORDER0, order0, cost_bits(seen(histograms, UniformModel(order0))) + 8 * ALPHABET)]
    shared = [(Coder.TABLES, models.tables)] + ([(Coder.LSTM, models.lstm)] if models.lstm is not None else [])
    for coder, model in shared:
        plain = seen(histograms, model)
        bias = fit_bias(plain)
        choices.append((coder, none, cost_bits(plain)))
        choices.append((coder, bias, cost_bits(biased(plain, bias)) + 8 * ALPHABET))
    coder, codes, _ = min(choices, key=lambda choice: choice[2])
    return coder, codes


def _model_of(coder: Coder, codes: Codes, models: Models) -> Model:
    """The frequencies that a plane with this header is coded with, for both directions."""
    if coder is Coder.ORDER0 and codes.size:
        return UniformModel(codes)
    shared = {Coder.TABLES: models.tables, Coder.LSTM: models.lstm}.get(coder)
    if shared is None:
        raise ValueError(f"a plane is coded as {coder.name} and the archive does not carry what that needs")
    return BiasedModel(shared, codes) if codes.size else shared


@dataclass(frozen=True, slots=True)
class _Coded:
    """A coded plane, taken apart."""

    coder: Coder
    sees_second: bool
    total: int
    codes: Codes
    escapes: Plane  # in coding order
    words: bytes

    def to_bytes(self) -> bytes:
        packed = escapes.pack(self.escapes) if self.escapes.size else b""
        block = min(packed, _zstd_of(self.escapes), key=len) if packed else b""
        flags = (_HAS_CODES if self.codes.size else 0) + (_PACKED if block and block is packed else 0)
        name = bytes([self.coder + flags + (_SEES_SECOND if self.sees_second else 0)])
        return name + write_leb(self.total) + write_leb(len(block)) + self.codes.tobytes() + block + self.words

    @staticmethod
    def from_bytes(data: bytes, elements: int) -> "_Coded":
        total, start = read_leb(data, 1)
        escape_bytes, start = read_leb(data, start)
        codes = np.frombuffer(data, np.uint8, ALPHABET if data[0] & _HAS_CODES else 0, start)
        start += codes.size
        block, words = data[start : start + escape_bytes], data[start + escape_bytes :]
        coder = Coder(data[0] & ~(_HAS_CODES | _PACKED | _SEES_SECOND))
        levels = _unpacked(block, elements, packed=bool(data[0] & _PACKED))
        return _Coded(coder, bool(data[0] & _SEES_SECOND), total, codes, levels, words)


def _zstd_of(escapes: Plane) -> bytes:
    plain = escapes.astype("<i2").tobytes()
    return zstd.compress(plain, zstd.SMALL if len(plain) <= _SMALL_BYTES else zstd.FAST)


def _unpacked(block: bytes, elements: int, *, packed: bool) -> Plane:
    if packed:
        return escapes.unpack(block, elements)
    return np.frombuffer(zstd.decompress(block, 2 * elements) if block else b"", "<i2").astype(np.int16)


def encode_plane(levels: Plane, kind: int, side_information: SideInformation, models: Models) -> tuple[bytes, Coder]:
    """Code a plane (R, C) with whichever coder is cheapest; returns the bytes and which coder it was."""
    if not levels.any():
        return bytes([Coder.EMPTY]), Coder.EMPTY
    plane = _Seen.of(levels, kind, side_information)
    coder, codes = _choose(plane.histograms(kind), models)
    words = plane.words(kind, _model_of(coder, codes, models))
    coded = _Coded(
        coder, side_information.second is not None, plane.total, codes, _escapes_of(levels), words
    ).to_bytes()
    if len(coded) > 2 * levels.size:
        return bytes([Coder.RAW]) + levels.astype("<i2").tobytes(), Coder.RAW
    return coded, coder


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
    return _decode_symbols(coded, shape, kind, side_information, _model_of(coded.coder, coded.codes, models))


def _escapes_of(levels: Plane) -> Plane:
    """The levels beyond -8..8 in coding order."""
    pass_of = context.lattice(levels.shape)
    beyond = np.abs(levels.astype(np.int32)) > MAX_SYMBOL_LEVEL
    return np.concatenate([levels[(pass_of == number) & beyond] for number in range(context.PASSES)])


def _decode_symbols(
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
        found = _to_levels(symbols, coded.escapes[used : used + count])
        levels.ravel()[places], known.ravel()[places] = found, context.magnitudes(found)
        used += count
    if used != coded.escapes.size or int(known.sum(dtype=np.int64)) != coded.total:
        raise ValueError(f"a plane decodes to {used} escapes and a total that its header does not give")
    return levels
